"""The statistics of comparing runs: closed forms, coverage, and what they refuse."""

import math

import numpy as np
import pytest
from scipy import stats

from ganlab.report.statistics import (
    Interval,
    deviation_interval,
    effect,
    interval,
    over_images,
    paired_difference,
    seeds_needed,
    smallest_visible,
    spread,
    unpaired_difference,
    wilcoxon,
)


def test_the_interval_of_1_2_3_is_known_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.30265 / math.sqrt(3)  # t(2) at 97.5 %, s = 1
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-5)
    assert found.half_width == pytest.approx(half, rel=1e-5)
    assert (found.count, found.method) == (3, "t")


def test_one_value_has_no_interval() -> None:
    found = interval([1.5])
    assert (found.mean, found.low, found.high, found.half_width) == (1.5, None, None, None)
    assert not found.excludes_zero
    assert smallest_visible([1.5]) is None


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3])
def test_equal_values_say_nothing_of_their_spread_unless_nothing_differs(value: float) -> None:
    for found in (interval([value] * 5), over_images([value] * 30)):
        assert found.low == found.high == (0.0 if value == 0 else None)
        assert found.mean == value
        assert not found.excludes_zero


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_is_not_finite_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="all finite"):
        interval(values)


def test_a_paired_difference_takes_the_seeds_that_both_have() -> None:
    ours, baseline = {0: 1.0, 1: 3.0, 2: 6.0}, {1: 1.0, 2: 3.0, 3: 9.0}
    found = paired_difference(ours, baseline)
    assert found
    assert (found.mean, found.count) == (2.5, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_paired_difference_changes_its_sign_with_the_arms() -> None:
    ours, baseline = {0: 1.0, 1: 3.0, 2: 6.0}, {0: 2.0, 1: 2.5, 2: 3.0}
    one, other = paired_difference(ours, baseline), paired_difference(baseline, ours)
    assert one and other and one.low is not None and other.high is not None
    assert one.mean == -other.mean
    assert one.low == pytest.approx(-other.high)


def test_what_a_seed_does_to_both_arms_leaves_the_paired_interval_alone() -> None:
    rng = np.random.default_rng(1)
    noise, seed = rng.normal(size=5), 10 * rng.normal(size=5)
    ours = dict(enumerate(0.5 + noise + seed))
    baseline = dict(enumerate(seed))
    paired = paired_difference(ours, baseline)
    unpaired = unpaired_difference(list(ours.values()), list(baseline.values()))
    assert paired
    assert paired.half_width == pytest.approx(interval(noise).half_width)
    assert unpaired.half_width is not None
    assert unpaired.half_width > 5 * (paired.half_width or math.inf)
    assert unpaired.mean == pytest.approx(paired.mean)


def test_the_unpaired_interval_is_welchs() -> None:
    x, y = [1.0, 2.0, 4.0, 8.0], [1.0, 1.5, 1.7]
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    found = unpaired_difference(x, y)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_nineteen_of_twenty_intervals_over_5_seeds_hold_the_mean() -> None:
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(size=5)) for _ in range(2000)]
    held = sum(not one.excludes_zero for one in found) / len(found)
    assert 0.935 < held < 0.965


def test_twenty_paired_nulls_miss_zero_three_times_at_most() -> None:
    rng = np.random.default_rng(20)
    missed = 0
    for _ in range(20):
        seed = rng.normal(size=5)
        arms = [dict(enumerate(seed + 0.3 * rng.normal(size=5))) for _ in range(2)]
        difference = paired_difference(*arms)
        assert difference
        missed += difference.excludes_zero
    assert missed <= 3


def test_an_effect_of_the_smallest_visible_size_is_seen_four_times_in_five() -> None:
    sample = [-1.0, -0.5, 0.0, 0.5, 1.0]
    effect = smallest_visible(sample)
    assert effect
    effect /= np.std(sample, ddof=1)
    rng = np.random.default_rng(0)
    seen = [interval(effect + rng.normal(size=5)).excludes_zero for _ in range(4000)]
    assert 0.77 < np.mean(seen) < 0.83


