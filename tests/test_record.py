"""A run folder says what the run is from its first moment on, and its recipe is not edited."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from tiny import TINY

from ganlab import files
from ganlab.checkpoint import checkpoint_file
from ganlab.cli import main
from ganlab.commands.generator import load_for_use
from ganlab.commands.pack import weights_record
from ganlab.compare.again import begun_by
from ganlab.errors import GanlabError, RecipeError
from ganlab.images.files import write_png
from ganlab.recipe.model import load_recipe
from ganlab.runs import record
from ganlab.runs.folder import RunFolder, is_complete, new_run_folder, open_run_folder
from ganlab.runs.reading import Log
from ganlab.runs.record import Change, read_record
from ganlab.tensor_files import read_safetensors

GAME = (
    TINY.replace("evaluate_every = 100", "evaluate_every = 2")
    + "adam = { learning_rate = 1e-3 }\nfolder = { use = './counts.py', path = '.' }\n"
)
# a stranger's plugin: one option that may change, one that may not, a schedule and a path
COUNTS = '''\
from pathlib import Path
from typing import Annotated

from ganlab import MayChange, Plugin, RecipePath, Schedule, hookimpl


class Counts(Plugin):
    """Logs its options."""

    path: RecipePath
    size: int = 1
    weight: Annotated[float, MayChange()] = 1.0
    slope: Schedule = Schedule.constant(1.0)

    @hookimpl
    def generator_loss(self, fake):
        return {"G/counts": 0 * self.weight * fake.mean()}

    @hookimpl
    def data_digest(self):
        return {"names": " ".join(sorted(p.name for p in self.path.glob("*.txt")))}
'''


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def done(*arguments: object) -> Result:
    result = ganlab(*arguments)
    assert result.exit_code == 0, result.output + result.stderr
    return result


def refused(*arguments: object) -> str:
    result = ganlab(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, a run of it that is done, and one that was stopped half way."""
    place = tmp_path_factory.mktemp("record")
    (place / "game.toml").write_text(GAME)
    (place / "counts.py").write_text(COUNTS)
    done("run", place / "game.toml", "--runs", place, "--name", "whole")
    done("run", place / "game.toml", "--runs", place, "--name", "half", "--max-iterations", 2)
    return place


