"""Code in a run folder runs only with consent, and commands that need no code load none."""

import json
import os
import py_compile
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import TINY

from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.images.files import write_png
from ganlab.recipe import trust
from ganlab.recipe.model import load_recipe
from ganlab.runs.record import carry_out

LOSS = '''\
{first}
from ganlab import Plugin, hookimpl


class Idea(Plugin):
    """A loss of the user's own."""

    @hookimpl
    def generator_loss(self, fake, real):
        return {{"G/idea": 0.1 * (fake - real).abs().mean()}}
'''
IDEA = 'idea = { use = "./idea.py" }\n'


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def loss(first: str = "") -> str:
    """A plugin file that nobody has run before."""
    return LOSS.format(first=f"{first}\nMARK = '{uuid.uuid4()}'")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `plain`, and the run `own`, which has a plugin file."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "idea.py").write_text(loss())
    (folder / "plain.toml").write_text(TINY)
    (folder / "own.toml").write_text(TINY + IDEA)
    for name in ("plain", "own"):
        result = invoke("run", folder / f"{name}.toml", "--runs", folder, "--name", name)
        assert result.exit_code == 0, result.output
    return folder


class Received:
    """A copy of a run, with code that leaves a trace when it runs."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run = shutil.copytree(run, folder / "received")
        self.trace = folder / "RAN"
        self.code = self.run / "idea.py"
        self.code.write_text(loss(f"open({str(self.trace)!r}, 'w').close()"))

    @property
    def ran(self) -> bool:
        return self.trace.exists()


@pytest.fixture
def received(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Received:
    monkeypatch.chdir(tmp_path)
    return Received(home / "own", tmp_path)


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process has run; what is in the user's file stays."""

    def forget() -> None:
        monkeypatch.setattr(trust, "_consented", set())

    return forget


# --- consent -------------------------------------------------------------------------------------

LOADING = [
    ["resume", "RUN"],
    ["run", "RUN/recipe.toml", "--dry-run"],
    ["check", "RUN/recipe.toml"],
    ["explain", "RUN/recipe.toml"],
    ["trace", "RUN/recipe.toml"],
    ["bench", "RUN/recipe.toml"],
    ["bench", "RUN/recipe.toml", "--fit"],
    ["bench", "RUN/recipe.toml", "--cards"],
    ["bisect", "PLAIN", "RUN", "--plan"],
    ["ablate", "RUN/recipe.toml", "--plan"],
    ["compare", "PLAIN", "RUN/recipe.toml", "--plan"],
    ["diff", "PLAIN", "RUN/recipe.toml"],
]  # fmt: skip


@pytest.mark.parametrize("command", LOADING, ids=lambda words: "-".join(words[:1]))
def test_a_command_that_needs_strange_code_names_it_and_runs_nothing(
    received: Received, home: Path, command: list[str]
) -> None:
    places = {"RUN": str(received.run), "PLAIN": str(home / "plain")}
    words = [
        word.replace("RUN/", f"{received.run}/") if "/" in word else places.get(word, word)
        for word in command
    ]
    status = received.run / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "stopped"}))
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    count = len(received.code.read_text().splitlines())
    assert f"{received.code} ({count} lines)" in result.stderr
    assert "--trust-code" in result.stderr
    assert not received.ran


def test_consent_is_given_on_the_command_line_and_remembered(
    received: Received, another_process: Callable[[], None]
) -> None:
    file = received.run / "recipe.toml"
    assert invoke("explain", file, "--no-cost", "--trust-code").exit_code == 0
    assert received.ran
    another_process()
    assert invoke("explain", file, "--no-cost").exit_code == 0
    received.code.write_text(received.code.read_text() + "\n# another line\n")
    assert invoke("explain", file, "--no-cost").exit_code == 2


def test_a_run_of_ones_own_recipe_needs_no_further_consent(
    home: Path, another_process: Callable[[], None]
) -> None:
    another_process()
    assert invoke("explain", home / "own" / "recipe.toml", "--no-cost").exit_code == 0


def test_all_files_are_named_at_once_before_any_runs(received: Received) -> None:
    second = received.run / "second.py"
    second.write_text(loss(f"open({str(received.trace)!r}, 'w').close()"))
    with (received.run / "recipe.toml").open("a") as file:
        file.write('[plugins.second]\nuse = "./second.py"\n')
    result = invoke("explain", received.run / "recipe.toml")
    assert result.exit_code == 2
    assert str(received.code) in result.stderr
    assert str(second) in result.stderr
    assert not received.ran


