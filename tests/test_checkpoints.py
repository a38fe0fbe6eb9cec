"""Which checkpoints a run keeps, and `ganlab checkpoints`."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import TINY
from training import build, train

from ganlab.checkpoint import (
    Keep,
    checkpoint_file,
    checkpoints_of,
    load_checkpoint,
    read_checkpoint,
    roll_back,
    write_checkpoint,
)
from ganlab.cli import main
from ganlab.commands.generator import load_for_use
from ganlab.errors import GanlabError
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.runs.folder import RunFolder
from ganlab.runs.record import carry_out
from ganlab.session import start
from ganlab.state import state_of


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def trained(folder: Path, *changes: str) -> Path:
    """The folder of a run of 8 iterations with a checkpoint at each."""
    (folder / "tiny.toml").write_text(TINY)
    settings = ["iterations=8", "checkpoint_every=1", "ema={ decay = 0.9 }", *changes]
    made, code = start(load_recipe(folder / "tiny.toml", settings), "cpu", Limits(), folder)
    assert code == 0
    return made.path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), "keep=6", "keep_every=2")


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """A run with checkpoints 2 to 8, which keeps 6 and the even ones."""
    return shutil.copytree(template, tmp_path / "run")


def kept(run: Path) -> list[int]:
    numbers = checkpoints_of(run / "checkpoints")
    files = sorted((run / "checkpoints").iterdir())
    assert [f.stem for f in files if f.suffix == ".pt"] == [f"{n:07d}" for n in numbers]
    assert len(files) == 2 * len(numbers)
    return numbers


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (Keep(2), [10, 20, 30]),
        (Keep(9), []),
        (Keep(2, every=20), [10, 30]),
        (Keep(1, every=50), [10, 20, 30, 40]),
    ],
)
def test_the_newest_and_the_multiples_are_kept(keep: Keep, gone: list[int]) -> None:
    assert keep.superfluous([10, 20, 30, 40, 50]) == gone


def test_a_run_keeps_two_by_default_and_more_when_asked(run: Path, tmp_path: Path) -> None:
    assert kept(trained(tmp_path)) == [7, 8]
    assert kept(run) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("keep=1", "keep = 1 is not allowed; it must be at least 2."),
        ("keep_every=3", "keep_every = 3 is not allowed; it must be a multiple of "
         "checkpoint_every, which is 2."),
    ],
)  # fmt: skip
def test_a_wrong_number_to_keep_is_refused_with_its_bound(
    tiny: Path, change: str, message: str
) -> None:
    result = ganlab("check", tiny, "--set", change)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_list_tells_sound_from_damaged(run: Path) -> None:
    damaged = checkpoint_file(run / "checkpoints", 6)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    checkpoint_file(run / "checkpoints", 7).unlink()
    found = json.loads(ganlab("checkpoints", run, "--json").stdout)["checkpoints"]
    assert [(one["iteration"], one["sound"]) for one in found[3:]] == [
        (5, True), (6, False), (7, False), (8, True),
    ]  # fmt: skip
    assert found[3]["bytes"] == checkpoint_file(run / "checkpoints", 5).stat().st_size
    lines = ganlab("checkpoints", run).stdout.splitlines()
    assert [line.split()[-1] for line in lines[4:]] == ["sound", "damaged", "damaged", "sound"]


def test_pruning_counts_sound_ones_and_deletes_damaged_ones(run: Path) -> None:
    checkpoint_file(run / "checkpoints", 8).write_bytes(b"damaged")
    result = ganlab("checkpoints", run, "--prune", "--keep", 2)
    assert result.exit_code == 0, result.output
    assert kept(run) == [2, 4, 6, 7]
    assert result.stdout.count("deleted ") == 3
    assert ganlab("checkpoints", run, "--prune", "--keep", 1, "--keep-every", 0).exit_code == 0
    assert kept(run) == [7]


def test_pruning_without_a_number_keeps_what_the_recipe_keeps(run: Path) -> None:
    recipe = (run / "recipe.toml").read_text()
    recipe = recipe.replace("keep = 6", "keep = 3").replace("keep_every = 2", "keep_every = 4")
    carry_out(run, recipe, [])
    assert ganlab("checkpoints", run, "--prune").exit_code == 0
    assert kept(run) == [4, 6, 7, 8]


def test_pruning_deletes_nothing_when_all_are_damaged_or_the_run_is_in_use(run: Path) -> None:
    with RunFolder(run).lock():
        result = ganlab("checkpoints", run, "--prune", "--keep", 2)
    assert (result.exit_code, "in use" in result.stderr) == (1, True)
    for number in kept(run):
        checkpoint_file(run / "checkpoints", number).write_bytes(b"damaged")
    result = ganlab("checkpoints", run, "--prune")
    assert (result.exit_code, "nothing is deleted" in result.stderr) == (1, True)
    assert len(kept(run)) == 7


def test_a_checkpoint_shows_what_it_holds(run: Path) -> None:
    found = json.loads(ganlab("checkpoints", run, 8, "--json").stdout)
    _, generator, _ = load_for_use(run, "last", "cpu")
    shapes = {name: list(value.shape) for name, value in generator.state_dict().items()}
    assert {n: leaf["shape"] for n, leaf in found["networks"]["G"].items()} == shapes
    assert found["progress"]["iteration"] == 8
    assert found["optimizers"].keys() == {"G_optimizer", "D_optimizer"}
    numbers = sum(p.numel() for p in generator.parameters())
    assert found["optimizers"]["G_optimizer"]["state"]["exp_avg"] == numbers
    assert found["plugins"].keys() == {"ema"}
    text = ganlab("checkpoints", run, 8).stdout
    assert "plugin ema:" in text
    assert f"exp_avg: {numbers:,} numbers" in text


def test_a_file_with_code_in_it_is_read_without_running_it(run: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (tmp_path / "ran").touch, ()

    path = checkpoint_file(run / "checkpoints", 8)
    torch.save({"iteration": 8, "networks": {}, "plugins": {"x": Code()}}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
    result = ganlab("checkpoints", run, 8)
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["9"], "no checkpoint of iteration 9; it has 2, 3, 4, 5, 6, 7, 8"),
        (["--keep", "1"], "without --prune"),
        (["8", "--prune"], "leave out the iteration"),
    ],
)
def test_a_slip_gets_one_message(run: Path, arguments: list[str], message: str) -> None:
    result = ganlab("checkpoints", run, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_rollback_passes_over_a_damaged_checkpoint_and_deletes_later_ones(run: Path) -> None:
    from ganlab.assembly import assemble

    folder = run / "checkpoints"
    checkpoint_file(folder, 6).write_bytes(b"damaged")
    restored = assemble(load_recipe(run / "recipe.toml"), torch.device("cpu"))
    assert roll_back(restored, folder, since=7) == 5
    assert kept(run) == [2, 3, 4, 5]


def test_a_rollback_to_a_checkpoint_of_another_form_deletes_nothing(run: Path) -> None:
    folder = run / "checkpoints"
    state = read_checkpoint(checkpoint_file(folder, 5))
    write_checkpoint(state | {"plugins": {}}, folder, Keep(newest=9))
    restored = build(run / "recipe.toml", [])
    with pytest.raises(GanlabError, match="it holds the plugins"):
        roll_back(restored, folder, since=6)
    assert kept(run) == [2, 3, 4, 5, 6, 7, 8]


def test_without_a_checkpoint_a_rollback_says_so_and_the_run_ends(tiny: Path) -> None:
    (tiny.parent / "ill.py").write_text(
        "from ganlab import Plugin, Verdict, hookimpl\n\n\n"
        "class Ill(Plugin):\n    @hookimpl\n    def verdicts(self, history):\n"
        '        return [Verdict("ill", 1, "it is ill")]\n'
    )
    tiny.write_text(tiny.read_text() + 'ill = { use = "./ill.py" }\n')
    changes = ("evaluate_every=1", "checkpoint_every=3", 'on_verdict="roll back"')
    options = [word for change in changes for word in ("--set", change)]
    result = ganlab("run", tiny, "--runs", tiny.parent / "runs", *options)
    assert result.exit_code == 4, result.output
    assert "there is no checkpoint yet to roll back to" in result.stderr
    assert "rolled back to" not in result.stderr


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("first", [True, False], ids=["channels last first", "contiguous first"])
def test_a_checkpoint_of_another_memory_layout_gives_the_same_next_step(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, first: bool, kind: str
) -> None:
    momentum = ", momentum = 0.9" if kind == "SGD" else ""
    optimizer = f'torch_optimizer={{ kind = "{kind}", options = {{ lr = 1e-3{momentum} }} }}'
    settings = [optimizer, "ema={ decay = 0.5 }", "watch_every=0"]
    monkeypatch.setattr("ganlab.assembly.wants_channels_last", lambda *_: first)
    before = build(tiny, settings)
    train(before, 3)
    write_checkpoint(state_of(before), tiny.parent)
    monkeypatch.setattr("ganlab.assembly.wants_channels_last", lambda *_: not first)
    after = []
    for fused in (True, False):
        run = build(tiny, settings)
        load_checkpoint(run, tiny.parent)
        for each in run.optimizers.values():
            assert all(group["fused"] for group in each.param_groups)
            each.param_groups[0]["fused"] = fused
        train(run, 4)
        average = run.recipe.plugins["ema"].average
        after.append([t for m in (run.G, run.D, average) for t in m.parameters()])
    strides = [[t.stride() for t in run.G.parameters()] for run in (before, run)]
    assert strides[0] != strides[1]
    for quick, plain in zip(*after, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("device", "told"), [("cuda", 1), ("cpu", 0)])
def test_a_resume_on_another_kind_of_device_is_told_in_one_line(
    tiny: Path, capsys: pytest.CaptureFixture[str], device: str, told: int
) -> None:
    run = build(tiny, [])
    state = state_of(run)
    assert state["device"] == "cpu"
    write_checkpoint(state | {"device": device}, tiny.parent)
    load_checkpoint(run, tiny.parent)
    line = "checkpoint made on cuda, now on cpu: the run goes on, but other devices round"
    assert capsys.readouterr().err.count(line) == told


def test_torch_computes_no_check_sum_beside_the_digest(tmp_path: Path) -> None:
    path = write_checkpoint({"iteration": 3, "numbers": torch.arange(100.0)}, tmp_path)
    with zipfile.ZipFile(path) as archive:
        (numbers,) = (one for one in archive.infolist() if one.filename.endswith("data/0"))
    assert numbers.CRC == 0, "it takes half of the time to write"
    assert torch.serialization.get_crc32_options(), "others go on with theirs"
    assert read_checkpoint(path)["numbers"].sum() == 4950
