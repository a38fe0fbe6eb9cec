"""`ganlab sweep`: the space is checked by the recipe; a sweep that was killed goes on the same."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import children
import optuna
import pytest
from children import Child, wait_until
from click.testing import CliRunner
from marks import posix
from test_compare import RECIPE

from ganlab import api
from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe, resolved
from ganlab.runs.folder import RunFolder
from ganlab.runs.records import read_run
from ganlab.session import resume, start
from ganlab.sweep.check import Goal
from ganlab.sweep.pruning import PRUNED, Judge, Pruning
from ganlab.sweep.space import Option, Space, read_space
from ganlab.sweep.trials import FILE, Trial, Trials, mend

pytestmark = pytest.mark.usefixtures("few_samples")

SPACE = """\
trials = 8
startup_trials = 3

[options]
adam.learning_rate = { float = [1e-5, 1e-2], log = true }
encoder_decoder.width = { int = [4, 8], step = 4 }
"""
ODD = '''\
from pathlib import Path

from ganlab import Plugin, hookimpl


class Odd(Plugin):
    """Does not become finite, or raises an error while a file exists."""

    does: str = "nothing"

    @hookimpl
    def iteration_end(self, run, losses):
        if self.does == "diverges" and run.iteration == 1:
            next(run.G.parameters()).data.fill_(float("nan"))
        if self.does == "fails" and Path("trouble").exists():
            raise OSError("no space left")
'''


@pytest.fixture
def recipe(tmp_path: Path, compared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small game on photographs, in a folder of its own, which is the current one."""
    for part in ("photos", "held_out"):
        (tmp_path / part).symlink_to(compared / part)
    file = tmp_path / "game.toml"
    file.write_text(f"{RECIPE}adam = {{}}\n")
    monkeypatch.chdir(tmp_path)
    return file


@pytest.fixture
def space(recipe: Path) -> Path:
    file = recipe.with_name("space.toml")
    file.write_text(SPACE)
    return file


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def swept(*arguments: object, code: int = 0) -> dict[str, Any]:
    """What `ganlab sweep --json` prints."""
    found_code, stdout, stderr = run("sweep", *arguments, "--json")
    assert found_code == code, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found


