"""Executors: found by name, made from checked options, and what the core does for each of them."""

import io
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ordeals import differences
from pydantic import PrivateAttr
from rich.console import Console
from test_compare import other, recipe, run, tables  # noqa: F401

from ganlab import Executor, Handle, Lost, Outcome, Task
from ganlab.cli import completion
from ganlab.compare import executors
from ganlab.compare.crew import Crew, Placement
from ganlab.compare.local import Local
from ganlab.compare.plan import Variant, make_plan
from ganlab.compare.progress import Progress, showing
from ganlab.compare.task import task_of
from ganlab.recipe.model import load_recipe, resolved
from ganlab.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("few_samples")


ELSEWHERE = ("--executor", "elsewhere", "--device", "cpu")


class Elsewhere(Executor):
    """Trains each task in this process, from a copy that was pickled, when it is waited for."""

    package: ClassVar[str] = "json"

    losses: int = 0
    """How many workers are lost, each after some iterations."""
    shared: bool = True
    """Whether the workers see the folder of runs."""
    _begun: int = PrivateAttr(0)

    def submit(self, task: Task) -> Handle:
        self._begun += 1
        is_lost = self._begun <= self.losses
        if self.shared:
            return Copy(pickle.loads(pickle.dumps(task)), is_lost)
        return Copy(pickle.loads(pickle.dumps(task.packed())), is_lost, task.receiver())


class Copy(Handle):
    def __init__(self, task: Task, is_lost: bool, receiver: Any = None) -> None:
        self.task, self.is_lost, self.receiver = task, is_lost, receiver
        self.iterations = 0

    def done(self) -> bool:
        return True

    def gone(self) -> bool:
        self.iterations += 1
        return self.is_lost and self.iterations > 3

    def outcome(self) -> Outcome:
        send = self.receiver and (lambda sent: self.receiver.take(pickle.loads(pickle.dumps(sent))))
        found = self.task.train(called_off=self.gone, send=send)
        if self.receiver:
            self.receiver.close()
            found = replace(found, folder=self.receiver.folder)
        if self.is_lost:
            raise Lost("its machine is gone")
        return found


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
    """Both folders have the same runs: files equal to the byte, checkpoints in every value.

    Of the manifest, ids, times and the list of packages may differ: Ray adds some of its own.
    """
    ours, others = folders(mine), folders(theirs)
    assert ours.keys() == others.keys() and ours
    for key, one in ours.items():
        assert {*differences(one, others[key])} <= {"manifest.json"}, key
        told = [json.loads((path / "manifest.json").read_text()) for path in (one, others[key])]
        for manifest in told:
            assert manifest.pop("id") and manifest.pop("begun") and manifest.pop("packages")
        assert told[0] == told[1]


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


@pytest.mark.parametrize("shared", ["true", "false"])
def test_a_run_is_the_same_whoever_made_it_and_whoever_was_lost(
    recipe: Path, idea: Path, shared: str  # noqa: F811
) -> None:  # fmt: skip
    here, away = recipe.parent / "here", recipe.parent / "away"
    words = (recipe, idea, "--seeds", "0..1", "--runs")
    expected, _ = compared(*words, here)
    found, told = compared(*words, away, *ELSEWHERE, "--executor-option", "losses=2",
                           "--executor-option", f"shared={shared}")  # fmt: skip
    assert found == expected
    assert_the_same_runs(here, away)
    assert len(list(away.glob("*/recipe.toml"))) == 4  # a lost run goes on in its folder
    lost = "game seed 0: its worker was lost (its machine is gone); it goes on from its newest"
    assert f"{lost} checkpoint, 1 of at most 2 times" in told
    assert "other seed 0: its worker was lost" in told
    again = compared(*words, away, *ELSEWHERE)[1]
    assert "4 runs; 4 exist, 0 to be continued, 0 to be made" in again


def test_a_run_that_is_lost_too_often_has_failed_and_the_others_go_on(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    words = (*ELSEWHERE, "--executor-option", "losses=2")
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
    assert not list((recipe.parent / "runs2").glob("*/recipe.toml"))


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


def test_a_table_shows_every_run_whoever_makes_it(recipe: Path) -> None:  # noqa: F811
    runs = recipe.parent / "runs"
    for seed in (0, 1):
        assert run("run", recipe, "--runs", runs, "--seed", seed)[0] == 0
    texts = [resolved(load_recipe(recipe, [f"seed={seed}"])) for seed in (0, 1)]
    status = runs / "game-2" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    progress = Progress(runs)
    for label in ("game seed 0", "game seed 1", "game seed 2"):
        progress.add(label)
    with RunFolder(runs / "game-2").lock():  # a worker has it; where it is, is not known here
        progress.begins("game seed 0", texts[0], None)
        progress.ended("game seed 0", "done", runs / "game-1")
        progress.begins("game seed 1", texts[1], None)
        told = io.StringIO()
        said: list[str] = []
        terminal = Console(file=told, force_terminal=True, width=100, color_system=None)
        with showing(progress, terminal, said.append) as (show, say):
            say("a line above the table")
            show()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told.getvalue()).replace("\r", "\n")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert any("a line above the table" in line for line in lines)
    running = next(line for line in lines if line.startswith("game seed 1"))
    assert re.match(r"game seed 1 running \S+ 12/12 ETA 0:00 psnr_y 28\.\d", running)
    assert any(line.startswith("game seed 0 done") for line in lines)
    assert "game seed 2 waiting" in lines
    assert "1 running, 1 waiting, 1 done" in lines
    assert progress.line() == "1 running, 1 waiting, 1 done: game seed 1 12/12"
    assert said == []
