"""A run ends early when its best figure has not become better for so many evaluations."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.runs.reading import Log

pytestmark = pytest.mark.usefixtures("few_samples")

# the figure of each evaluation, in order
SCRIPT = """\
import math

from ganlab import Plugin, hookimpl


class Scripted(Plugin):
    values: tuple[str, ...]

    @hookimpl
    def evaluate(self, run):
        at = run.iteration // run.recipe.evaluate_every - 1
        return {"mine": float(self.values[at]) if at < len(self.values) else 0.0}
"""
RISES_ONCE = (1, 3, 2, 3, 2.5, 9)  # equal is not better


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ganlab.live_page.Page.write", lambda page: None)  # half of the time
    (tmp_path / "scripted.py").write_text(SCRIPT)
    return tmp_path


def write(name: str, values: tuple[float, ...], lines: str = "", plugins: str = "") -> None:
    Path(name).write_text(
        f"iterations = 20\nbatch_size = 2\nevaluate_every = 2\nbest_metric = 'mine'\n{lines}\n"
        "[plugins]\ndirac = { step_size = 0.2 }\nbce = {}\n"
        f"scripted = {{ use = './scripted.py', values = {json.dumps([*map(str, values)])} }}\n"
        f"{plugins}\n"
    )


def ganlab(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def status(name: str) -> dict:
    return json.loads((Path("runs") / name / "status.json").read_text())


@pytest.mark.parametrize(
    ("values", "lines", "ends", "best"),
    [
        (RISES_ONCE, "patience = 2", 8, 4),
        (RISES_ONCE, "patience = 3", 10, 4),
        (RISES_ONCE, "patience = 4\nbest_is = 'highest'", 20, 12),
        ((3, 1, 2, 2), "patience = 2\nbest_is = 'lowest'", 8, 4),
        ((1, math.nan, math.nan), "patience = 2", 6, 2),
        ((math.nan, math.nan), "patience = 2", 4, 0),
        (RISES_ONCE, "patience = 0", 20, 12),
    ],
)
def test_it_ends_at_the_evaluation_at_which_patience_is_over(
    folder: Path, values: tuple[float, ...], lines: str, ends: int, best: int
) -> None:
    write("r.toml", values, lines)
    said = ganlab("run", "r.toml")
    found = status("r-1")
    sentence = f"stopped: no better mine since iteration {best}" if ends < 20 else ""
    assert (found["state"], found["iteration"], found["message"]) == ("done", ends, sentence)
    assert (sentence in said) and ("stopped" in said) == bool(sentence)
    assert (found["best"] or [0])[0] == best


def test_evaluations_before_the_game_do_not_count(folder: Path) -> None:
    write("r.toml", (9, 1, 1, 1, 2, 1, 1, 1), "patience = 2", "pretraining = { iterations = 7 }")
    Path("r.toml").write_text(Path("r.toml").read_text() + PULL)
    (folder / "pull.py").write_text(CONTENT)
    ganlab("run", "r.toml")
    assert status("r-1")["iteration"] == 12  # D's first step is in iteration 7


PULL = "pull = { use = './pull.py' }\n"
CONTENT = """\
from ganlab import Plugin, hookimpl


class Pull(Plugin):
    @hookimpl
    def generator_loss(self, fake):
        return {"G/pull": fake.square().mean()}
"""


@pytest.mark.parametrize("stop", [5, 6])
def test_a_run_that_was_stopped_and_resumed_ends_at_the_same_iteration(
    folder: Path, stop: int
) -> None:
    write("r.toml", RISES_ONCE, "patience = 2\ncheckpoint_every = 3")
    ganlab("run", "r.toml", "--name", "whole")
    ganlab("run", "r.toml", "--name", "stopped", "--max-iterations", stop)
    ganlab("resume", "runs/stopped")
    assert_same("whole", "stopped")


def test_a_run_that_was_killed_after_its_last_checkpoint_ends_where_it_had_ended(
    folder: Path,
) -> None:
    write("r.toml", RISES_ONCE, "patience = 2\ncheckpoint_every = 4")
    for name in ("whole", "killed"):
        ganlab("run", "r.toml", "--name", name)
    file = Path("runs/killed/status.json")
    file.write_text(json.dumps(status("killed") | {"state": "running"}))  # killed before it said so
    ganlab("resume", "runs/killed")
    assert_same("whole", "killed")


def assert_same(one: str, other: str) -> None:
    names = ("state", "iteration", "message", "best", "scores")
    assert [status(one)[n] for n in names] == [status(other)[n] for n in names]
    for file in ("stats.jsonl", "generator.safetensors", "best.safetensors"):
        a, b = (Path("runs", name, file) for name in (one, other))
        assert a.exists() and a.read_bytes() == b.read_bytes(), file


def test_it_is_done_and_cannot_be_resumed(folder: Path) -> None:
    write("r.toml", RISES_ONCE, "patience = 2")
    ganlab("run", "r.toml")
    assert "this run is done" in ganlab("resume", "runs/r-1", code=2)


def test_a_comparison_is_at_equal_iterations_and_names_the_runs_that_ended_early(
    folder: Path,
) -> None:
    write("short.toml", RISES_ONCE, "patience = 2")
    write("long.toml", range(10), "patience = 2")
    said = " ".join(ganlab("compare", "short.toml", "long.toml", "--seeds", "0..1").split())
    assert "mine: equal iterations, 8" in said
    assert (
        "short: 2 of 2 runs (seed 0, 1) did not take all iterations of the recipe: patience ended "
        "at iteration 8, 8." in said
    )
    assert "long: 2 of 2" not in said
    again = ganlab("compare", "short.toml", "long.toml", "--seeds", "0..1")
    assert "4 exist, 0 to be continued, 0 to be made" in again
    ganlab("report", "runs/short-1")
    page = Path("runs/short-1/report.html").read_text()
    assert "It stopped: no better mine since iteration 4." in page


def test_without_patience_nothing_is_noted(folder: Path) -> None:
    write("one.toml", RISES_ONCE)
    write("two.toml", RISES_ONCE)
    assert "patience ended" not in ganlab("compare", "one.toml", "two.toml", "--seeds", "0")


def test_a_figure_that_no_evaluation_has_is_named_at_the_first_one(folder: Path) -> None:
    write("r.toml", RISES_ONCE, "patience = 2")
    Path("r.toml").write_text(Path("r.toml").read_text().replace("'mine'", "'mein'"))
    said = ganlab("run", "r.toml", code=2)
    assert "r.toml: patience = 2 waits for a better mein, but the evaluation has mine, " in said
    assert [*Log(Path("runs/r-1/stats.jsonl"))]  # what was measured until then is kept


def test_patience_that_is_longer_than_the_run_is_told_and_less_than_none_is_refused(
    folder: Path,
) -> None:
    told = "warning: patience is 10 evaluations, 20 iterations, but the run ends at 20, so it has"
    write("r.toml", RISES_ONCE, "patience = 10")
    assert told in ganlab("check", "r.toml")
    assert told not in ganlab("check", "r.toml", "--set", "patience=9")
    refused = ganlab("check", "r.toml", "--set", "patience=-1", code=2)
    assert "patience = -1 is not allowed; it must be at least 0" in refused


def test_patience_without_an_evaluation_is_refused(tiny: Path) -> None:
    said = ganlab("check", tiny, "--set", "patience=1", "--set", "evaluate_every=2", code=2)
    assert "patience = 1 has no effect: there are no held-out images" in said