@pytest.mark.parametrize("removed", [["manifest.json", "status.json", "stats.jsonl", "timing.jsonl",
                                      "data.json", "checkpoints"], ["recipe.toml"]])  # fmt: skip
def test_a_run_folder_is_known_though_a_part_of_it_is_missing(
    received: Received, removed: list[str]
) -> None:
    (received.run / "game.toml").write_text((received.run / "recipe.toml").read_text())
    for name in removed:
        path = received.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    named = received.run / ("recipe.toml" if "recipe.toml" not in removed else "game.toml")
    result = invoke("explain", named)
    assert result.exit_code == 2
    assert not received.ran
    # without records it may be somebody's own recipe, who needs to know why code is not run
    assert ("counts as a run folder" in result.stderr) == ("recipe.toml" not in removed)


def test_code_is_not_laundered_by_a_recipe_that_names_it_from_outside(received: Received) -> None:
    around = received.run.parent
    (around / "a.toml").write_text(f'{TINY}idea = {{ use = "./received/idea.py" }}\n')
    assert invoke("explain", around / "a.toml").exit_code == 2
    (received.run / "manifest.json").unlink()
    (around / "b.toml").write_text('extends = "received/recipe.toml"\n')
    assert invoke("explain", around / "b.toml").exit_code == 2
    assert not received.ran


