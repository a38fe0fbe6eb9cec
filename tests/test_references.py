"""How a user names a run: by path, name, the beginning of a name, or @last."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.runs.reference import find_run, names_recipe
from ganlab.session import resume


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder runs/ with four runs, the last begun first by name; the current folder holds it."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["wgan_gp-10", "wgan_gp-1", "r3gan-1", "alpha-1"]):
        made("runs", name, age)
    return Path("runs")


def made(parent: str, name: str, age: int) -> None:
    folder = Path(parent, name)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("iterations = 1\n[plugins]\n")
    os.utime(folder / "recipe.toml", (age, age))


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("runs/wgan_gp-1", "wgan_gp-1"),
        ("runs/wgan_gp-1/", "wgan_gp-1"),
        ("wgan_gp-1", "wgan_gp-1"),  # although it is the beginning of another name too
        ("r", "r3gan-1"),
        ("runs/r3", "r3gan-1"),
        ("wgan_gp-10", "wgan_gp-10"),
        ("@last", "alpha-1"),
        ("runs/@last", "alpha-1"),
    ],
)
def test_a_reference_finds_its_run(runs: Path, reference: str, found: str) -> None:
    assert find_run(reference) == runs / found


def test_the_last_run_is_the_one_that_the_list_of_runs_ends_with(runs: Path) -> None:
    listed = invoke("runs").stdout.split()
    names = [word for word in listed if word.startswith("runs")]
    assert [Path(name) for name in names][-1] == find_run("@last")


def test_what_was_not_written_out_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_run("runs/r3gan-1")
    find_run("r3gan-1")
    assert capsys.readouterr().err == ""
    find_run("@last")
    find_run("r3")
    assert capsys.readouterr().err.splitlines() == [
        f"@last is {runs / 'alpha-1'}",
        f"r3 is {runs / 'r3gan-1'}",
    ]


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("wgan", "2 runs in runs have names that begin so: wgan_gp-10, wgan_gp-1; give more"),
        ("wgan_pg-1", "not a run folder, and no run in runs .* did you mean 'wgan_gp-1'"),
        ("zebra", "`ganlab runs` lists them"),
        ("runs", "runs: not a run folder"),  # it is there, so it is not the beginning of a name
        ("", "not a run folder"),
        ("elsewhere/@last", "there is no run in elsewhere yet; .* write FOLDER/@last"),
        ("no\0name", "not a run folder"),
        ("x" * 5000, "not a run folder"),
        ("r\x1b[31m", r"r\\x1b\[31m: not a run"),
    ],
)
def test_a_reference_to_no_run_or_several_is_refused(
    runs: Path, reference: str, complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        find_run(reference)


def test_a_reference_may_name_another_folder_of_runs(runs: Path) -> None:
    made("other", "late-3", 7)
    assert find_run("other/@last") == find_run("other/l") == Path("other", "late-3")
    assert find_run("@last", Path("other")) == Path("other", "late-3")
    with pytest.raises(RecipeError, match="no run in runs"):
        find_run("late-3")


def test_a_path_in_the_program_is_never_taken_for_the_beginning_of_a_name(runs: Path) -> None:
    with pytest.raises(RecipeError, match="not a run folder"):
        find_run(runs / "r3gan")


def test_a_run_that_is_being_made_is_not_the_last_one(runs: Path) -> None:
    made("runs", ".ganlab-0123-new.tmp", 9)
    assert find_run("@last") == runs / "alpha-1"


def test_a_file_that_ends_in_toml_is_a_recipe_and_a_run_of_that_name_is_a_run(runs: Path) -> None:
    made("runs", "odd.toml", 1)
    assert names_recipe("runs/alpha.toml")
    assert not names_recipe("runs/odd.toml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real run in runs/."""
    from tiny import TINY

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY)
    arguments = ["run", str(folder / "tiny.toml"), "--runs", str(folder / "runs")]
    assert invoke(*arguments).exit_code == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["report", "@last"],
        ["checkpoints", "ti"],
        ["pack", "tiny", "-o", "packed.zip"],
        ["diff", "@last", "tiny.toml"],
        ["compare", "@last", "tiny.toml", "--plan", "--effect", "0.1"],
        ["bisect", "tiny-1", "@last"],
        ["eval", "@last", "--data", "nowhere"],
        ["upscale", "@last", "nowhere.png"],
        ["resume", "tiny"],
        ["run", "tiny.toml", "--resume", "@last"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_takes_a_run_takes_a_reference(
    trained: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    result = invoke(*command)
    assert "not a run folder" not in result.stderr
    short = next(word for word in command if word in ("@last", "ti", "tiny"))
    assert result.stderr.count(f"{short} is {Path('runs', 'tiny-1')}\n") == 1


def test_a_text_is_a_reference_for_a_program_too(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(RecipeError, match="tiny-1: this run is done"):
        resume("@last", "cpu", limits=None)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)
