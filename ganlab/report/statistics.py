"""Statistics over a few training runs: intervals, paired differences, smallest visible effects.

The unit is the seed: one whole training run. Two recipes that share their seeds share crops, noise
and initial weights, so their differences are taken seed by seed.

Over seeds the interval is Student's t. The table shows the share of nominal 95 % intervals that
contain the true mean, measured on 600 to 4000 samples:

    n     normal: t  BCa    exponential: t  BCa
    3           .95  .73               .89  .70
    5           .95  .86               .88  .80
    10          .95  .88               .90  .88
    20          .95  .94               .92  .92

So the intervals of the bootstrap (BCa) are too narrow for a few seeds. It is used over images,
where there are at least 20; over fewer images the interval is t again.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # a part is imported when it is first used: 60 MB that a run's own page spares

LEVEL = 0.95
POWER = 0.8
FEWEST_FOR_BCA = 20
FEWEST_FOR_WILCOXON = 6  # with fewer pairs no outcome has p < 0.05
RESAMPLES = 9999
MOST_SEEDS = 1000  # as many as one command runs


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate of a mean, with its confidence interval if there is one."""

    mean: float
    low: float | None
    """None when the values do not show a spread: one value only, or all equal."""
    high: float | None
    count: int
    method: str
    """"t" or "BCa"; "" without an interval."""

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of a mean: mean +- t(n - 1) s / sqrt(n).

    There is no interval for one value, or for equal values other than 0. Seeds that agree to the
    last digit show that the figure is coarse (a count of modes), not that every seed would agree.
    Differences that are all 0 come from runs that are the same.

    :raises ValueError: when there are no values, or one is not finite.
    """
    x = _finite(values)
    mean = float(x.mean())
    if len(x) == 1 or (_deviation(x) == 0 and x[0] != 0):
        return Interval(float(x[0]), None, None, len(x), "")
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * _deviation(x) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x), "t")


def paired_difference(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """Ours minus the baseline's, over the seeds that both have; None when they share no seed."""
    seeds = sorted(ours.keys() & baseline.keys())
    return interval([ours[s] - baseline[s] for s in seeds]) if seeds else None


def unpaired_difference(ours: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The same difference without pairing: Welch's interval (Biometrika 34, 1947).

    Shown beside the paired one, to show the gain from common random numbers.
    """
    x, y = _finite(ours), _finite(baseline)
    mean = float(x.mean() - y.mean())
    parts = [_deviation(part) ** 2 / len(part) for part in (x, y)]
    if min(len(x), len(y)) < 2 or (sum(parts) == 0 and mean != 0):
        return Interval(mean, None, None, len(x), "")
    if sum(parts) == 0:
        return Interval(0.0, 0.0, 0.0, len(x), "t")
    freedom = sum(parts) ** 2 / sum(
        v**2 / (len(part) - 1) for v, part in zip(parts, (x, y), strict=True)
    )
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(parts))
    return Interval(mean, mean - half, mean + half, len(x), "t")


def over_images(differences: Sequence[float]) -> Interval:
    """The interval of a mean over images: how much it could differ for other images of the kind.

    BCa bootstrap (Efron 1987, JASA 82), always with the same resamples; t below 20 images.
    """
    x = _finite(differences)
    if len(x) < FEWEST_FOR_BCA or _deviation(x) == 0:
        return interval(differences)
    rng = np.random.default_rng(0)
    found = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="BCa", rng=rng
    ).confidence_interval
    return Interval(float(x.mean()), float(found.low), float(found.high), len(x), "BCa")


def wilcoxon(differences: Sequence[float]) -> float | None:
    """p value of the signed-rank test for symmetry about zero; None below 6 differences not 0."""
    x = _finite(differences)
    x = x[x != 0]
    return float(scipy.stats.wilcoxon(x).pvalue) if len(x) >= FEWEST_FOR_WILCOXON else None


def smallest_visible(differences: Sequence[float]) -> float | None:
    """The smallest true effect that this number of seeds would detect in four of five cases.

    It is the effect d at which a two-sided 5 % t test has a power of 0.8, for n differences with
    the deviation s of these: noncentral t with n - 1 degrees of freedom at d sqrt(n) / s.

    :returns: in the unit of the differences; None for a single one, or for equal ones.
    """
    x = _finite(differences)
    deviation = _deviation(x)
    if deviation == 0:
        return None
    edge = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(x) - 1))

    def lacking(shift: float) -> float:
        return power(shift, len(x)) - POWER

    shift = float(scipy.optimize.brentq(lacking, 0.1, 10 * edge + 10))
    return shift * deviation / math.sqrt(len(x))


def power(shift: float, count: int) -> float:
    """The share of experiments in which the t interval of n values excludes zero.

    1 - F(t(n - 1)), with F the noncentral t distribution (n - 1 degrees of freedom) at this shift.
    The far tail is left out: it is below 1e-3 wherever the power is 0.8.

    :param shift: d sqrt(n) / s, for values of mean d and standard deviation s.
    :param count: n, at least 2.
    """
    edge = float(scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1))
    return float(scipy.stats.nct.sf(edge, count - 1, shift))


def seeds_needed(effect: float, deviation: float) -> int | None:
    """The smallest number of seeds that shows a true effect in four of five experiments.

    :param effect: the true mean of the paired differences, more than 0.
    :param deviation: the standard deviation of the paired differences.
    :returns: at least 2, since one seed has no interval; None for more than `MOST_SEEDS`.
    """

    def shows(count: int) -> bool:
        return power(ratio * math.sqrt(count), count) >= POWER

    if deviation == 0:
        return 2
    ratio = min(effect / deviation, 100.0)  # where 2 seeds show it surely; t overflows far beyond
    counts = range(2, MOST_SEEDS + 1)
    found = bisect_left(counts, True, key=shows)  # power grows with the number of seeds
    return counts[found] if found < len(counts) else None


def deviation_interval(deviation: float, freedom: float) -> tuple[float, float]:
    """95 % interval of a standard deviation: s sqrt(f / chi2), with f degrees of freedom.

    It is exact for normal values.
    """
    tails = scipy.stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], freedom)
    low, high = deviation * np.sqrt(freedom / tails)
    return float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation, with n - 1; 0 for a single value."""
    return _deviation(_finite(values))


def effect(difference: Interval | None, higher_is_better: bool | None = None) -> str:
    """The difference in words; only "higher" or "lower" when the better direction is unknown."""
    if difference is None:
        return "no seed in common"
    if difference.low is None:
        if difference.count == 1:
            return "one seed: no interval"
        return "the same in every seed: no interval"
    if difference.low == difference.high == 0:
        return "identical"
    if not difference.excludes_zero:
        return "no measurable effect"
    if higher_is_better is None:
        return "higher" if difference.mean > 0 else "lower"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def _finite(values: Sequence[float]) -> Any:
    x = np.asarray(values, float)
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(f"statistics need at least one value, all finite, not {list(values)}")
    return x


def _deviation(x: Any) -> float:
    """Sample standard deviation; exactly 0 for equal values, whose mean may be rounded."""
    return 0.0 if len(x) < 2 or x.min() == x.max() else float(x.std(ddof=1))
