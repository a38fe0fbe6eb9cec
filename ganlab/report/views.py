"""Views of a comparison: which evaluation of each run counts in a table."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from ganlab.report.model import Arm
from ganlab.runs.records import Evaluation, RunRecord

Chosen = Callable[[RunRecord], Evaluation | None]


def views_of(arms: Sequence[Arm]) -> Iterator[tuple[str, Chosen]]:
    """Views: which evaluation of each run to compare, at equal iterations, equal time, or best."""
    evaluated = [r for arm in arms for r in arm.runs if r.last and r.counts]
    # a run stopped by a verdict counts up to its end, and does not limit the others
    whole = [record for record in evaluated if record.state == "done"] or evaluated
    if not whole:
        return
    first = _at_equal_iterations(whole)
    yield first
    of_time = _at_equal_time(arms, whole) if len(arms) > 1 else None
    if of_time and any(of_time[1](record) is not first[1](record) for record in evaluated):
        yield of_time
    only = evaluated[0].best if len(evaluated) == 1 else None
    name = (
        f"best checkpoint, {only.iteration:,} iterations" if only else "best checkpoint of each run"
    )
    yield name, lambda r: r.best if r.counts else None


def _at_equal_iterations(whole: Sequence[RunRecord]) -> tuple[str, Chosen]:
    lasts = {record.last.iteration for record in whole if record.last}
    if len(lasts) == 1:
        return f"last checkpoint, {lasts.pop():,} iterations", last
    common = set.intersection(*({e.iteration for e in record.evaluations} for record in whole))
    iterations = max(common, default=min(lasts))

    def chosen(record: RunRecord) -> Evaluation | None:
        return _latest(record, lambda e: e.iteration <= iterations)

    if common:
        return f"equal iterations, {iterations:,}", chosen
    found = sorted({e.iteration for record in whole if (e := chosen(record))})
    return f"the last evaluations up to {iterations:,} iterations: at {_and(found)}", chosen


def _at_equal_time(arms: Sequence[Arm], whole: Sequence[RunRecord]) -> tuple[str, Chosen] | None:
    """View of what each arm had reached when the quickest one was done.

    The time of an arm follows from the median pace of its runs. So all runs of an arm get the same
    number of iterations, even one that a busy machine slowed down. Paces that agree to 5 % count
    as equal. None when a run was not evaluated that early.
    """
    seconds: dict[str, list[float]] = {}
    paces: dict[str, list[float]] = {}
    arm_of = {id(run): arm.name for arm in arms for run in arm.runs}
    for record in whole:
        if record.last and math.isfinite(record.last.seconds):
            seconds.setdefault(arm_of[id(record)], []).append(record.last.seconds)
            paces.setdefault(arm_of[id(record)], []).append(
                record.last.seconds / record.last.iteration
            )
    if len(paces) < len(arms):
        return None
    budget = min(median(several) for several in seconds.values())
    limits = {arm: 1.05 * budget / median(several) for arm, several in paces.items()}

    def chosen(record: RunRecord) -> Evaluation | None:
        return _latest(record, lambda e: e.iteration <= limits[arm_of[id(record)]])

    if not all(chosen(record) for record in whole):
        return None
    return f"equal training time, {budget:,.0f} s", chosen


def _and(numbers: Sequence[int]) -> str:
    *most, last = (f"{number:,}" for number in numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _latest(record: RunRecord, wanted: Callable[[Evaluation], bool]) -> Evaluation | None:
    """The last evaluation that is wanted; None for a run that diverged or failed."""
    if not record.counts:
        return None
    return next((e for e in reversed(record.evaluations) if wanted(e)), None)


def last(record: RunRecord) -> Evaluation | None:
    return _latest(record, lambda _: True)