def trials_of(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What decides about each trial."""
    keys = ("trial", "values", "state", "figure", "figures")
    return [tuple(str(trial[key]) for key in keys) for trial in found["trials"]]


def test_a_sweep_that_was_killed_has_the_trials_of_an_unbroken_one(
    recipe: Path, space: Path
) -> None:
    command = ("sweep", "game.toml", "space.toml", "--json", "--runs")
    expected = json.loads(children.run(*command, "whole", cwd=recipe.parent).stdout)
    assert len(expected["trials"]) == 8
    # in the middle of a run that follows from others, after a checkpoint of it
    cut, name = recipe.parent / "cut", "game-trial6-1"
    child = Child(*command, "cut", cwd=recipe.parent)
    wait_until(lambda: bool(list(cut.glob(f"{name}/checkpoints/*.sha256"))), child)
    child.kill()
    child.wait()
    assert RunFolder(cut / name).read_status()["state"] in ("killed", "done")
    assert not (cut / "game-trial8-1").exists()
    found = json.loads(children.run(*command, "cut", cwd=recipe.parent).stdout)
    assert trials_of(found) == trials_of(expected)
    assert len(list(cut.glob("*/recipe.toml"))) == 8
    for trial in expected["trials"]:
        for one in trial["runs"]:
            mine, theirs = (Path(p, Path(one).name, "stats.jsonl") for p in ("cut", "whole"))
            assert mine.read_bytes() == theirs.read_bytes()


def test_the_best_trial_is_an_ordinary_run_with_a_recipe(recipe: Path, space: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", 'trials = 3\nseeds = "0..1"'))
    code, stdout, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 0, stderr
    found = swept("game.toml", "space.toml")  # all of it exists
    done = [trial for trial in found["trials"] if trial["state"] == "done"]
    assert len(done) == 3
    best = max(done, key=lambda trial: trial["figure"])
    assert found["best_trial"] == best["trial"]
    records = [read_run(Path(one)) for one in best["runs"]]
    assert [record.seed for record in records] == [0, 1]
    figures = [record.last.figures["psnr_y"] for record in records if record.last]
    assert best["figure"] == pytest.approx(sum(figures) / 2)
    assert [*best["figures"].values()] == figures
    # its recipe is a file, and gives the same run
    text = resolved(load_recipe(Path(found["recipe"])))
    assert text == records[0].folder.recipe.read_text(encoding="utf-8")
    for key, value in best["values"].items():
        name, option = key.split(".")
        assert records[0].recipe["plugins"][name][option] == float(value)
    # the first line of the table is the best, and what the figure is worth is told
    assert stdout.splitlines()[1].startswith(f"{best['trial']} ")
    assert "chance has helped it" in stderr
    # and it can be trained longer, and compared on fresh seeds
    resumed, compared = (line.split()[2:] for line in stderr.splitlines() if "next: " in line)
    assert run(*resumed)[0] == 0
    assert read_run(Path(best["runs"][0])).status["iteration"] == 24
    assert compared[-1] == "2..6"
    assert "2 recipes x 5 seeds = 10 runs" in run(*compared, "--plan")[2]


def test_another_trial_more_continues_a_sweep(recipe: Path, space: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", "trials = 2"))
    first = swept("game.toml", "space.toml")
    space.write_text(SPACE.replace("trials = 8", "trials = 3"))
    code, stdout, stderr = run("sweep", "game.toml", "space.toml", "--plan")
    assert (code, stdout) == (0, "")
    assert "3 trials x 1 seeds = 3 runs" in stderr
    assert "2 trials have ended, 0 to be continued, 1 to be chosen" in stderr
    assert "from 2 runs that exist" in stderr
    second = swept("game.toml", "space.toml")
    assert trials_of(second)[:2] == trials_of(first)
    assert len(second["trials"]) == 3


def test_a_plan_writes_nothing(recipe: Path, space: Path) -> None:
    code, stdout, stderr = run("sweep", "game.toml", "space.toml", "--plan")
    assert (code, stdout) == (0, "")
    assert "8 trials x 1 seeds = 8 runs for the highest psnr_y" in stderr
    assert "adam.learning_rate: from 1e-05 to 0.01, logarithmic" in stderr
    assert "from a few timed iterations" in stderr
    assert not Path("runs").exists()


SLIPS = {
    "an unknown option": ("learning_rate", "learning_rat", 5, "did you mean 'learning_rate'?"),
    "an unknown plugin": ("adam.learn", "adm.learn", 5, "no plugin 'adm'; did you mean 'adam'?"),
    "fractions for a whole number": (
        "int = [4, 8], step = 4", "float = [4, 8]", 6,
        "its low end 4.0 is refused: plugins.encoder_decoder: width = 4.0 is not allowed; it must "
        "be a whole number. Write int = [4, 8]",
    ),
    "an end beyond a bound": (
        "float = [1e-5, 1e-2], log = true", "float = [-1, 1]", 5,
        "its low end -1.0 is refused: plugins.adam: learning_rate = -1.0 is not allowed; it must "
        "be more than 0.",
    ),
    "the other end": (
        "adam.learning_rate = { float = [1e-5, 1e-2], log = true }",
        "ema.decay = { float = [0.5, 1.5] }", 5,
        "its high end 1.5 is refused: plugins.ema: decay = 1.5 is not allowed",
    ),
    "a choice that is refused": (
        "encoder_decoder.width = { int = [4, 8], step = 4 }",
        'patch_discriminator.norm = { choices = ["none", "nonne"] }', 6,
        'the choice "nonne" is refused: plugins.patch_discriminator: norm = "nonne" is not allowed',
    ),
    "a whole number between the ends": (
        "encoder_decoder.width = { int = [4, 8], step = 4 }",
        "keep_every = { int = [0, 4] }", 6,
        "its value 1 is refused: keep_every = 1 is not allowed; it must be a multiple",
    ),
    "another task": (
        "encoder_decoder.width = { int = [4, 8], step = 4 }",
        "bicubic.scale = { choices = [4, 2] }", 6,
        "the choice 2 is refused: another task: the condition would be (3, 8, 8), not (3, 4, 4)",
    ),
    "what only the whole recipe refuses": (
        "encoder_decoder.width = { int = [4, 8], step = 4 }",
        "image_folder.crop = { choices = [16, 18] }", 6,
        "the choice 18 is refused: game.toml:10: plugins.bicubic: cannot shrink 18 x 18",
    ),
    "a seed": ("adam.learning_rate = { float = [1e-5, 1e-2], log = true }",
               "seed = { choices = [0, 1] }", 5, "seeds are replicates"),
    "no range": ("int = [4, 8], step = 4", "", 6, "give one of float, int and choices; none"),
    "two ranges": ("step = 4", "choices = [4, 8]", 6, "int and choices"),
    "one end": ("int = [4, 8], step = 4", "int = [4]", 6, "at least 2 items"),
    "no table": ("{ int = [4, 8], step = 4 }", "4", 6, "options.encoder_decoder.width = 4: an op"),
    "ends the wrong way round": ("[4, 8]", "[8, 4]", 6, "the first number must be the smaller one"),
    "a step that leads elsewhere": ("[4, 8]", "[4, 9]", 6, "does not lead from 4 to 9"),
    "a step of a fraction": ("step = 4", "step = 0.5", 6, "must be a whole number"),
    "a logarithm of zero": ("[1e-5,", "[0,", 5, "with log, both must be more than 0"),
    "a misspelt key": ("float =", "flot =", 5, "no key 'flot'; did you mean 'float'?"),
    "a choice given twice": ("int = [4, 8], step = 4", "choices = [4, 4]", 6, "given twice"),
    "a misspelt setting": ("trials =", "trails =", 1, "no setting 'trails'; did you mean 'trials'"),
    "no trials": ("trials = 8\n", "\n", 0, "the setting 'trials' is missing"),
    "no options": (SPACE[SPACE.index("[options]") :], "", 0, "the table [options] is missing"),
    "seeds of another form": ("trials = 8", 'trials = 8\nseeds = "a"', 2, "it must be seeds"),
    "an unknown sampler": ("trials = 8", 'trials = 8\nsampler = "tpo"', 2, "did you mean 'tpe'?"),
    "a grid without steps": ("trials = 8", 'sampler = "grid"', 5, "needs a step"),
    "a figure without direction": (
        "trials = 8", 'trials = 8\nfigure = "mine"', 2, 'best = "highest" or "lowest"'),
    "pruning without a pruner": ("trials = 8", "trials = 8\nprune_after = 4", 0, "has no effect"),
    "pruning at other iterations": (
        "encoder_decoder.width = { int = [4, 8], step = 4 }",
        "evaluate_every = { int = [4, 8] }", 7, "the same iterations"),
    "no TOML": ("trials = 8", "trials = ", 1, "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_the_space_is_told_with_its_place_before_anything_runs(
    slip: str, recipe: Path, space: Path
) -> None:
    good, bad, line, fault = SLIPS[slip]
    assert good in SPACE
    text = SPACE.replace(good, bad)
    if slip == "pruning at other iterations":
        text = f'pruner = "median"\n{text}'
    space.write_text(text)
    code, stdout, stderr = run("sweep", "game.toml", "space.toml")
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"space.toml:{line}: " if line else "space.toml: "), stderr
    assert fault in stderr
    assert len(stderr.splitlines()) == 1
    assert not Path("runs").exists()


def test_what_the_command_line_gives_does_not_vary_too(recipe: Path, space: Path) -> None:
    code, _, stderr = run("sweep", "game.toml", "space.toml", "--set", "adam.learning_rate=1e-4")
    assert code == 2
    assert "space.toml:5: options.adam.learning_rate: --set gives this option too" in stderr
    assert run("sweep", "game.toml", "spaces.toml")[2].startswith(
        "spaces.toml: no such file; did you mean 'space.toml'?"
    )


def test_without_optuna_one_line_says_what_to_install(
    recipe: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    needed = "a sweep needs the package optuna: pip install 'ganlab[sweep]'\n"
    assert run("sweep", "game.toml", "space.toml") == (2, "", needed)
    with pytest.raises(RecipeError, match="needs the package optuna"):
        api.sweep(recipe, space)


def test_a_figure_that_no_evaluation_has_is_told_after_the_first_run(
    recipe: Path, space: Path
) -> None:
    space.write_text(f'figure = "psnr"\nbest = "highest"\n{SPACE}')
    code, _, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 2
    last = stderr.splitlines()[-1]
    assert last.startswith('space.toml:1: figure = "psnr" decides, but runs/game-trial1-1 was eval')
    assert "psnr_y, ssim_y" in last
    assert not Path("runs/game-trial2-1").exists()


def test_a_sweep_does_not_go_on_as_another_one(recipe: Path, space: Path) -> None:
    one = SPACE.replace("trials = 8", "trials = 1")
    space.write_text(one)
    assert run("sweep", "game.toml", "space.toml")[0] == 0
    space.write_text(one.replace("1e-2", "1e-3"))
    recipe.write_text(recipe.read_text().replace("weight = 1.0", "weight = 2.0"))
    code, _, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 2
    assert (
        "runs/sweep-game-space: this sweep was begun otherwise: pixel_loss.weight was 1.0, and"
        in (stderr)
    )
    assert "options.adam.learning_rate.float was [1e-05, 0.01], and is [1e-05, 0.001]" in stderr
    assert run("sweep", "game.toml", "space.toml", "--name", "other")[0] == 0
    Path("mine").mkdir()
    code, _, stderr = run("sweep", "game.toml", "space.toml", "--name", "mine", "--runs", ".")
    assert code == 2
    assert "mine: it is not the folder of a sweep; choose another --name" in stderr


def test_other_data_are_another_sweep(recipe: Path, space: Path, compared: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", "trials = 1"))
    Path("photos").unlink()
    shutil.copytree(compared / "photos", "photos")
    assert run("sweep", "game.toml", "space.toml")[0] == 0
    image = next(Path("photos").iterdir())
    shutil.copy(image, image.with_name("more.png"))
    code, _, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 2
    assert "begun otherwise: the data was another" in stderr


@pytest.fixture
def odd(recipe: Path) -> Path:
    """The recipe with a plugin that can diverge and fail."""
    recipe.with_name("odd.py").write_text(ODD)
    recipe.write_text(f"{recipe.read_text()}odd = {{ use = './odd.py' }}\n")
    return recipe


GRID = """sampler = "grid"

[options]
odd.does = { choices = ["diverges", "fails", "nothing"] }
"""


def test_a_trial_that_diverges_is_the_worst_and_one_that_fails_is_tried_again(odd: Path) -> None:
    Path("space.toml").write_text(GRID)
    Path("trouble").touch()
    code, stdout, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 1
    assert [line.split()[0] for line in stdout.splitlines()[1:4]] == ["3", "1", "2"]
    assert "trial 2 failed: " in stdout
    assert "failed: 1 trials; the same command tries again" in stderr
    Path("trouble").unlink()
    found = swept("game.toml", "space.toml")
    assert [trial["state"] for trial in found["trials"]] == ["diverged", "done", "done"]
    assert found["trials"][0]["figure"] is None
    assert RunFolder(Path("runs/game-trial1-1")).read_status()["state"] == "diverged"
    assert len(list(Path("runs").glob("*/recipe.toml"))) == 3


def test_a_plugin_file_is_beside_the_best_recipe(odd: Path) -> None:
    Path("space.toml").write_text(GRID.replace('"diverges", "fails", "nothing"', '"nothing", "a"'))
    found = swept("game.toml", "space.toml")
    best = load_recipe(Path(found["recipe"]))
    assert best.sources["odd"].file == Path(found["recipe"]).resolve().with_name("odd.py")


def test_no_figure_at_all_is_an_error(odd: Path) -> None:
    choices = '"diverges", "fails", "nothing"'
    Path("space.toml").write_text(GRID.replace(choices, '"diverges", "fails"'))
    Path("trouble").touch()
    code, _, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 1
    assert "no trial has a figure: trial 1 diverged, trial 2 failed" in stderr


def test_values_that_are_refused_together_are_told_and_left_out(recipe: Path) -> None:
    text = 'sampler = "grid"\n[options]\nkeep_every = { choices = [0, 2] }\n'
    Path("space.toml").write_text(f"{text}checkpoint_every = {{ choices = [2, 4] }}\n")
    found = swept("game.toml", "space.toml")
    assert [trial["state"] for trial in found["trials"]] == ["done", "done", "done", "refused"]
    assert "must be a multiple of checkpoint_every, which is 4" in found["trials"][3]["message"]


def test_two_at_a_time_give_the_trials_of_one_where_none_depends_on_others(
    recipe: Path, space: Path
) -> None:
    space.write_text(SPACE.replace("trials = 8", 'trials = 2\nsampler = "random"'))
    one = swept("game.toml", "space.toml", "--runs", "one")
    two = swept("game.toml", "space.toml", "--runs", "two", "--jobs", "2")
    assert trials_of(two) == trials_of(one)


@posix
def test_ctrl_c_saves_the_run_in_progress(recipe: Path, space: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", "trials = 2"))
    recipe.write_text(recipe.read_text().replace("iterations = 12", "iterations = 2000"))
    child = Child("sweep", "game.toml", "space.toml", cwd=recipe.parent)
    run_folder = Path("runs/game-trial1-1")
    wait_until(lambda: bool(list(run_folder.glob("checkpoints/*.sha256"))), child)
    child.send_signal(signal.SIGINT)
    assert child.wait() == 130
    assert "the same command continues where it stopped" in child.stderr
    assert RunFolder(run_folder).read_status()["state"] == "stopped"
    (trial,) = Trials(Path("runs/sweep-game-space"), read_space(space), GOAL, 1).all()
    assert trial.outcome == ""


GOAL = Goal("psnr_y", True, "last")


def figure_of(trial: Trial) -> float:
    """A figure that follows from the values, with its best at 1e-3 and 8."""
    width, rate = (float(trial.values[key]) for key in ("encoder_decoder.width",
                                                        "adam.learning_rate"))  # fmt: skip
    return width - abs(rate - 1e-3)


def ended(trial: Trial) -> Trial:
    """The trial as it ends; every fourth is stopped early, every fifth diverges."""
    figure, number = figure_of(trial), trial.number
    history = {0: {4: figure / 2, 8: figure}}
    if number % 4 == 3:
        return Trial(number, trial.values, "pruned", history={0: {4: figure / 2}})
    if number % 5 == 4:
        return Trial(number, trial.values, "diverged", history={0: {4: figure / 2}})
    return Trial(number, trial.values, "done", figure, ("a",), {0: figure}, history)


def ended_all(trials: Trials) -> list[dict[str, str]]:
    for trial in trials.all():
        if not trial.outcome:
            trials.end(ended(trial))
    while (trial := trials.propose()) is not None:
        trials.end(ended(trial))
    return [trial.values for trial in trials.all()]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_proposals_follow_from_the_trials_that_have_ended(
    sampler: str, recipe: Path, space: Path
) -> None:
    text = SPACE.replace("trials = 8", f'trials = 10\nsampler = "{sampler}"')
    if sampler == "grid":
        text = text.replace("[1e-5, 1e-2], log = true", "[0.001, 0.008], step = 0.001")
    space.write_text(text)
    found = read_space(space)
    Path("whole").mkdir()
    expected = ended_all(Trials(Path("whole"), found, GOAL, 1))
    assert len({tuple(values.items()) for values in expected}) == 10
    # cut after a line that Optuna writes, in the middle of the next, with its lock left behind
    lines = Path("whole", FILE).read_bytes().splitlines(keepends=True)
    for count in range(0, len(lines), 5):
        folder = Path(f"cut-{count}")
        folder.mkdir()
        half = lines[count][: len(lines[count]) // 2]
        (folder / FILE).write_bytes(b"".join(lines[:count]) + half)
        (folder / f"{FILE}.lock").symlink_to(folder / FILE)
        mend(folder)
        assert ended_all(Trials(folder, found, GOAL, 1)) == expected


def test_tpe_learns_from_the_trials(recipe: Path, space: Path) -> None:
    """Its later trials are nearer to the best point than those drawn at random."""
    figures = {}
    for sampler in ("tpe", "random"):
        space.write_text(SPACE.replace("trials = 8", f'trials = 40\nsampler = "{sampler}"'))
        Path(sampler).mkdir()
        trials = Trials(Path(sampler), read_space(space), GOAL, 1)
        ended_all(trials)
        figures[sampler] = sum(figure_of(trial) for trial in trials.all()[20:]) / 20
    assert figures["tpe"] > figures["random"] + 0.5


def test_no_point_is_tried_twice_and_a_space_can_be_exhausted(recipe: Path, space: Path) -> None:
    text = "d_steps = { int = [1, 3] }\nfirst = { choices = ['discriminator', 'generator'] }\n"
    space.write_text(f"trials = 20\nstartup_trials = 1\n[options]\n{text}")
    found = read_space(space)
    assert (found.size, found.num_trials) == (6, 6)
    folder = Path("sweep")
    folder.mkdir()
    trials = Trials(folder, found, GOAL, 1)
    while (trial := trials.propose()) is not None:
        trials.end(Trial(trial.number, trial.values, "done", 1.0, ("a",), {0: 1.0}, {0: {4: 1.0}}))
    values = [tuple(trial.values.items()) for trial in trials.all()]
    assert len(values) == len(set(values)) == 6


def test_optuna_itself_reads_the_file_and_knows_what_decides(recipe: Path, space: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", 'trials = 8\nsampler = "random"'))
    folder = Path("sweep")
    folder.mkdir()
    trials = Trials(folder, read_space(space), GOAL, 1)
    assert trials.importance() == {}
    ended_all(trials)
    importance = trials.importance()
    assert sum(importance.values()) == pytest.approx(1)
    assert set(importance) == {"encoder_decoder.width", "adam.learning_rate"}
    backend = optuna.storages.journal.JournalFileBackend(str(folder / FILE))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    states = [trial.state.name for trial in study.trials[:5]]
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert study.trials[0].intermediate_values == {4: study.trials[0].value / 2,
                                                   8: study.trials[0].value}  # fmt: skip
    assert study.trials[4].intermediate_values == {}  # it diverged: worse than any other


def judge(pruner: str, past: list[tuple[dict[int, float], bool]], **more: Any) -> Judge:
    given = {"startup_trials": 1, "prune_after": 0, "evaluate_every": 4} | more
    return Judge("psnr_y", True, pruner, past=past, **given)


def test_the_median_of_the_others_decides() -> None:
    past = [({4: float(n), 8: 10.0 + n}, True) for n in range(1, 4)]  # 2 and 12 in the middle
    assert judge("median", past).stops(4, 1.9)
    assert not judge("median", past).stops(4, 2.0)
    assert not judge("median", past, prune_after=8).stops(4, 1.9)
    assert not judge("median", past, startup_trials=4).stops(4, 1.9)
    assert not judge("none", past).stops(4, 1.9)
    lower = Judge("lpips", False, "median", 1, 0, 4, past)
    assert lower.stops(4, 2.1)
    late = judge("median", past)
    assert not late.stops(4, 3.0)
    assert late.stops(8, 11.9)
    assert not judge("median", past).stops(4, float("nan"))


def test_halving_keeps_the_best_third_at_each_rung() -> None:
    past = [({4: float(n), 8: float(n), 12: float(n)}, True) for n in (1, 2, 3, 4, 5)]
    assert not judge("halving", past).stops(4, 6.0)
    assert not judge("halving", past).stops(4, 4.5)  # of six the two best
    assert judge("halving", past).stops(4, 3.5)
    assert not judge("halving", past, prune_after=8).stops(4, 3.5)


def test_a_pruned_run_is_an_ordinary_run_that_can_go_on(recipe: Path) -> None:
    past = [({4: 1e6, 8: 1e6}, True)]  # better than any run
    limits = Pruning(judge("median", past))
    folder, code = start(load_recipe(recipe), "cpu", limits, Path("runs"))
    assert code == 0
    status = folder.read_status()
    assert (status["state"], status["message"], status["iteration"]) == ("stopped", PRUNED, 4)
    # continued, it is judged by the evaluation that it had
    again = Pruning(judge("median", past))
    assert resume(folder.path, "cpu", again)[0].read_status()["iteration"] == 4
    folder, code = resume(folder.path, "cpu", Limits())
    whole, _ = start(load_recipe(recipe), "cpu", Limits(), Path("whole"))
    assert folder.read_status()["state"] == "done"
    assert folder.stats.read_bytes() == whole.stats.read_bytes()


def test_a_sweep_stops_bad_runs_early_and_goes_on_the_same_when_killed(
    recipe: Path, space: Path
) -> None:
    text = SPACE.replace("trials = 8", 'trials = 5\npruner = "median"\nsampler = "random"')
    space.write_text(text.replace("startup_trials = 3", "startup_trials = 2"))
    expected = swept("game.toml", "space.toml", "--runs", "whole")
    states = [trial["state"] for trial in expected["trials"]]
    assert states[:2] == ["done", "done"]
    assert "pruned" in states
    number = states.index("pruned")
    name = f"game-trial{number + 1}-1"
    assert RunFolder(Path("whole", name)).read_status()["iteration"] < 12
    # killed after the run was stopped, and before the trial was told so
    cut = Path("cut/sweep-game-space")
    shutil.copytree("whole", "cut")
    lines = (cut / FILE).read_bytes().splitlines(keepends=True)
    begun = [at for at, line in enumerate(lines) if b'"op_code":4' in line]
    (cut / FILE).write_bytes(b"".join(lines[: begun[number] + 1]))
    log = Path("cut", name, "log.txt").read_bytes()
    found = swept("game.toml", "space.toml", "--runs", "cut")
    assert trials_of(found) == trials_of(expected)
    assert Path("cut", name, "log.txt").read_bytes() == log  # it did not train again


def test_runs_that_ended_before_their_trial_was_told_are_used(recipe: Path, space: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", 'trials = 1\nseeds = "0..2"'))
    expected = swept("game.toml", "space.toml")
    log = Path("runs/sweep-game-space", FILE)
    lines = log.read_bytes().splitlines(keepends=True)
    begun = next(at for at, line in enumerate(lines) if b'"op_code":4' in line)
    log.write_bytes(b"".join(lines[: begun + 1]))
    assert trials_of(swept("game.toml", "space.toml")) == trials_of(expected)


def test_the_page_has_every_trial_and_a_picture_of_each_option(odd: Path) -> None:
    options = SPACE[SPACE.index("adam") :]
    nasty = "<img src=x onerror=alert(1)>"
    text = f'trials = 2\n[options]\n{options}odd.does = {{ choices = ["{nasty}", "b"] }}\n'
    Path("space.toml").write_text(text)
    found = swept("game.toml", "space.toml")
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert page.count('<figure class="chart">') == 3
    assert nasty not in page
    assert "&lt;img src=x" in page
    for trial in found["trials"]:
        for one in trial["runs"]:
            assert Path(one).name in page
    assert "chance has helped it" in page
    # a page of somebody else is not overwritten
    Path(found["page"]).write_text("mine")
    assert run("sweep", "game.toml", "space.toml")[0] == 2


def test_a_script_gets_the_best_run(recipe: Path, space: Path) -> None:
    space.write_text(SPACE.replace("trials = 8", "trials = 2"))
    found = api.sweep("game.toml", "space.toml", {"batch_size": 1}, device="cpu")
    assert found.best.record.recipe["batch_size"] == 1
    figures = [trial["figure"] for trial in found.data["trials"]]
    assert found.best.scores["psnr_y"] == max(figures)
    assert "2 trials" in repr(found)


def test_an_executor_that_takes_all_at_once_needs_jobs_for_tpe(
    recipe: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganlab.compare.local.Local.at_a_time", lambda self, device: None)
    code, _, stderr = run("sweep", "game.toml", "space.toml")
    assert code == 2
    assert "--jobs is needed" in stderr


@pytest.mark.long  # a minute
@posix
def test_a_sweep_that_is_killed_again_and_again_has_the_trials_of_an_unbroken_one(
    recipe: Path, space: Path
) -> None:
    space.write_text(SPACE.replace("trials = 8", 'trials = 8\npruner = "median"\nseeds = "0..1"'))
    expected = swept("game.toml", "space.toml", "--runs", "whole")
    command = ("sweep", "game.toml", "space.toml", "--runs", "cut", "--json")
    seconds, kills = 1.0, 0
    while True:
        child = Child(*command, cwd=recipe.parent)
        try:
            assert child.wait(seconds) == 0, child.stdout + child.stderr
            break
        except TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
            seconds += 0.37  # at other places each time, and in the end all the way
    assert kills > 5
    assert trials_of(json.loads(child.stdout)) == trials_of(expected)


def test_the_page_on_sweeps_names_every_setting() -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "sweep.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    named = {word for line in table for word in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(Space.model_fields)
    for key, info in Option.model_fields.items():
        assert f"{info.alias or key} =" in page or f"`{info.alias or key}`" in page
