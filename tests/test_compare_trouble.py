"""Comparisons in which something goes wrong, or is not what it seems."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from children import Child, wait_until
from marks import posix
from ordeals import children_of, still_there
from test_compare import arm, by_view, data, other, recipe, record, run, tables  # noqa: F401

from ganlab.compare.comparison import arms_of
from ganlab.report.tables import compare
from ganlab.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("few_samples")

BREAKS = '''\
from ganlab import Plugin, hookimpl


class Breaks(Plugin):
    """Fails in the middle of a run."""

    @hookimpl
    def iteration_start(self, run):
        if run.iteration == 7:
            raise ZeroDivisionError("in the middle")
'''


@pytest.fixture
def broken(recipe: Path) -> Path:  # noqa: F811
    (recipe.parent / "breaks.py").write_text(BREAKS)
    file = recipe.with_name("broken.toml")
    text = 'extends = "game.toml"\n\n[plugins]\nbreaks = { use = "./breaks.py" }\n'
    file.write_text(text)
    return file


def test_a_run_that_fails_is_named_and_the_others_are_made_one_or_two_at_a_time(
    recipe: Path, broken: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    means = {}
    for jobs in ("1", "2"):
        runs = recipe.parent / f"runs-{jobs}"
        command = ("compare", recipe, broken, other, "--seeds", "0..1", "--runs", runs)
        code, stdout, stderr = run(*command, "--jobs", jobs)
        assert code == 1
        told = r"seed 0: failed: in iteration 8: plugin breaks .*: ZeroDivisionError: in the middle"
        assert re.search(told, stderr)
        assert "Traceback" not in stderr
        assert "note: broken: 2 of 2 runs (seed 0, 1) failed and gave no figure." in stdout
        assert "2 failed" in stdout
        statuses = runs.glob("*/status.json")
        states = sorted(json.loads(file.read_text())["state"] for file in statuses)
        assert states == ["done"] * 4 + ["failed"] * 2
        arms = [runs / f"{name}-{number}" for name in ("game", "other") for number in (1, 2)]
        means[jobs] = [
            row["value"]["mean"] for t in tables(data("compare", *arms))[:-1] for row in t["rows"]
        ]
    assert means["1"] == pytest.approx(means["2"], rel=1e-3) and means["1"]
    # mended, the same command makes what is missing
    (recipe.parent / "breaks.py").write_text(BREAKS.replace("== 7", "== 1000"))
    assert run(*command)[0] == 0


def two_at_a_time(recipe: Path, other: Path) -> tuple[Path, Child]:  # noqa: F811
    """The folder of a comparison's runs, and its process, when runs are under way."""
    runs = recipe.parent / "runs"
    long = recipe.read_text().replace("iterations = 12", "iterations = 2000")
    recipe.write_text(long.replace("evaluate_every = 4", "evaluate_every = 1000"))
    arguments = ["compare", recipe, other, "--seeds", "0..3", "--jobs", "2", "--runs", runs]
    child = Child(*arguments, cwd=recipe.parent)
    wait_until(lambda: len(list(runs.glob("*/checkpoints/*.sha256"))) >= 2, child)
    return runs, child


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.long  # two processes that import torch
def test_workers_save_and_end_when_their_parent_is_killed(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    runs, child = two_at_a_time(recipe, other)
    workers = children_of(child.pid)
    assert len(workers) >= 2
    child.kill()
    assert not still_there(workers, seconds=60)
    for folder in [RunFolder(p.parent) for p in runs.glob("*/recipe.toml")]:
        assert folder.read_status()["state"] == "stopped"
        newest = max((int(p.stem) for p in folder.checkpoints.glob("*.sha256")), default=0)
        assert newest == folder.read_status()["iteration"] < 2000


@posix
@pytest.mark.long  # 10 to 20 s each: two processes that import torch
@pytest.mark.parametrize("group", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_all_runs_saved_and_begins_no_more(
    recipe: Path, other: Path, group: bool  # noqa: F811
) -> None:  # fmt: skip
    runs, child = two_at_a_time(recipe, other)
    if group:
        os.killpg(child.pid, signal.SIGINT)  # as a terminal sends it, to workers too
    else:
        child.send_signal(signal.SIGTERM)
    assert child.wait(60) in (75, 130)
    assert "the same command continues where it stopped" in child.stderr
    assert "Traceback" not in child.stderr
    found = [RunFolder(p.parent) for p in runs.glob("*/recipe.toml")]
    assert len(found) <= 3  # two under way, and one that may have just begun
    for folder in found:
        status = folder.read_status()
        assert status["state"] == "stopped"
        newest = max((int(p.stem) for p in folder.checkpoints.glob("*.sha256")), default=0)
        assert newest == status["iteration"] < 2000


def test_the_first_argument_is_the_baseline_whatever_it_is(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    runs = recipe.parent / "runs"
    assert run("run", other, "--runs", runs, "--seed", 0)[0] == 0
    for arms, first in (
        ((runs / "other-1", recipe), "other-1"),
        ((recipe, runs / "other-1"), "game"),
    ):
        rows = data("compare", *arms, "--seeds", "0", "--runs", runs)["tables"][0]["rows"]
        assert (rows[0]["arm"], rows[0]["words"]) == (first, "baseline")


def test_runs_of_other_code_are_another_arm(recipe: Path) -> None:  # noqa: F811
    runs = recipe.parent / "runs"
    for seed in (0, 1):
        assert run("run", recipe, "--runs", runs, "--seed", seed)[0] == 0
    folders = [str(runs / "game-1"), str(runs / "game-2")]
    _, arms, names = arms_of(folders, ())
    assert names == ["game"] and len(arms) == 1
    manifest = runs / "game-2" / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["plugins"]["bce"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    _, arms, names = arms_of(folders, ())
    assert names == ["game-1", "game-2"] and len(arms) == 2


def test_a_page_that_cannot_be_written_is_refused_before_any_run(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    (recipe.parent / "mine.html").write_text("<p>mine")
    for page, complaint in (
        (recipe.parent, "is a folder; name a file"),
        (recipe / "page.html", "is not a writable folder"),
        (recipe.parent / "mine.html", "exists and is not a page from ganlab"),
    ):
        code, _, stderr = run("compare", recipe, other, "-o", page, "--runs", recipe.parent / "r")
        assert code == 2 and complaint in stderr and len(stderr.splitlines()) == 1
    assert not (recipe.parent / "r").exists()


def test_recipes_without_a_judge_are_refused_before_anything_is_trained(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    text = recipe.read_text().replace(', evaluation_path = "held_out"', ", held_out_share = 0.0")
    assert text != recipe.read_text()
    recipe.write_text(text)
    runs = recipe.parent / "runs"
    for command in (("compare", recipe, other), ("ablate", recipe, "--without", "ema")):
        code, _, stderr = run(*command, "--runs", runs, "--seeds", "0")
        assert code == 2
        assert "nothing to compare" in stderr and "give the data plugin held-out images" in stderr
        assert len(stderr.splitlines()) == 1
    assert not runs.exists()


def test_runs_without_a_figure_in_common_are_no_comparison(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    text = recipe.read_text().replace(', evaluation_path = "held_out"', ", held_out_share = 0.0")
    recipe.write_text(text)
    runs = recipe.parent / "runs"
    for file in (recipe, other):
        assert run("run", file, "--runs", runs)[0] == 0
    code, stdout, stderr = run("compare", runs / "game-1", runs / "other-1", "--runs", runs)
    assert code == 2
    assert "no figure in common (game-1 has none; other-1 has none)" in stderr
    assert "images/s" in stdout  # what there is is shown


# --- tables, from runs that are made up ----------------------------------------------------------


def test_paces_that_differ_by_chance_alone_make_no_view_of_their_own() -> None:
    arms = [
        arm(name, *[record(s, [1.0, 2.0, 3.0], pace=1 + 0.01 * s + more) for s in range(3)])
        for name, more in (("base", 0.0), ("same", 0.02))
    ]
    assert "equal training time" not in by_view(arms)


def test_a_run_that_was_slowed_down_is_held_to_the_iterations_of_its_arm() -> None:
    base = arm("base", *[record(s, [1.0, 2.0, 3.0], pace=2.0) for s in range(3)])
    paces = (1.0, 1.0, 9.0)  # somebody else used the machine
    fast = [record(s, [1.0, 2.0, 3.0, 4.0], pace=paces[s]) for s in range(3)]
    table = by_view([base, arm("fast", *fast)])["equal training time"]
    assert [row.value.mean for row in table.rows if row.value] == [2.0, 4.0]


def test_equal_time_needs_an_evaluation_early_enough() -> None:
    slow = arm("slow", *[record(s, [1.0], pace=10.0) for s in range(2)])
    fast = arm("fast", *[record(s, [2.0], pace=1.0) for s in range(2)])
    assert "equal training time" not in by_view([slow, fast])


def test_arms_judged_at_other_iterations_are_compared_where_both_were() -> None:
    base = arm("base", *[record(s, [1.0, 2.0, 3.0]) for s in range(2)])
    ours = arm("ours", *[record(s, [5.0, 6.0]) for s in range(2)])
    comparison = compare("x", [base, ours])
    table = comparison.tables[0]
    assert table.view == "equal iterations, 20"
    assert [row.value.mean for row in table.rows if row.value] == [2.0, 6.0]
    assert comparison.images and comparison.images.rows[0].scores["base"].mean == 2.0


def test_an_arm_without_a_figure_leaves_the_images_of_the_others() -> None:
    base = arm("base", record(0, [1.0]), record(1, [2.0]))
    lost = arm("lost", record(0, [1.0], "diverged"), record(1, [1.0], "diverged"))
    ours = arm("ours", record(0, [2.0]), record(1, [4.0]))
    comparison = compare("x", [base, lost, ours])
    assert comparison.images
    assert comparison.images.tallies.keys() == {"ours"}
    assert comparison.images.rows[0].scores.keys() == {"base", "ours"}
    assert "lost: 2 of 2 runs (seed 0, 1) diverged and gave no figure." in comparison.notes


def test_a_figure_without_a_better_direction_has_no_winner() -> None:
    def runs(shift: float) -> list:
        made = [record(s, [1.0 + s]) for s in range(2)]
        for one in made:
            for evaluation in one.evaluations:
                evaluation.figures["hf_ratio"] = 0.5 + shift
                for scores in evaluation.images.values():
                    scores["hf_ratio"] = 0.5 + shift
        return made

    comparison = compare("x", [arm("base", *runs(0)), arm("ours", *runs(0.1))], ["hf_ratio"])
    assert comparison.images and comparison.images.figure == "hf_ratio"
    assert comparison.images.tallies == {}


def test_other_threads_are_told() -> None:
    arms = [arm(name, record(0, [1.0]), record(1, [2.0])) for name in ("base", "ours")]
    for number, one in enumerate(arms):
        for made in one.runs:
            made.manifest["threads"] = 1 + number
    assert any("different numbers of CPU threads" in n for n in compare("x", arms).notes)
