"""`ganlab run --continue`: the same command starts a run, continues it, and is done."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.runs.folder import RunFolder

HALF = """\
from ganlab import Plugin, hookimpl


class Half(Plugin):
    @hookimpl
    def generator_loss(self, fake):
        return {"G/half": 0.5 * fake.square().mean()}
"""


@pytest.fixture
def recipe(tiny: Path) -> Path:
    (tiny.parent / "half.py").write_text(HALF)
    tiny.write_text(tiny.read_text() + 'half = { use = "./half.py" }\n')
    return tiny


def run(recipe: Path, *arguments: object) -> Result:
    command = ["run", recipe, "--runs", recipe.parent / "runs", *arguments]
    return CliRunner().invoke(main, [str(a) for a in command])


def folders(recipe: Path) -> list[str]:
    return sorted(path.name for path in (recipe.parent / "runs").iterdir())


@pytest.mark.parametrize("name", [(), ("--name", "mine")])
def test_the_same_command_starts_continues_and_then_does_nothing(
    recipe: Path, name: tuple[str, ...]
) -> None:
    first = run(recipe, "--continue", *name, "--max-iterations", 2)
    assert first.stdout.startswith("stopped at iteration 2 of 4"), first.output
    again = run(recipe, "--continue", *name, "--max-iterations", 2)
    assert (again.exit_code, "at iteration 2; nothing to do" in again.stderr) == (0, True)
    second = run(recipe, "--continue", *name)
    assert second.stdout.startswith("done at iteration 4 of 4")
    assert "resuming at iteration 2" in second.stderr
    (folder,) = (recipe.parent / "runs").iterdir()
    assert folder.name == ("mine" if name else "tiny-1")
    third = run(recipe, "--continue", *name)
    assert third.exit_code == 0
    assert "this run is done; there is nothing to continue" in third.stderr
    assert third.stdout == second.stdout
    whole = run(recipe, "--name", "whole")
    assert whole.exit_code == 0
    for file in ("stats.jsonl", "generator.safetensors"):
        other = recipe.parent / "runs" / "whole" / file
        assert (folder / file).read_bytes() == other.read_bytes()


def test_another_recipe_is_refused_with_the_difference(recipe: Path) -> None:
    run(recipe, "--name", "mine", "--max-iterations", 2)
    other = run(recipe, "--name", "mine", "--continue", "--set", "pixel_loss.weight=2", "--seed", 7)
    assert other.exit_code == 2
    assert "seed: 0 -> 7; plugins.pixel_loss.weight: 1.0 -> 2.0. " in other.stderr
    (recipe.parent / "half.py").write_text(HALF.replace("0.5", "0.25"))
    for option in (("--continue", "--name", "mine"), ("--resume", recipe.parent / "runs/mine")):
        changed = run(recipe, *option)
        assert changed.exit_code == 2
        assert "plugins.half: code " in changed.stderr
    assert RunFolder(recipe.parent / "runs" / "mine").read_status()["iteration"] == 2


def test_without_a_name_the_newest_run_of_this_very_recipe_continues(recipe: Path) -> None:
    for seed in (0, 1, 0, 1):
        run(recipe, "--seed", seed, "--max-iterations", 2)
    assert "writing to" in (found := run(recipe, "--seed", 0, "--continue")).stderr
    assert found.stdout.rstrip().endswith("tiny-3")
    assert run(recipe, "--seed", 2, "--continue").stdout.rstrip().endswith("tiny-5")
    assert folders(recipe) == ["tiny-1", "tiny-2", "tiny-3", "tiny-4", "tiny-5"]


def test_a_run_that_was_killed_before_it_began_continues_and_gets_its_manifest(
    recipe: Path,
) -> None:
    run(recipe, "--max-time", "0.000001s")
    folder = RunFolder(recipe.parent / "runs" / "tiny-1")
    before = json.loads(folder.manifest.read_text())
    for file in (folder.manifest, folder.status, *folder.checkpoints.iterdir()):
        file.unlink()
    assert run(recipe, "--continue").exit_code == 0
    assert folders(recipe) == ["tiny-1"]
    assert json.loads(folder.manifest.read_text())["plugins"] == before["plugins"]


def test_a_run_in_use_is_not_started_a_second_time(recipe: Path) -> None:
    run(recipe, "--max-iterations", 2)
    with RunFolder(recipe.parent / "runs" / "tiny-1").lock():
        second = run(recipe, "--continue")
    assert (second.exit_code, "in use by process " in second.stderr) == (1, True)
    assert folders(recipe) == ["tiny-1"]


def test_a_run_that_diverged_is_not_trained_again(recipe: Path) -> None:
    wild = ("--set", "adam={ learning_rate = 1e30 }", "--continue")
    assert run(recipe, *wild).exit_code == 3
    lines = (recipe.parent / "runs" / "tiny-1" / "stats.jsonl").read_text()
    again = run(recipe, *wild)
    assert again.exit_code == 3
    assert "this run has diverged; there is nothing to continue" in again.stderr
    assert (recipe.parent / "runs" / "tiny-1" / "stats.jsonl").read_text() == lines


@pytest.mark.parametrize("other", [("--continue",), ("--name", "x")])
def test_resume_goes_with_neither_continue_nor_name(recipe: Path, other: tuple[str, ...]) -> None:
    result = run(recipe, "--resume", "runs/x", *other)
    assert result.exit_code == 2
    assert f"{other[0]} has no effect with --resume" in result.stderr


def test_a_run_that_a_verdict_stopped_stays_stopped(recipe: Path) -> None:
    (recipe.parent / "ill.py").write_text(
        "from ganlab import Plugin, Verdict, hookimpl\n\n\n"
        "class Ill(Plugin):\n    @hookimpl\n    def verdicts(self, history):\n"
        '        return [Verdict("ill", 1, "it is ill")]\n'
    )
    recipe.write_text(recipe.read_text() + 'ill = { use = "./ill.py" }\n')
    command = ("--continue", "--set", 'on_verdict="stop"')
    assert run(recipe, *command).exit_code == 4
    again = run(recipe, *command)
    assert again.exit_code == 4
    assert "this run was stopped by a verdict; there is nothing to continue" in again.stderr
    assert again.stdout.startswith("stopped at iteration 2 of 4")


def test_a_file_in_place_of_the_runs_folder_is_refused(recipe: Path) -> None:
    result = CliRunner().invoke(main, ["run", str(recipe), "--runs", str(recipe)])
    assert (result.exit_code, "is a file" in result.output) == (2, True)
