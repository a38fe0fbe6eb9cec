"""Executors: found by name, made from checked options, and what the core does for each of them."""

import json
import pickle
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ordeals import differences
from pydantic import PrivateAttr
from test_compare import other, recipe, run, tables  # noqa: F401

from ganlab import Executor, Handle, Lost, Outcome, Task
from ganlab.cli import completion
from ganlab.compare import executors
from ganlab.compare.crew import Crew, Placement
from ganlab.compare.local import Local
from ganlab.compare.plan import Variant, make_plan
from ganlab.compare.task import task_of

pytestmark = pytest.mark.usefixtures("few_samples")


class Elsewhere(Executor):
    """Trains each task in this process, from a copy that was pickled, when it is waited for."""

    package: ClassVar[str] = "json"

    losses: int = 0
    """How many workers are lost, each after some iterations."""
    _begun: int = PrivateAttr(0)

    def submit(self, task: Task) -> Handle:
        self._begun += 1
        return Copy(pickle.loads(pickle.dumps(task)), self._begun <= self.losses)


class Copy(Handle):
    def __init__(self, task: Task, is_lost: bool) -> None:
        self.task, self.is_lost = task, is_lost
        self.iterations = 0

    def done(self) -> bool:
        return True

    def gone(self) -> bool:
        self.iterations += 1
        return self.is_lost and self.iterations > 3

    def outcome(self) -> Outcome:
        found = self.task.train(called_off=self.gone)
        if self.is_lost:
            raise Lost("its machine is gone")
        return found

    def call_off(self) -> None:
        pass


class Missing(Elsewhere):
    package: ClassVar[str] = "no_such_package_at_all"
    extra: ClassVar[str] = "ganlab[elsewhere]"


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {"elsewhere": "Elsewhere", "missing": "Missing", "odd": "run", "gone": "nothing"}
    points = [EntryPoint(n, f"{__name__}:{c}", executors.GROUP) for n, c in classes.items()]
    monkeypatch.setattr(executors, "entry_points", lambda group: points)


def folders(runs: Path) -> dict[tuple[str, int], Path]:
    """The runs of a folder by arm and seed."""
    found = {}
    for file in runs.glob("*/manifest.json"):
        name = file.parent.name.rpartition("-")[0]
        found[name, json.loads(file.read_text())["seed"]] = file.parent
    return found


def assert_the_same_runs(mine: Path, theirs: Path) -> None:
    """Both folders have the same runs: files equal to the byte, checkpoints in every value."""
    ours, others = folders(mine), folders(theirs)
    assert ours.keys() == others.keys() and ours
    assert {key: differences(one, others[key]) for key, one in ours.items()} == {
        key: [] for key in ours
    }


def compared(*words: object) -> tuple[Any, str]:
    """The tables of a comparison, and what it said on the way."""
    code, stdout, stderr = run("compare", *words, "--json")
    assert code == 0, stderr
    return tables(json.loads(stdout)), stderr


@pytest.fixture
def idea(other: Path) -> Path:  # noqa: F811
    """A recipe with a plugin file, with which a task must bring code along."""
    (other.parent / "mine.py").write_text(
        'from ganlab import Plugin\n\n\nclass Mine(Plugin):\n    """Does nothing."""\n\n'
        "    observes = True\n"
    )
    other.write_text(other.read_text() + 'idea = { use = "./mine.py" }\n')
    return other


def test_a_run_is_the_same_whoever_made_it_and_whoever_was_lost(
    recipe: Path, idea: Path  # noqa: F811
) -> None:  # fmt: skip
    here, away = recipe.parent / "here", recipe.parent / "away"
    words = (recipe, idea, "--seeds", "0..1", "--runs")
    expected, _ = compared(*words, here)
    found, told = compared(*words, away, "--executor", "elsewhere", "--executor-option", "losses=2")
    assert found == expected
    assert_the_same_runs(here, away)
    assert len(list(away.glob("*/recipe.toml"))) == 4  # a lost run goes on in its folder
    lost = "game seed 0: its worker was lost (its machine is gone); it goes on from its newest"
    assert f"{lost} checkpoint, 1 of at most 2 times" in told
    assert "other seed 0: its worker was lost" in told
    again = compared(*words, away, "--executor", "elsewhere")[1]
    assert "4 runs; 4 exist, 0 to be continued, 0 to be made" in again