@pytest.mark.parametrize("damage", ["folder", "bytes", "unwritable"])
def test_a_damaged_memory_is_no_obstacle_and_no_consent(
    received: Received, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("GANLAB_STATE", str(state))
    file = state / "code-run-before.txt"
    if damage == "unwritable":
        state.write_text("no folder")
    else:
        state.mkdir()
        file.mkdir() if damage == "folder" else file.write_bytes(b"\xff\x00" * 5000)
    recipe = received.run / "recipe.toml"
    assert invoke("explain", recipe, "--no-cost").exit_code == 2
    assert invoke("explain", recipe, "--no-cost", "--trust-code").exit_code == 0
    if damage == "bytes":
        assert len(file.read_text().split()) == 1  # nothing but the digest is left


def test_the_memory_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_STATE", str(tmp_path))
    monkeypatch.setattr(trust, "_MOST", 3)
    for number in range(5):
        trust.require_consent([trust.Code(Path("x.py"), b"%d" % number, False)])
    assert len((tmp_path / "code-run-before.txt").read_text().split()) == 3


# --- which bytes run -----------------------------------------------------------------------------


def test_cached_bytecode_does_not_run_in_the_place_of_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(TINY + IDEA)
    file = tmp_path / "idea.py"
    file.write_text(loss("raise SystemExit('the bytecode ran')"))
    compiled = py_compile.compile(str(file))
    assert compiled
    before = file.stat()
    text = file.read_text().replace("raise SystemExit('the bytecode ran')", "pass" + " " * 32)
    file.write_text(text)
    assert file.stat().st_size == before.st_size
    os.utime(file, (before.st_atime, before.st_mtime))
    assert "idea" in load_recipe(tmp_path / "r.toml").plugins


def test_the_code_that_runs_is_the_code_that_was_hashed(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is changed after the consent, and before it runs."""
    asked = trust.require_consent

    def changes(codes: list[trust.Code]) -> None:
        asked(codes)
        received.code.write_text(f"{received.code.read_text()}\nopen('CHANGED', 'w').close()")

    monkeypatch.setattr("ganlab.recipe.model.require_consent", changes)
    with trust.trusting_code():
        load_recipe(received.run / "recipe.toml")
    assert received.ran
    assert not Path("CHANGED").exists()


# --- where code may come from --------------------------------------------------------------------


@pytest.mark.parametrize("way", ["..", "absolute", "link to the base", "link to the folder",
                                 "link to the code", "two steps"])  # fmt: skip
def test_extends_brings_no_code_from_elsewhere(tmp_path: Path, way: str) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    trace = tmp_path / "RAN"
    (other / "idea.py").write_text(loss(f"open({str(trace)!r}, 'w').close()"))
    (other / "base.toml").write_text(TINY + IDEA)
    base = "../other/base.toml"
    if way == "absolute":
        base = str(other / "base.toml")
    elif way == "link to the base":
        base = "base.toml"
        (mine / base).symlink_to(other / "base.toml")
        (mine / "idea.py").symlink_to(other / "idea.py")
    elif way == "link to the folder":
        base = "inner/base.toml"
        (mine / "inner").symlink_to(other)
    elif way == "link to the code":
        base = "base.toml"
        (mine / base).write_text(TINY + IDEA)
        (mine / "idea.py").symlink_to(other / "idea.py")
    elif way == "two steps":
        base = "middle.toml"
        (mine / base).write_text('extends = "../other/base.toml"\n')
    (mine / "r.toml").write_text(f"extends = {json.dumps(base)}\n")
    with pytest.raises(RecipeError, match=r"outside the folder of r\.toml; .*Copy the file there"):
        load_recipe(mine / "r.toml")
    assert not trace.exists()


def test_extends_may_name_a_recipe_with_code_below_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "idea.py").write_text(loss())
    (tmp_path / "parts" / "base.toml").write_text(TINY + IDEA)
    (tmp_path / "r.toml").write_text('extends = "parts/base.toml"\n')
    assert "idea" in load_recipe(tmp_path / "r.toml").plugins


@pytest.mark.parametrize("use", ["./x.py", "../idea.py", "./a\\u0000.py", "./folder.py",
                                 "./pipe.py", "./circle.py", "./large.py"])  # fmt: skip
def test_a_plugin_file_that_is_none_is_one_line(tmp_path: Path, use: str) -> None:
    inner = tmp_path / "inner"
    (inner / "folder.py").mkdir(parents=True)
    (tmp_path / "idea.py").write_text(loss())
    (inner / "circle.py").symlink_to(inner / "circle.py")
    (inner / "large.py").write_text("#" * 2**21)
    if hasattr(os, "mkfifo"):
        os.mkfifo(inner / "pipe.py")
    (inner / "r.toml").write_text(f'{TINY}idea = {{ use = "{use}" }}\n')
    with pytest.raises(RecipeError) as raised:
        load_recipe(inner / "r.toml")
    assert "\n" not in str(raised.value)
    assert "r.toml:" in str(raised.value)


@pytest.mark.parametrize("base", ["/etc/passwd", "secret.txt", "pipe.toml", "folder.toml"])
def test_extends_reads_recipes_only(tmp_path: Path, base: str) -> None:
    (tmp_path / "secret.txt").write_text("HUSH")
    (tmp_path / "folder.toml").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "r.toml").write_text(f'extends = "{base}"\n')
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "r.toml")
    assert "HUSH" not in str(raised.value)
    assert "root:" not in str(raised.value)


def test_a_run_extends_no_recipe(received: Received) -> None:
    (received.run.parent / "base.toml").write_text(TINY)
    carry_out(received.run, 'extends = "../base.toml"\n', [])
    for command in ("resume", "explain"):
        named = received.run if command == "resume" else received.run / "recipe.toml"
        result = invoke(command, named)
        assert result.exit_code == 2
        assert "extends is not allowed in a run folder" in result.stderr


# --- commands that need no code ------------------------------------------------------------------


def test_what_looks_at_finished_runs_loads_no_code(received: Received, home: Path) -> None:
    received.code.write_text(received.code.read_text() + "import no_such_module\n")
    for words in (
        ["diff", home / "plain", received.run],
        ["compare", home / "plain", received.run, "-o", "page.html"],
        ["report", received.run],
        ["runs", "--runs", "."],
        ["pack", received.run],
        ["checkpoints", received.run, "--prune"],
        ["checkpoints", received.run, 4],
    ):
        result = invoke(*words)
        assert result.exit_code in (0, 2), result.output  # 2: no figure to compare
        assert "idea.py" not in result.stderr, result.stderr
        assert not received.ran, words


def test_a_difference_of_runs_is_that_of_their_recipes(home: Path) -> None:
    runs, recipes = (
        json.loads(invoke("diff", home / f"plain{end}", home / f"own{end}", "--json").stdout)
        for end in ("", ".toml")
    )
    assert [c for c in runs if c["group"] != "environment"] == recipes
    assert [change["key"] for change in recipes] == ["plugins.idea"]


def test_a_pack_names_no_folder_of_this_machine_though_an_old_run_records_no_paths(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(home / "plain", tmp_path / "old")
    manifest = json.loads((run / "manifest.json").read_text())
    for record in manifest["plugins"].values():
        del record["paths"], record["hooks"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    recipe = run / "recipe.toml"
    place = f"[plugins.image_folder]\npath = {json.dumps(str(tmp_path / 'photos'))}\n"
    carry_out(run, recipe.read_text() + place, [])
    assert invoke("pack", run).exit_code == 0
    with zipfile.ZipFile("old.zip") as archive:
        packed = archive.read("recipe.toml").decode()
    assert 'path = "photos"' in packed
    assert str(tmp_path) not in packed


# --- the generator needs no other plugin ---------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    write_png(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), tmp_path / "photos" / "a.png")
    return tmp_path / "photos" / "a.png"


FAULTS = {
    "its module is missing": ("import no_such_module\n", ""),
    "its code is wrong": ("def x(:\n", ""),
    "it refuses its options now": ("", 'strength = 3'),
    "its file is gone": (None, ""),
    "it is not installed": ("", 'use = "no_such_plugin"'),
    "a table of an older version": ("", "use = 7"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_enlarges_and_is_judged_without_its_loss(
    received: Received, photo: Path, fault: str
) -> None:
    code, options = FAULTS[fault]
    received.code.unlink() if code is None else received.code.write_text(code + loss())
    recipe = received.run / "recipe.toml"
    use = "" if options.startswith("use") else 'use = "./idea.py"'
    text = recipe.read_text().replace('idea = {use = "./idea.py"}', "")
    carry_out(received.run, f"{text}\n[plugins.idea]\n{use}\n{options}\n", [])
    result = invoke("upscale", received.run, photo, "-o", "out")
    assert result.exit_code == 0, result.output
    assert Path("out/a.png").is_file()
    result = invoke("eval", received.run, "--data", photo.parent)
    assert result.exit_code == 0, result.output
    if fault != "a table of an older version":
        assert "left out: idea (" in result.stderr
    assert not received.ran


def test_a_missing_generator_or_degradation_is_refused(received: Received, photo: Path) -> None:
    recipe = received.run / "recipe.toml"
    whole = recipe.read_text()
    carry_out(received.run, whole.replace("encoder_decoder =", "gone ="), [])
    result = invoke("upscale", received.run, photo)
    assert result.exit_code == 2
    assert "one plugin must make the generator; here none" in result.stderr
    carry_out(received.run, whole.replace("bicubic = {", 'bicubic = { use = "gone", '), [])
    result = invoke("eval", received.run, "--data", photo.parent)
    assert result.exit_code == 2
    assert "no plugin named 'gone'" in result.stderr


GENERATOR = '''
from torch import nn
from ganlab import Plugin, hookimpl


class Maker(Plugin):
    """Enlarges by pixel shuffle."""

    @hookimpl
    def make_generator(self):
        return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
'''


def test_a_generator_in_a_plugin_file_runs_with_consent_only(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("maker.py").write_text(GENERATOR)
    text = TINY.replace("encoder_decoder = { width = 4 }", 'maker = { use = "./maker.py" }')
    Path("own.toml").write_text(text)
    assert invoke("run", "own.toml", "--name", "r").exit_code == 0
    assert invoke("upscale", "r", photo, "-o", "one").exit_code == 0
    code = Path("runs/r/maker.py")
    code.write_text(f"open('RAN', 'w').close()\n# {uuid.uuid4()}\n{code.read_text()}")
    refused = invoke("upscale", "r", photo, "-o", "two")
    assert refused.exit_code == 2
    assert "maker.py" in refused.stderr
    assert not Path("RAN").exists()
    assert invoke("upscale", "r", photo, "-o", "two", "--trust-code").exit_code == 0
    assert Path("one/a.png").read_bytes() == Path("two/a.png").read_bytes()


def test_a_score_that_cannot_be_had_is_left_out_by_name(
    received: Received, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((received.run / "manifest.json").read_text())
    manifest["plugins"]["gone"] = {"hooks": ["score_images"], "sha256": ""}
    (received.run / "manifest.json").write_text(json.dumps(manifest))
    text = (received.run / "recipe.toml").read_text()
    carry_out(received.run, f"{text}[plugins.gone]\n", [])
    result = invoke("eval", received.run, "--data", photo.parent)
    assert result.exit_code == 0
    assert "gone (" in result.stderr
    assert "no plugin named 'gone'" in result.stderr


def test_the_current_folder_is_no_place_of_modules(tmp_path: Path) -> None:
    from children import fresh

    (tmp_path / "click.py").write_text("open('RAN', 'w').close()")
    assert fresh("--version", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "RAN").exists()