@pytest.fixture
def half(place: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run, which is the same run."""
    return shutil.copytree(place / "half", tmp_path / "half")


@pytest.fixture
def whole(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "whole", tmp_path / "whole")


def edit(run: Path, old: str = "learning_rate = 0.001", new: str = "learning_rate = 0.1") -> None:
    text = (run / "recipe.toml").read_text()
    assert old in text
    (run / "recipe.toml").write_text(text.replace(old, new))


def learning_rate(run: Path, iteration: int) -> float:
    state = torch.load(checkpoint_file(run / "checkpoints", iteration), weights_only=True)
    return float(state["networks"]["G_optimizer"]["param_groups"][0]["lr"])


def figures(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


# an edit by hand


@pytest.mark.parametrize(
    "command",
    [("resume",), ("report",), ("pack",), ("checkpoints", "--prune"),
     ("eval", "--data", "."), ("upscale", "PICTURE")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_recipe_that_was_edited_by_hand_is_refused_with_the_right_way(
    half: Path, command: tuple[str, ...]
) -> None:
    edit(half)
    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), half.parent / "x.png")
    words = [half.parent / "x.png" if word == "PICTURE" else word for word in command[1:]]
    told = refused(command[0], half, *words)
    assert "adam.learning_rate: 0.001 -> 0.1" in told
    assert f"ganlab resume {half} --set adam.learning_rate=0.1" in told


def test_an_edited_run_is_not_compared(half: Path, whole: Path) -> None:
    edit(half)
    for command in ("compare", "diff"):
        assert "edited" in refused(command, whole, half)


@pytest.mark.parametrize("text", ["", "iterations = ", "\xff", "iterations = 4\n[plugins]\n"])
def test_a_damaged_recipe_is_refused_in_one_line(half: Path, text: str) -> None:
    (half / "recipe.toml").write_bytes(text.encode("latin-1"))
    told = refused("resume", half)
    assert "its sha256 is not that in manifest.json" in told
    assert len(told.splitlines()) == 1


def test_a_run_goes_on_from_its_own_recipe_not_from_an_edit(half: Path) -> None:
    edit(half)
    told = done("resume", half, "--set", "folder.weight=2").stderr
    assert "undone, it was edited by hand: adam.learning_rate = 0.1" in told
    assert learning_rate(half, 4) == 0.001


# a change


def test_a_learning_rate_changes_from_here_on(half: Path) -> None:
    result = done("resume", half, "--set", "adam.learning_rate=0.1")
    assert learning_rate(half, 2) == 0.001
    assert learning_rate(half, 4) == 0.1
    told = "changed at iteration 2: adam.learning_rate 0.001 -> 0.1"
    assert told in result.stdout
    assert told in done("runs", "--runs", half.parent).stdout
    assert "adam.learning_rate 0.001 -&gt; 0.1" in (half / "report.html").read_text()
    line = json.loads((half / "changes.jsonl").read_text())
    assert line["recipe"] == record.sha256((half / "recipe.toml").read_text())
    assert (line["iteration"], line["old"], line["new"]) == (2, 0.001, 0.1)


def test_a_learning_rate_changes_in_a_run_of_an_older_ganlab(half: Path) -> None:
    file = checkpoint_file(half / "checkpoints", 2)
    state = torch.load(file, weights_only=True)
    del state["options"]
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_suffix(".sha256").write_text(f"{digest}  {file.name}\n")
    manifest = json.loads((half / "manifest.json").read_text())
    for name in ("id", "recipe", "recipe_text", "changes"):
        del manifest[name]
    (half / "manifest.json").write_text(json.dumps(manifest))
    done("resume", half, "--set", "adam.learning_rate=0.1")
    assert learning_rate(half, 4) == 0.1


def test_a_state_of_the_optimizer_survives_a_change(half: Path) -> None:
    done("resume", half, "--set", "adam.learning_rate=0.1")
    state = torch.load(checkpoint_file(half / "checkpoints", 4), weights_only=True)
    assert state["networks"]["G_optimizer"]["state"][0]["step"] == 4


def test_two_runs_differ_in_what_was_changed_in_one(half: Path, whole: Path) -> None:
    done("resume", half, "--set", "adam.learning_rate=0.1")
    told = ganlab("diff", whole, half).stdout
    assert "+ changed in the run: at iteration 2: adam.learning_rate 0.001 -> 0.1" in told


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("seed=1", "what was computed so far depends on it"),
        ("batch_size=4", "what was computed so far depends on it"),
        ("best_metric=ssim_y", "what was computed so far depends on it"),
        ("encoder_decoder.width=8", "does not say that it may change"),
        ("folder.size=2", "does not say that it may change"),
        ("ema={}", "a run keeps its plugins"),
        ("gradient_penalty=false", "a run keeps its plugins"),
        ("iterations=2", "2 of 2 iterations are done"),
        ("iterations=1", "2 of 1 iterations are done"),
        ("folder.no_such=2", "no option 'no_such'"),
    ],
)
def test_what_a_run_is_may_not_change(half: Path, change: str, reason: str) -> None:
    before = {p.name: p.read_bytes() for p in half.iterdir() if p.suffix in (".toml", ".json")}
    told = refused("resume", half, "--set", change)
    assert reason in told
    if change == "seed=1":
        assert told.rstrip().endswith(f": ganlab run {half / 'recipe.toml'} --set seed=1")
    assert {name: (half / name).read_bytes() for name in before} == before
    assert not (half / "changes.jsonl").exists()


def test_the_author_of_a_plugin_says_what_may_change(half: Path) -> None:
    slope = "folder.slope={from = 1, to = 0, over = 3}"
    done("resume", half, "--set", "folder.weight=2", "--set", slope, "--set", "keep=3")
    changes = read_record(half).changes
    assert [(change.key, change.alters) for change in changes] == [
        ("keep", False), ("plugins.folder.weight", True), ("plugins.folder.slope", True)
    ]  # fmt: skip


def test_moved_data_must_be_the_same_data(half: Path, tmp_path: Path) -> None:
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "new.txt").touch()
    told = refused("resume", half, "--set", f"folder.path={tmp_path / 'other'}")
    assert "the data have changed" in told
    done("resume", half, "--set", f"folder.path={tmp_path / 'same'}")
    assert [change.alters for change in read_record(half).changes] == [False]


# longer


def test_a_run_that_is_done_names_the_way_to_train_it_longer(whole: Path) -> None:
    assert "--iterations N" in refused("resume", whole)
    assert "nothing is left to train" in refused("resume", whole, "--set", "keep=5")


def test_a_longer_run_is_the_run_of_the_longer_recipe(whole: Path, place: Path) -> None:
    told = done("resume", whole, "--iterations", 8).stderr
    assert "schedules are not stretched" in told
    recipe = load_recipe(place / "game.toml", ["iterations=8"])
    with new_run_folder(recipe, whole.parent, "direct"):
        pass
    direct = whole.parent / "again"
    done("run", place / "game.toml", "--set", "iterations=8", "--runs", whole.parent,
         "--name", "again")  # fmt: skip
    for name in ("stats.jsonl", "scores.jsonl", "generator.safetensors", "recipe.toml"):
        assert (whole / name).read_bytes() == (direct / name).read_bytes(), name
    assert begun_by(recipe, whole.parent, "whole")


def test_a_run_that_was_evaluated_at_its_old_end_is_no_run_of_the_longer_recipe(
    place: Path, tmp_path: Path
) -> None:
    file = place / "game.toml"
    done("run", file, "--set", "iterations=3", "--runs", tmp_path, "--name", "odd")
    done("resume", tmp_path / "odd", "--iterations", 4)
    assert [change.alters for change in read_record(tmp_path / "odd").changes] == [True]
    evaluated = [line["iteration"] for line in Log(tmp_path / "odd" / "scores.jsonl")]
    assert evaluated == [2, 3, 4], "what was found at the old end is kept"
    with pytest.raises(RecipeError, match="was changed in the run"):
        begun_by(load_recipe(file), tmp_path, "odd")


def test_a_changed_run_does_not_stand_for_its_recipe(half: Path, place: Path) -> None:
    done("resume", half, "--set", "adam.learning_rate=0.1")
    recipe = load_recipe(place / "game.toml", ["adam.learning_rate=0.1"])
    assert (half / "recipe.toml").read_text() != (place / "half" / "recipe.toml").read_text()
    assert begun_by(recipe, half.parent, None) is None
    with pytest.raises(RecipeError, match="was changed in the run"):
        begun_by(recipe, half.parent, "half")


def test_a_change_begins_earlier_when_its_checkpoint_is_lost(half: Path) -> None:
    done("resume", half, "--iterations", 6, "--max-iterations", 4)
    done("resume", half, "--set", "adam.learning_rate=0.1", "--max-iterations", 5)
    for number in (5, 4):
        checkpoint_file(half / "checkpoints", number).write_bytes(b"")
    done("resume", half) if checkpoint_file(half / "checkpoints", 2).exists() else None
    changes = [c for c in read_record(half).changes if c.key.endswith("learning_rate")]
    assert [change.iteration for change in changes] in ([4], [4, 2])


# crashes


def writes(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """Have the process end before its write of this number, as a power cut does."""
    left = iter(range(allowed))

    def cut(write: Callable[..., None]) -> Callable[..., None]:
        def begun(*arguments: object) -> None:
            if next(left, None) is None:
                raise SystemExit(9)
            write(*arguments)

        return begun

    monkeypatch.setattr(record, "write_text", cut(files.write_text))
    monkeypatch.setattr(record, "write_json", cut(files.write_json))


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_crash_in_a_change_leaves_the_run_before_or_after_it(
    half: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    old = (half / "recipe.toml").read_text()
    new = old.replace("learning_rate = 0.001", "learning_rate = 0.1")
    change = Change(iteration=2, time="", key="plugins.adam.learning_rate", old=0.001, new=0.1,
                    recipe=record.sha256(new))  # fmt: skip
    writes(monkeypatch, allowed)
    with pytest.raises(SystemExit):
        record.carry_out(half, new, [change])
    monkeypatch.undo()
    open_run_folder(half)
    found = read_record(half)
    now = (half / "recipe.toml").read_text()
    assert (now, len(found.changes)) in [(old, 0), (new, 1)]
    record.settle(half)
    settled = read_record(half)
    assert (settled.changes, settled.sha256) == (found.changes, record.sha256(now))
    assert settled.settled


def test_a_journal_of_changes_is_not_rewritten(half: Path) -> None:
    done("resume", half, "--set", "adam.learning_rate=0.1")
    journal = half / "changes.jsonl"
    text = journal.read_text()
    for wrong in ("", text.replace("0.001", "0.002"), text + "x\n", "x\n" + text):
        journal.write_text(wrong)
        assert "changes.jsonl" in refused("report", half)
    journal.unlink()
    assert "changes.jsonl" in refused("report", half)


# the record at the start


def test_the_record_is_there_before_the_data_are_read(place: Path, tmp_path: Path) -> None:
    recipe = load_recipe(place / "game.toml")
    with new_run_folder(recipe, tmp_path, "new") as folder:
        manifest = json.loads(folder.manifest.read_text())
        assert manifest["recipe"] == record.sha256(folder.recipe.read_text())
        assert len(manifest["id"]) == 32
        assert (folder.path / "folder.py").read_text() == COUNTS
        assert not is_complete(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_record_that_cannot_be_written_claims_no_name(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(place / "game.toml")
    monkeypatch.setattr("ganlab.runs.folder.write_json", lambda *a: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError), new_run_folder(recipe, tmp_path, "new"):
        pass
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("text", [None, "", "{", "{}", '{"id": 3}', "[]"])
def test_a_run_that_has_lost_its_manifest_gets_it_again(whole: Path, text: str | None) -> None:
    manifest = whole / "manifest.json"
    before = json.loads(manifest.read_text())
    manifest.unlink() if text is None else manifest.write_text(text)
    assert "ganlab resume" in refused("eval", whole, "--data", ".")
    done("resume", whole)
    now = json.loads(manifest.read_text())
    for key in ("id", "recipe", "recipe_text", "data", "real_shape", "parameters"):
        assert now[key] == before[key], key


# whose checkpoints


@pytest.fixture
def stranger(place: Path, tmp_path: Path) -> Path:
    done("run", place / "game.toml", "--seed", 1, "--runs", tmp_path, "--name", "stranger",
         "--max-iterations", 4)  # fmt: skip
    return tmp_path / "stranger"


def test_checkpoints_of_another_run_are_refused_by_name(half: Path, stranger: Path) -> None:
    shutil.copytree(stranger / "checkpoints", half / "checkpoints", dirs_exist_ok=True)
    told = refused("resume", half)
    assert "0000004.pt: this is a checkpoint of another run" in told


def test_a_flipped_bit_beside_a_checkpoint_is_damage_and_not_another_run(half: Path) -> None:
    done("resume", half, "--max-iterations", 3)
    digest = half / "checkpoints" / "0000003.sha256"
    whole = digest.read_bytes()
    for place in range(0, 8 * len(whole), 37):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        digest.write_bytes(content)
        for told in folder_says(half):
            assert "another run" not in told


def folder_says(run: Path) -> Iterator[str]:
    from ganlab.checkpoint import _check_owner, is_sound

    path = checkpoint_file(run / "checkpoints", 3)
    if is_sound(path):
        try:
            _check_owner(path)
        except GanlabError as error:
            yield str(error)


def test_a_checkpoint_without_a_name_is_taken_with_a_word(half: Path) -> None:
    for file in (half / "checkpoints").glob("*.sha256"):
        file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert "it does not say of which run it is" in done("resume", half).stderr


def test_a_run_without_its_digests_does_not_begin_again(half: Path, whole: Path) -> None:
    for run in (half, whole):
        for file in (run / "checkpoints").glob("*.sha256"):
            file.unlink()
    assert "the digests (.sha256) of 0000002.pt are gone" in refused("resume", half)
    assert "0000002.pt, 0000004.pt are gone" in refused("resume", whole, "--iterations", 6)


def test_a_first_checkpoint_that_was_being_written_is_passed_over(half: Path) -> None:
    (half / "checkpoints" / "0000002.sha256").unlink()
    RunFolder(half).write_status("running", iteration=0)
    assert "it has no digest (.sha256), so it is not used" in done("resume", half).stderr
    assert figures(half)[-1]["iteration"] == 4


# packed


def test_a_pack_tells_the_changes_and_names_no_folder(half: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    done("resume", half, "--set", f"folder.path={tmp_path / 'moved'}",
         "--set", "adam.learning_rate=0.1")  # fmt: skip
    result = done("pack", half, "-o", tmp_path / "half.zip", "--weights")
    assert "cannot make it again" in result.stderr
    with zipfile.ZipFile(tmp_path / "half.zip") as archive:
        for name in archive.namelist():
            assert str(tmp_path).encode() not in archive.read(name), name
        archive.extractall(tmp_path / "unpacked")
    open_run_folder(tmp_path / "unpacked")
    assert len(read_record(tmp_path / "unpacked").changes) == 2
    told = refused("verify", tmp_path / "half.zip", "--trust-code")
    assert "changed in the run (at iteration 2: adam.learning_rate 0.001 -> 0.1)" in told


# weights


@pytest.mark.parametrize("share", range(0, 100, 7))
def test_a_flipped_bit_in_weights_is_noticed(half: Path, share: int) -> None:
    file = half / "generator.safetensors"
    content = bytearray(file.read_bytes())
    at = 8 + share * (len(content) - 8) // 100  # of the names and numbers
    content[at] ^= 1 << share % 8
    file.write_bytes(content)
    with pytest.raises(GanlabError, match=r"generator\.safetensors"):
        load_for_use(half, "last", "cpu")
    with pytest.raises(GanlabError, match=r"generator\.safetensors"):
        weights_record(file)


def test_weights_without_a_digest_are_of_elsewhere(half: Path) -> None:
    file = half / "generator.safetensors"
    tensors, _ = read_safetensors(file)
    save_file(tensors, file)
    assert read_safetensors(file)[0].keys() == tensors.keys()
    with pytest.raises(GanlabError, match="its digest is missing"):
        load_for_use(half, "last", "cpu")