def test_a_run_that_is_lost_too_often_has_failed_and_the_others_go_on(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    words = ("--executor", "elsewhere", "--executor-option", "losses=2")
    runs = recipe.parent / "runs"
    command = ("compare", recipe, other, "--seeds", "0", "--runs", runs, *words)
    code, _, stderr = run(*command, "--executor-option", "retries=1", "--jobs", "1")
    assert code == 1, stderr
    assert "game seed 0: failed: its worker was lost 2 times: its machine is gone" in stderr
    assert "other seed 0: done" in stderr
    assert stderr.splitlines()[-1].startswith("not finished: game seed 0; the same command")
    assert run(*command[:-2], "--executor-option", "losses=0")[0] == 0  # the same command goes on
    assert len(list(runs.glob("*/recipe.toml"))) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--executor", "elswhere"], "there is none of this name; did you mean 'elsewhere'?"),
        (["--executor", "odd"], "(test_executors:run): is not a class derived from Executor"),
        (["--executor", "gone"], "(test_executors:nothing): cannot be imported: AttributeError"),
        (["--executor", "missing"],
         "--executor missing: needs the package no_such_package_at_all: pip install "
         "'ganlab[elsewhere]'"),
        (["--executor-option", "retires=1"], "local: no option 'retires'; did you mean 'retries'?"),
        (["--executor-option", "retries=-1"], "retries = -1 is not allowed; it must be at least 0"),
        (["--executor-option", "retries=many"], 'retries = "many" is not allowed; it must be a'),
        (["--executor-option", "retries"], "--executor-option retries: write it as key=value"),
    ],
)  # fmt: skip
def test_a_slip_in_what_carries_out_the_runs_starts_nothing(
    recipe: Path, other: Path, words: list[str], complaint: str  # noqa: F811
) -> None:  # fmt: skip
    for command in (("compare", recipe, other), ("ablate", recipe), ("bisect", recipe, other)):
        code, _, stderr = run(*command, *words, "--runs", recipe.parent / "runs")
        assert code == 2, stderr
        assert complaint in stderr and len(stderr.splitlines()) == 1
    assert not (recipe.parent / "runs").exists()


def test_a_worker_with_another_ganlab_is_refused_by_name(
    recipe: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    (job,) = make_plan([Variant("game", recipe)], [0], recipe.parent / "runs", "cpu")
    for executor in (Elsewhere(), Local()):
        task = task_of(job, recipe.parent / "runs", "cpu", executor)
        with monkeypatch.context() as there:
            there.setattr("ganlab.compare.task.code_digest", lambda: "0" * 64)
            outcome = task.train()
        assert (outcome.refusal is None) == (not executor.elsewhere)
    task = task_of(job, recipe.parent / "runs2", "cpu", Elsewhere())
    monkeypatch.setattr("ganlab.compare.task.code_digest", lambda: "0" * 64)
    told = str(task.train().refusal)
    assert "its ganlab is not that of the machine on which the command was typed" in told
    assert not (recipe.parent / "runs2").exists()


def test_a_recipe_that_was_changed_meanwhile_is_refused_here_and_harmless_elsewhere(
    recipe: Path,  # noqa: F811
) -> None:
    runs = recipe.parent / "runs"
    (job,) = make_plan([Variant("game", recipe)], [0], runs, "cpu")
    here, away = (task_of(job, runs, "cpu", executor) for executor in (Local(), Elsewhere()))
    recipe.write_text(recipe.read_text().replace("batch_size = 2", "batch_size = 3"))
    assert "the recipe was changed since the comparison began" in str(here.train().refusal)
    folder = away.train().folder
    assert folder and "batch_size = 2" in (folder / "recipe.toml").read_text()


def test_a_run_at_work_can_be_called_off_and_others_added(
    recipe: Path,  # noqa: F811
) -> None:
    recipe.write_text(recipe.read_text().replace("iterations = 12", "iterations = 100_000"))
    runs = recipe.parent / "runs"
    jobs = make_plan(
        [Variant("long", recipe), Variant("short", recipe, ("iterations=4",))], [0], runs, "cpu"
    )
    begun: list[str] = []
    found = []
    with Crew(Placement(Local(), runs, "cpu", 1, apart=True), print, lambda job: begun.append(
            str(job))) as crew:  # fmt: skip
        crew.add(jobs[0])
        calling = called_off_after_a_checkpoint(crew, jobs[0], runs)
        wait = Local.wait

        def look(self: Local, handles: Any) -> None:
            calling()
            wait(self, handles)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Local, "wait", look)
            for job, code, _ in crew.results():
                found.append((str(job), code, job.finished))
                if len(found) == 1:
                    crew.add(jobs[1])
    assert found == [("long seed 0", 75, False), ("short seed 0", 0, True)]
    assert begun == ["long seed 0", "short seed 0"]
    status = json.loads((runs / "long-1" / "status.json").read_text())
    assert status["state"] == "stopped" and 0 < status["iteration"] < 100_000


def called_off_after_a_checkpoint(crew: Crew, job: Any, runs: Path) -> Callable[[], None]:
    def look() -> None:
        if list(runs.glob("long-1/checkpoints/*.sha256")):
            crew.call_off(job)

    return look


def test_names_and_options_of_executors_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    for line, words in (
        ("compare a.toml --executor lo", ["local"]),
        ("compare a.toml --executor-option re", ["retries="]),
        ("compare a.toml --executor elsewhere --executor-option l", []),
    ):
        monkeypatch.setenv("COMP_WORDS", f"ganlab {line}")
        from ganlab.cli import main

        answer = completion._Bash(main, {}, "ganlab", "X").complete()
        assert [each.partition(",")[2] for each in answer.split()] == words