def test_more_seeds_see_smaller_effects() -> None:
    sizes = [smallest_visible([-1.0, 1.0] * n) for n in (1, 2, 5, 20)]
    assert sizes == sorted(sizes, key=lambda s: -(s or 0))
    assert smallest_visible([0.0] * 5) is None


def test_the_interval_over_images_is_bca_and_repeats_to_the_bit() -> None:
    x = np.random.default_rng(3).exponential(size=60) - 0.5
    found = over_images(x)
    assert found == over_images(x)
    assert (found.method, found.count) == ("BCa", 60)
    assert found.low is not None
    assert found.high is not None
    # BCa follows the skew, t does not
    assert found.high - found.mean > found.mean - found.low
    assert over_images(x[:19]).method == "t"


def test_the_signed_rank_test_wants_six_differences_that_are_not_0() -> None:
    assert wilcoxon([1.0] * 5 + [0.0] * 9) is None
    assert wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)


@pytest.mark.parametrize(
    ("found", "higher_is_better", "words"),
    [
        (Interval(1, 0.5, 1.5, 3, "t"), True, "better"),
        (Interval(1, 0.5, 1.5, 3, "t"), False, "worse"),
        (Interval(-1, -1.5, -0.5, 3, "t"), True, "worse"),
        (Interval(-1, -1.5, -0.5, 3, "t"), False, "better"),
        (Interval(-1, -1.5, -0.5, 3, "t"), None, "lower"),
        (Interval(1, -0.5, 2.5, 3, "t"), True, "no measurable effect"),
        (Interval(0, 0, 0, 3, "t"), True, "identical"),
        (Interval(1, None, None, 1, ""), True, "one seed: no interval"),
        (Interval(1, None, None, 2, ""), True, "the same in every seed: no interval"),
        (None, True, "no seed in common"),
    ],
)
def test_a_difference_in_words(
    found: Interval | None, higher_is_better: bool | None, words: str
) -> None:
    assert effect(found, higher_is_better) == words


@pytest.mark.parametrize(("effect", "deviation"), [(0.5, 1.0), (0.1, 0.1), (2.0, 9.0)])
def test_the_seeds_needed_show_the_effect_four_times_in_five_and_one_less_does_not(
    effect: float, deviation: float
) -> None:
    count = seeds_needed(effect, deviation)
    assert count
    rng = np.random.default_rng(0)
    shown = []
    for size in (count, count - 1):
        samples = rng.normal(effect, deviation, (20_000, size))
        half = stats.t.ppf(0.975, size - 1) * samples.std(1, ddof=1) / math.sqrt(size)
        shown.append(float(np.mean(np.abs(samples.mean(1)) > half)))
    assert shown[0] > 0.79
    assert shown[1] < 0.81
    # the interval of the simulation is the interval of the comparison
    row = rng.normal(effect, deviation, count)
    assert interval(row).half_width == pytest.approx(
        stats.t.ppf(0.975, count - 1) * row.std(ddof=1) / math.sqrt(count)
    )


def test_the_seeds_needed_and_the_smallest_visible_effect_agree() -> None:
    sample = [-1.0, -0.5, 0.0, 0.5, 1.0]
    visible = smallest_visible(sample)
    assert visible
    assert seeds_needed(1.001 * visible, spread(sample)) == 5
    assert seeds_needed(0.999 * visible, spread(sample)) == 6


def test_the_seeds_needed_have_a_least_and_a_limit() -> None:
    assert seeds_needed(1e6, 1.0) == 2
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(1e-6, 1.0) is None
    # a normal test would take (1.96 + 0.84)^2 / 0.1^2 = 785 seeds
    assert seeds_needed(0.1, 1.0) == pytest.approx(787, abs=2)


def test_the_interval_of_a_deviation_holds_it_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        low, high = deviation_interval(spread(rng.normal(0, 3.0, 4)), 3)
        held += low < 3.0 < high
    assert 0.935 < held / 2000 < 0.965
