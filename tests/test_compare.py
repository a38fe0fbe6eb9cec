"""Comparing recipes: runs reused and continued, seeds paired, the same table after a kill."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import Child, wait_until
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.compare.ablation import plan_ablation
from ganlab.compare.plan import Variant, make_plan, parse_seeds
from ganlab.errors import RecipeError
from ganlab.report.model import Arm, Table
from ganlab.report.tables import compare
from ganlab.runs.folder import RunFolder
from ganlab.runs.records import Evaluation, RunRecord, Series

pytestmark = pytest.mark.usefixtures("few_samples")

RECIPE = """\
iterations = 12
batch_size = 2
evaluate_every = 4
checkpoint_every = 2
watch_every = 3
report_every = 2

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
encoder_decoder = { width = 4, num_blocks = 1 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = { weight = 1.0 }
ema = { decay = 0.9 }
"""


@pytest.fixture
def recipe(tmp_path: Path, compared: Path) -> Path:
    """A small game on photographs, in a folder of its own."""
    for part in ("photos", "held_out"):
        (tmp_path / part).symlink_to(compared / part)
    file = tmp_path / "game.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def other(recipe: Path) -> Path:
    file = recipe.with_name("other.toml")
    file.write_text('extends = "game.toml"\n\n[plugins]\npixel_loss = { weight = 0.1 }\n')
    return file


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def data(*arguments: object) -> dict[str, Any]:
    code, stdout, stderr = run(*arguments, "--json")
    assert code == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found


def tables(found: dict[str, Any]) -> list[Any]:
    """What does not depend on the clock."""
    return [t for t in found["tables"] if "time" not in t["view"]] + [found["images"]]


def test_recipes_are_run_once_a_seed_and_then_used_again(recipe: Path, other: Path) -> None:
    runs = recipe.parent / "runs"
    command = ("compare", recipe, other, "--seeds", "0..1", "--runs", runs)
    code, stdout, stderr = run(*command)
    assert code == 0, stderr
    assert "2 recipes x 2 seeds = 4 runs; 0 exist, 0 to be continued, 4 to be made" in stderr
    assert sorted(p.name for p in runs.iterdir()) == [
        "compare-game-other.html", "game-1", "game-2", "other-1", "other-2",
    ]  # fmt: skip
    assert "last checkpoint, 12 iterations" in stdout
    again = run(*command[:-4], "--seeds", "0..2", "--runs", runs)
    assert "6 runs; 4 exist, 0 to be continued, 2 to be made" in again[2]
    assert len(list(runs.glob("*/recipe.toml"))) == 6


def test_a_run_of_other_code_or_other_values_is_not_used(recipe: Path) -> None:
    runs = recipe.parent / "runs"
    assert run("run", recipe, "--runs", runs, "--seed", 0)[0] == 0
    plan = [Variant("game", recipe)], [0], runs, "cpu"
    assert make_plan(*plan)[0].finished
    assert not make_plan([Variant("game", recipe, ("ema.decay=0.5",))], [0], runs, "cpu")[
        0
    ].finished
    assert not make_plan([Variant("game", recipe)], [1], runs, "cpu")[0].finished
    manifest = RunFolder(runs / "game-1").manifest
    for key, value in (("code", "0" * 64), ("device", "cuda:0"), ("versions", {"torch": "1.0"})):
        whole = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(whole | {key: value}))
        assert not make_plan(*plan)[0].finished
        assert make_plan(*plan)[0].folder is None
        manifest.write_text(json.dumps(whole))
    assert make_plan(*plan)[0].finished


def test_an_interrupted_comparison_goes_on_and_ends_in_the_same_table(
    recipe: Path, other: Path
) -> None:
    whole = recipe.parent / "whole"
    command = ["compare", recipe, other, "--seeds", "0..1"]
    expected = tables(data(*command, "--runs", whole))
    cut = recipe.parent / "cut"
    child = Child(*command, "--runs", cut, cwd=recipe.parent)
    # killed in the middle of the second run, after a checkpoint of it
    wait_until(lambda: bool(list(cut.glob("other-1/checkpoints/*.sha256"))), child)
    child.kill()
    child.wait()
    states = {p.parent.name: RunFolder(p.parent).read_status() for p in cut.glob("*/recipe.toml")}
    assert states["game-1"]["state"] == "done"
    code, _, stderr = run(*command, "--runs", cut)
    assert code == 0
    assert "1 exist" in stderr or "2 exist" in stderr
    assert len(list(cut.glob("*/recipe.toml"))) == 4
    found = tables(data(*command, "--runs", cut))
    assert found == expected


def test_the_plan_runs_nothing_and_tells_what_it_would_cost(recipe: Path, other: Path) -> None:
    runs = recipe.parent / "runs"
    code, stdout, stderr = run("compare", recipe, other, "--runs", runs, "--plan")
    assert (code, stdout) == (0, "")
    assert "2 recipes x 5 seeds = 10 runs" in stderr
    assert "from a few timed iterations" in stderr
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["game.toml"], "a comparison needs at least two recipes or runs"),
        (["game.toml", "game.toml"], "two recipes are called game"),
        (["game.toml", "nothing"], "nothing: not a run folder"),
        (["game.toml", "other.toml", "--seeds", "4..0"], "--seeds 4..0: write 0..4"),
        (["game.toml", "other.toml", "--seeds", "0,0"], "a seed is given twice"),
        (["game.toml", "other.toml", "--seeds", "a"], "write 0..4"),
        (["game.toml", "other.toml", "--set", "ema.decya=1"], "did you mean 'decay'"),
    ],
)
def test_a_slip_is_one_message(
    recipe: Path, other: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(recipe.parent)
    code, _, stderr = run("compare", *arguments)
    assert code == 2
    assert complaint in stderr
    assert len(stderr.splitlines()) == 1
    assert not (recipe.parent / "runs").exists()


def test_seeds_as_they_are_written() -> None:
    assert parse_seeds("0..3") == [0, 1, 2, 3]
    assert parse_seeds("5") == [5]
    assert parse_seeds("0, 2,7..8") == [0, 2, 7, 8]


# --- ablation ------------------------------------------------------------------------------------


def test_an_ablation_leaves_out_what_can_be_left_out_and_says_why_the_rest_stays(
    recipe: Path,
) -> None:
    found = plan_ablation(recipe, (), (), ())
    assert [v.name for v in found.variants] == [
        "game",
        "game-without-pixel_loss",
        "game-without-ema",
    ]
    assert found.refused.keys() == {
        "image_folder", "bicubic", "encoder_decoder", "patch_discriminator", "bce",
    }  # fmt: skip
    assert "another task" in found.refused["bicubic"]
    assert "make_generator" in found.refused["encoder_decoder"]


def test_options_are_varied_one_value_a_variant(recipe: Path) -> None:
    vary = ["pixel_loss.weight=0.1,10", 'pixel_loss.kind="l1","mse"', "adam={ betas = [0.0, 0.9] }"]
    found = plan_ablation(recipe, (), (), vary)
    assert [v.overrides for v in found.variants[1:]] == [
        ("pixel_loss.weight=0.1",),
        ("pixel_loss.weight=10",),
        ('pixel_loss.kind="mse"',),
        ("adam={ betas = [0.0, 0.9] }",),
    ]
    # the recipe's own value makes no other recipe
    assert found.refused == {"game-pixel_loss.kind-l1": "it is the same recipe as game"}
    assert [v.name for v in found.variants[1:3]] == [
        "game-pixel_loss.weight-0.1", "game-pixel_loss.weight-10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("without", "vary", "complaint"),
    [
        (["emma"], [], "no plugin 'emma'; did you mean 'ema'?"),
        (["bce"], [], "--without bce: "),
        ([], ["pixel_loss.weight"], "write it as key=value,value"),
        ([], ["pixel_loss.weight=1,]"], "write it as key=value,value"),
        ([], ["pixel_loss.wieght=1,2"], "did you mean 'weight'"),
        ([], ["seed=1,2"], "seeds are paired, not compared; use --seeds"),
        ([], ["pixel_loss.weight=1,1.0"], "nothing to compare: it is the same recipe as game"),
    ],
)
def test_a_slip_in_an_ablation_is_refused_before_anything_runs(
    recipe: Path, without: list[str], vary: list[str], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint.replace("?", r"\?")):
        plan_ablation(recipe, (), without, vary)


ADDS_ZERO = '''\
from ganlab import Plugin, hookimpl


class AddsZero(Plugin):
    """A loss that is zero."""

    @hookimpl
    def generator_loss(self, fake):
        return {"G/adds_zero": 0 * fake.sum()}
'''
DARKENS = '''\
from ganlab import Plugin, hookimpl


class Darkens(Plugin):
    """A loss that spoils the pictures."""

    @hookimpl
    def generator_loss(self, fake):
        return {"G/darkens": 10 * fake.square().mean()}
'''
# not zero, so that rounding lets the runs drift apart, and of no effect on average
STIRS = '''\
import torch

from ganlab import Plugin, hookimpl


class Stirs(Plugin):
    """A loss too small to matter and too large to leave the last digits alone."""

    @hookimpl
    def generator_loss(self, fake):
        noise = torch.randn(fake.shape, generator=self.rng)
        return {"G/stirs": 1e-7 * (noise * fake).sum()}
'''


def test_a_planted_effect_is_found_and_a_planted_null_is_not(recipe: Path) -> None:
    (recipe.parent / "adds_zero.py").write_text(ADDS_ZERO)
    (recipe.parent / "darkens.py").write_text(DARKENS)
    game = recipe.read_text() + "adam = { learning_rate = 1e-2 }\n"
    for name in ("adds_zero", "darkens"):
        game += f'{name} = {{ use = "./{name}.py" }}\n'
    recipe.write_text(game)
    found = data(
        "ablate", recipe, "--without", "adds_zero", "--without", "darkens", "--seeds", "0..3",
        "--runs", recipe.parent / "runs", "--figure", "psnr_y",
    )  # fmt: skip
    baseline, null, strong = found["tables"][0]["rows"]
    assert baseline["words"] == "baseline"
    assert null["words"] == "identical"
    assert strong["words"] == "better"
    assert strong["difference"]["low"] > 0
    assert (recipe.parent / "runs" / "ablate-game.html").is_file()


@pytest.mark.long
def test_the_null_misses_zero_three_times_of_twenty_at_most(recipe: Path) -> None:
    (recipe.parent / "stirs.py").write_text(STIRS)
    game = recipe.read_text().replace("iterations = 12", "iterations = 30")
    recipe.write_text(game + 'stirs = { use = "./stirs.py" }\nadam = { learning_rate = 1e-2 }\n')
    missed, sizes = 0, []
    for repetition in range(20):
        seeds = f"{10 * repetition}..{10 * repetition + 3}"
        found = data("ablate", recipe, "--without", "stirs", "--seeds", seeds, "--figure", "psnr_y",
                     "--runs", recipe.parent / f"runs{repetition}")  # fmt: skip
        difference = found["tables"][0]["rows"][1]["difference"]
        assert difference["low"] < difference["high"]
        sizes.append(difference["mean"])
        missed += not difference["low"] <= 0 <= difference["high"]
    assert np.std(sizes) > 0
    assert missed <= 3


# --- tables, from runs that are made up ----------------------------------------------------------


def record(seed: int, scores: list[float], state: str = "done", pace: float = 1.0) -> RunRecord:
    """A run evaluated every 10 iterations, which takes `pace` seconds an iteration."""
    evaluations = [
        Evaluation(
            10 * i, 10 * i * pace, {"psnr_y": s}, {"a": {"psnr_y": s}, "b": {"psnr_y": s + 1}}
        )
        for i, s in enumerate(scores, 1)
    ]
    recipe = {"seed": seed, "best_metric": "psnr_y", "best_is": "highest", "iterations": 30,
              "batch_size": 2, "d_steps": 1, "g_steps": 1, "precision": "float32"}  # fmt: skip
    status = {"state": state, "seconds": 30 * pace, "iteration": 30, "peak_memory": 2**20}
    none = Series(np.empty(0, np.int64), np.empty(0))
    folder = RunFolder(Path("nowhere"))
    return RunRecord(folder, recipe, {}, status, {}, none, evaluations, {}, [], [])


def arm(name: str, *records: RunRecord) -> Arm:
    return Arm(name, records)


def by_view(arms: list[Arm]) -> dict[str, Table]:
    return {table.view.partition(",")[0]: table for table in compare("x", arms).tables}


def test_the_three_views_take_the_evaluations_that_they_name() -> None:
    slow = [record(s, [1.0, 5.0, 3.0], pace=2.0) for s in range(2)]
    fast = [record(s, [2.0, 4.0, 6.0, 8.0], pace=1.0) for s in range(2)]
    views = by_view([arm("slow", *slow), arm("fast", *fast)])
    means = {view: [row.value.mean for row in t.rows if row.value] for view, t in views.items()}
    assert means == {
        "equal iterations": [3.0, 6.0],
        "equal training time": [5.0, 8.0],  # 40 s, the end of the fast one
        "best checkpoint of each run": [5.0, 8.0],
    }


def test_differences_are_paired_by_seed() -> None:
    base = arm("base", *[record(s, [10.0 * s]) for s in range(4)])
    ours = arm("ours", *[record(s, [10.0 * s + 1 + 0.1 * s]) for s in range(4)])
    row = by_view([base, ours])["last checkpoint"].rows[1]
    assert row.difference
    assert row.unpaired
    assert row.difference.mean == pytest.approx(1.15)
    assert row.words == "better"
    assert row.unpaired.low is not None
    assert row.unpaired.low < 0
    assert (row.unpaired.half_width or 0) > 50 * (row.difference.half_width or 0)


@pytest.mark.parametrize(
    ("states", "note"),
    [
        (["stopped"], "ours: the run did not reach the end."),
        (["stopped", "done", "killed"], "ours: 2 of 3 runs (seed 0, 2) did not reach the end."),
        (["failed", "done"], "ours: 1 of 2 runs (seed 0) failed and gave no figure; the means are "
                             "over the others."),
    ],
)  # fmt: skip
def test_a_note_names_the_runs_that_did_not_end_well(states: list[str], note: str) -> None:
    runs = [record(seed, [1.0], state) for seed, state in enumerate(states)]
    assert compare("x", [arm("ours", *runs)]).notes[0] == note


def test_a_diverged_run_has_no_figure_and_is_told() -> None:
    base = arm("base", record(0, [1.0]), record(1, [2.0]), record(2, [3.0]))
    ours = arm("ours", record(0, [2.0]), record(1, [2.5], "diverged"), record(2, [4.5]))
    comparison = compare("x", [base, ours])
    row = comparison.tables[0].rows[1]
    assert row.difference
    assert (row.difference.count, row.difference.mean) == (2, 1.25)
    assert any("ours: 1 of 3 runs (seed 1) diverged" in note for note in comparison.notes)
    assert comparison.costs[1].states == "2 done, 1 diverged"


def test_one_seed_is_never_an_interval() -> None:
    comparison = compare("x", [arm("base", record(0, [1.0])), arm("ours", record(0, [2.0]))])
    row = comparison.tables[0].rows[1]
    assert row.difference
    assert (row.difference.mean, row.difference.low) == (1.0, None)
    assert row.words == "one seed: no interval"
    assert any("no interval" in note for note in comparison.notes)


def test_images_are_won_and_lost_and_the_worst_come_first() -> None:
    base = arm("base", record(0, [10.0]), record(1, [12.0]))
    ours = arm("ours", record(0, [11.0]), record(1, [12.0]))
    images = compare("x", [base, ours]).images
    assert images
    assert [row.image for row in images.rows] == ["a", "b"]
    assert images.rows[0].differences["ours"].mean == 0.5
    tally = images.tallies["ours"]
    assert (tally.won, tally.lost, tally.tied, tally.p) == (2, 0, 0, None)


def test_a_figure_that_no_run_has_is_refused() -> None:
    with pytest.raises(RecipeError, match="no run has it; there are psnr_y"):
        compare("x", [arm("base", record(0, [1.0]))], ["fid"])
