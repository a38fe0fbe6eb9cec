"""How many seeds would show a difference of a given size, from the variance of runs that exist."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ganlab.report.model import Arm, Comparison
from ganlab.report.statistics import (
    LEVEL,
    MOST_SEEDS,
    POWER,
    deviation_interval,
    seeds_needed,
    spread,
)
from ganlab.report.tables import compare, values_of
from ganlab.report.wording import decimals

FEWEST = 3
"""Seeds to run for a first variance. Two would do, but say almost nothing of it."""


@dataclass(frozen=True, slots=True)
class Need:
    """The number of seeds that shows a difference of one figure between an arm and the baseline."""

    figure: str
    arm: str
    baseline: str
    source: str
    """The values that the deviation was computed from, in words; the reason if there are none."""
    bound: bool = False
    """Whether the number is an upper bound, because no seed was run with both arms."""
    deviation: float | None = None
    """Standard deviation of the difference between the arms, from seed to seed."""
    deviation_low: float | None = None
    """Lower end of its 95 % interval: a deviation from a few runs is itself uncertain."""
    deviation_high: float | None = None
    seeds: int | None = None
    """None when it is unknown, or more than the limit of `seeds_needed`."""
    seeds_low: int | None = None
    """The same for the lower end of the deviation."""
    seeds_high: int | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """The answers of `--plan --effect`, one for each figure and arm."""

    effect: float
    """A true difference, in the unit of each figure."""
    rows: tuple[Need, ...]
    notes: tuple[str, ...]


def find_needs(
    effect: float, order: Sequence[str], arms: Sequence[Arm], figures: Sequence[str] = ()
) -> Needs:
    """Compute for each arm and figure how many seeds would show an effect four times in five.

    The test is that of the comparison: the 95 % t interval of the paired differences excludes 0.

    :param effect: a true difference, in the unit of the figure.
    :param order: names of all arms, the baseline first, those without runs too.
    :param arms: the arms that have runs.
    :param figures: evaluation figures; the usual ones when left out.
    :raises RecipeError: for a figure that no run has.
    """
    there = {arm.name: arm for arm in arms}
    known = [there[name] for name in order if name in there]
    compared = compare("", known, figures) if known else Comparison("", ())
    shown = list(dict.fromkeys(table.figure for table in compared.tables)) or list(figures) or [""]
    rows = []
    for figure in shown:
        found = values_of(known, figure, compared.chosen)
        values = dict(zip([arm.name for arm in known], found, strict=True))
        rows += [_need(effect, figure, order[0], name, values) for name in order[1:]]
    return Needs(effect, tuple(rows), tuple(_notes(known)))


def seeds_there(parent: Path) -> list[int]:
    """The seeds of all runs in a folder, whatever their recipes."""
    texts = (path.read_text(encoding="utf-8") for path in parent.glob("*/recipe.toml"))
    found = (re.search(r"^seed = (\d+)$", text, re.MULTILINE) for text in texts)
    return sorted({int(seed[1]) for seed in found if seed})


def _need(
    effect: float, figure: str, baseline: str, arm: str, values: Mapping[str, Mapping[int, float]]
) -> Need:
    ours, theirs = values.get(arm, {}), values.get(baseline, {})
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) >= 2:
        deviation = spread([ours[seed] - theirs[seed] for seed in shared])
        source, freedom = f"paired differences of {len(shared)} seeds", float(len(shared) - 1)
        if deviation == 0:
            return Need(figure, arm, baseline, f"the {source} are all equal and show no spread")
        return _answer(effect, Need(figure, arm, baseline, source, False, deviation), freedom)
    several = {n: list(v.values()) for n, v in ((baseline, theirs), (arm, ours)) if len(v) >= 2}
    variances = {name: (spread(of) ** 2, len(of) - 1) for name, of in several.items()}
    total = sum(variance for variance, _ in variances.values())
    if total == 0:
        return Need(figure, arm, baseline, _missing(len(shared), several))
    if len(variances) == 2:
        source = " and ".join(f"{len(of)} runs of {name}" for name, of in several.items())
        source += ", which share fewer than two seeds"
        freedom = total**2 / sum(v**2 / f for v, f in variances.values())  # Satterthwaite
    else:
        ((name, of),) = several.items()
        source = f"{len(of)} runs of {name} alone, as if the other arm varied as much"
        total, freedom = 2 * total, float(len(of) - 1)
    need = Need(figure, arm, baseline, source, True, math.sqrt(total))
    return _answer(effect, need, freedom)


def _answer(effect: float, need: Need, freedom: float) -> Need:
    assert need.deviation
    low, high = deviation_interval(need.deviation, freedom)
    counts = [seeds_needed(effect, deviation) for deviation in (need.deviation, low, high)]
    middle, fewest, most = counts
    return replace(
        need, deviation_low=low, deviation_high=high,
        seeds=middle, seeds_low=fewest, seeds_high=most,
    )  # fmt: skip


def _missing(shared: int, several: Mapping[str, Sequence[float]]) -> str:
    if several:
        return "the runs that exist are all equal and show no spread"
    have = {0: "no seed was", 1: "only one seed was"}[shared]
    return (
        f"{have} run with both, and a variance needs two; run seeds 0..{FEWEST - 1} of both first"
    )


def _notes(arms: Sequence[Arm]) -> Iterator[str]:
    for arm in arms:
        lost = sum(not run.counts for run in arm.runs)
        if lost:
            yield (
                f"{arm.name}: {lost} of {len(arm.runs)} runs diverged or failed and have no "
                "figure. The numbers are of seeds that have one, so plan for more."
            )


def as_data(needs: Needs) -> dict[str, Any]:
    """The answers as plain data for JSON."""
    return asdict(needs) | {"power": POWER, "level": LEVEL}


def words_of(needs: Needs) -> Iterator[str]:
    """The answers in words, a line or two for each."""
    for need in needs.rows:
        what = f"{need.figure}, {need.arm} against {need.baseline}: ".removeprefix(", ")
        if need.deviation is None:
            yield f"{what}unknown: {need.source}"
            continue
        if need.seeds is None:
            count = f"more than {MOST_SEEDS:,} seeds"
        else:
            count = f"{'at most about ' if need.bound else ''}{need.seeds:,} seeds"
        extent = f"{_number(need.seeds_low)} to {_number(need.seeds_high)}"
        yield f"{what}{count} ({extent}) show a difference of {needs.effect:.3g} four times in five"
        yield f"  from the {need.source}: standard deviation {_deviation(need)}"
        if need.bound:
            yield (
                "  an upper bound: pairing by seed usually needs fewer; run seeds "
                f"0..{FEWEST - 1} of both to know"
            )
    for note in needs.notes:
        yield f"note: {note}"


def _number(count: int | None) -> str:
    return f"more than {MOST_SEEDS:,}" if count is None else f"{count:,}"


def _deviation(need: Need) -> str:
    values = [v or 0.0 for v in (need.deviation, need.deviation_low, need.deviation_high)]
    middle, low, high = (f"{value:.{decimals(value)}f}" for value in values)
    return f"{middle} (95 % interval {low} to {high})"
