"""`--plan --effect`: how many seeds would show a difference, from the runs that exist."""

import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_compare import arm, data, other, recipe, record, run  # noqa: F401

from ganlab.cli import main
from ganlab.compare.seeds import find_needs, words_of
from ganlab.report.model import Arm
from ganlab.report.statistics import deviation_interval, seeds_needed

pytestmark = pytest.mark.usefixtures("few_samples")


def arms_that_differ_by(*differences: float) -> list[Arm]:
    """Two arms with these differences, which share a large effect of the seed."""
    base = [record(s, [100.0 * s]) for s in range(len(differences))]
    ours = [record(s, [100.0 * s + d]) for s, d in enumerate(differences)]
    return [arm("base", *base), arm("ours", *ours)]


def test_the_number_follows_from_the_paired_differences() -> None:
    needs = find_needs(0.5, ["base", "ours"], arms_that_differ_by(1.0, 2.0, 3.0))
    (row,) = needs.rows
    assert (row.figure, row.deviation, row.bound) == ("psnr_y", pytest.approx(1.0), False)
    assert row.source == "paired differences of 3 seeds"
    assert row.seeds == seeds_needed(0.5, 1.0) == 34
    low, high = deviation_interval(1.0, 2)
    assert (row.deviation_low, row.deviation_high) == pytest.approx((low, high))
    assert (row.seeds_low, row.seeds_high) == (seeds_needed(0.5, low), seeds_needed(0.5, high))
    words = "\n".join(words_of(needs))
    assert "psnr_y, ours against base: 34 seeds (11 to more than 1,000) show" in words


def test_one_arm_alone_gives_an_upper_bound_that_says_so() -> None:
    base = arm("base", *[record(s, [float(s)]) for s in range(3)])
    for order in (["base", "ours"], ["ours", "base"]):
        needs = find_needs(1.0, order, [base])
        (row,) = needs.rows
        assert row.bound
        assert row.deviation == pytest.approx(math.sqrt(2))
        assert row.seeds == seeds_needed(1.0, math.sqrt(2))
        words = "\n".join(words_of(needs))
        assert "at most about" in words
        assert "3 runs of base alone, as if the other arm varied as much" in words


def test_arms_of_different_seeds_give_a_bound_from_both_variances() -> None:
    base = arm("base", *[record(s, [3.0 * s]) for s in range(3)])
    ours = arm("ours", *[record(s, [4.0 * s]) for s in range(5, 8)])
    (row,) = find_needs(1.0, ["base", "ours"], [base, ours]).rows
    assert (row.bound, row.deviation) == (True, pytest.approx(5.0))


def test_too_few_runs_are_named_with_what_to_run_first() -> None:
    assert "no seed was run with both" in find_needs(1.0, ["a", "b"], []).rows[0].source
    few = find_needs(1.0, ["base", "ours"], arms_that_differ_by(1.0))
    assert few.rows[0].seeds is None
    assert list(words_of(few)) == [
        "psnr_y, ours against base: unknown: only one seed was run with both, and a variance "
        "needs two; run seeds 0..2 of both first"
    ]
    equal = find_needs(1.0, ["base", "ours"], arms_that_differ_by(0.0, 0.0))
    assert "all equal and show no spread" in equal.rows[0].source


def test_a_run_that_diverged_is_told_beside_the_number() -> None:
    base, ours = arms_that_differ_by(1.0, 2.0, 3.0)
    lost = arm("ours", *ours.runs[:2], record(2, [9.0], "diverged"))
    needs = find_needs(1.0, ["base", "ours"], [base, lost])
    assert needs.rows[0].source == "paired differences of 2 seeds"
    assert any("1 of 3 runs diverged" in note for note in needs.notes)


def test_the_plan_tells_the_seeds_from_all_runs_in_the_folder(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    runs = recipe.parent / "runs"
    effect = ("compare", recipe, other, "--runs", runs, "--effect", "0.1")
    assert run(*effect)[0] == 2
    code, stdout, stderr = run(*effect, "--plan", "--seeds", "0..1")
    assert code == 0
    assert "no seed was run with both" in stdout
    assert "4 to be made" in stderr
    found = data("compare", recipe, other, "--runs", runs, "--seeds", "0,1,7", "--figure", "psnr_y")
    assert found["tables"]
    needs = data(*effect, "--plan", "--seeds", "0..1", "--figure", "psnr_y")
    (row,) = needs["rows"]
    assert row["source"] == "paired differences of 3 seeds"
    assert row["seeds"] >= 2 and row["seeds_low"] <= row["seeds"]
    assert (needs["effect"], needs["power"]) == (0.1, 0.8)
    variants = data(
        "ablate", recipe, "--without", "ema", "--runs", runs, "--plan", "--effect", "0.1"
    )
    assert {row["arm"] for row in variants["rows"]} == {"game-without-ema"}
    assert all(row["bound"] for row in variants["rows"])


def test_two_seeds_show_an_effect_however_large() -> None:
    assert [seeds_needed(size, 1.0) for size in (1e3, 1e9, 1e300)] == [2, 2, 2]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "command",
    [["compare", "a.toml", "b.toml", "--plan", "--effect"], ["verify", "a.zip", "--tolerance"]],
)
def test_a_number_that_is_not_finite_is_refused(command: list[str], number: str) -> None:
    result = CliRunner().invoke(main, [*command, number])
    assert result.exit_code == 2
    assert "is not a finite number" in result.output or "is not in the range" in result.output
