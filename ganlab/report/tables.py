"""The tables of a comparison: what runs scored, how they differ, and how surely."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from ganlab.errors import RecipeError
from ganlab.records import Evaluation, RunRecord
from ganlab.report.model import (
    Arm,
    Change,
    Comparison,
    Cost,
    ImageRow,
    ImageTable,
    Row,
    Table,
    Tally,
)
from ganlab.statistics import (
    interval,
    over_images,
    paired_difference,
    smallest_visible,
    unpaired_difference,
    verdict,
    wilcoxon,
)

FIGURES = ("psnr_y", "ssim_y", "hf_ratio", "lr_psnr")
# hf_ratio has its best at 1, so neither
_HIGHER_IS_BETTER = {
    "psnr_y": True,
    "ssim_y": True,
    "psnr_rgb": True,
    "ssim_rgb": True,
    "lr_psnr": True,
}

Chosen = Callable[[RunRecord], Evaluation | None]


def compare(
    title: str,
    arms: Sequence[Arm],
    figures: Sequence[str] = (),
    changes: Mapping[str, Sequence[Change]] | None = None,
) -> Comparison:
    """All tables of a comparison; the first arm is the baseline.

    :param figures: evaluation figures to compare; the usual ones when left out.
    :param changes: of each arm's recipe against the baseline's, for the page.
    :raises RecipeError: for a figure that no run has.
    """
    records = [run for arm in arms for run in arm.runs]
    known = list(dict.fromkeys(name for r in records for e in r.evaluations for name in e.figures))
    if missing := [name for name in figures if name not in known]:
        raise RecipeError(f"--figure {missing[0]}: no run has it; there are {', '.join(known)}")
    usual = [*FIGURES, *(record.recipe["best_metric"] for record in records)]
    shown = figures or [n for n in dict.fromkeys(usual) if n in known] or known
    tables = [
        _table(figure, view, arms, chosen) for view, chosen in _views(records) for figure in shown
    ]
    tables = [table for table in tables if any(row.value for row in table.rows)]
    return Comparison(
        title,
        tuple(arms),
        tuple(tables),
        tuple(_cost(arm) for arm in arms),
        _images(arms, next((f for f in shown if f in FIGURES), "psnr_y")),
        changes=dict(changes or {}),
        notes=tuple(_notes(arms, tables)),
    )


def _views(records: Sequence[RunRecord]) -> Iterator[tuple[str, Chosen]]:
    """The evaluation of each run to compare: at equal iterations, at equal time, the best."""
    # a run that a verdict stopped counts as far as it got, and does not hold the others back
    whole = [r for r in records if r.state == "done" and r.last] or [r for r in records if r.last]
    if not whole:
        return
    lasts = [record.last for record in whole if record.last]
    iterations = min(last.iteration for last in lasts)
    if all(last.iteration == iterations for last in lasts):
        name = f"last checkpoint, {iterations:,} iterations"
    else:
        name = f"equal iterations, {iterations:,}"
    yield name, lambda r: _latest(r, lambda e: e.iteration <= iterations)
    seconds = min(last.seconds for last in lasts)
    if math.isfinite(seconds):
        named = f"equal training time, {seconds:,.0f} s"
        yield named, lambda r: _latest(r, lambda e: e.seconds <= seconds)
    yield "best checkpoint of each run", lambda r: r.best if r.state != "diverged" else None


def _latest(record: RunRecord, wanted: Callable[[Evaluation], bool]) -> Evaluation | None:
    """The last evaluation of a run that is early enough; a diverged run has no figure."""
    if record.state == "diverged":
        return None
    return next((e for e in reversed(record.evaluations) if wanted(e)), None)


def _table(figure: str, view: str, arms: Sequence[Arm], chosen: Chosen) -> Table:
    higher = _direction(figure, arms)
    values = [_by_seed(arm, figure, chosen) for arm in arms]
    baseline, rows = values[0], [_row(arms[0].name, values[0])]
    if len(arms) == 1:
        rows = [replace(rows[0], words="")]
    for arm, mine in zip(arms[1:], values[1:], strict=True):
        rows.append(_row(arm.name, mine, baseline, higher))
    return Table(figure, view, higher, tuple(rows))


def _row(
    arm: str,
    mine: dict[int, float],
    baseline: dict[int, float] | None = None,
    higher: bool | None = None,
) -> Row:
    value = interval(list(mine.values())) if mine else None
    if baseline is None:
        return Row(arm, value, words="baseline")
    if not mine or not baseline:
        return Row(arm, value, words="no figure to compare")
    difference = paired_difference(mine, baseline)
    shared = sorted(mine.keys() & baseline.keys())
    return Row(
        arm,
        value,
        difference,
        unpaired_difference(list(mine.values()), list(baseline.values())),
        smallest_visible([mine[s] - baseline[s] for s in shared]) if shared else None,
        verdict(difference, higher),
    )


def _by_seed(arm: Arm, figure: str, chosen: Chosen) -> dict[int, float]:
    found = {}
    for record in arm.runs:
        evaluation = chosen(record)
        value = evaluation.figures.get(figure, math.nan) if evaluation else math.nan
        if math.isfinite(value):
            found[record.seed] = value
    return found


def _direction(figure: str, arms: Sequence[Arm]) -> bool | None:
    for arm in arms:
        for record in arm.runs:
            if record.recipe["best_metric"] == figure:
                return record.sign > 0
    return _HIGHER_IS_BETTER.get(figure)


def _cost(arm: Arm) -> Cost:
    states = Counter(
        "stopped by a verdict" if r.status.get("exit_code") == 4 else r.state for r in arm.runs
    )
    seconds = [float(r.status.get("seconds", math.nan)) for r in arm.runs]
    rates = [
        r.recipe["batch_size"] * r.recipe["g_steps"] * r.status.get("iteration", 0) / time
        for r, time in zip(arm.runs, seconds, strict=True)
        if time > 0
    ]
    return Cost(
        arm.name,
        ", ".join(f"{count} {state}" for state, count in states.items()),
        median(seconds),
        median(rates) if rates else math.nan,
        median(float(r.status.get("peak_memory", math.nan)) for r in arm.runs),
        sum(len(r.verdicts) for r in arm.runs),
    )


def _images(arms: Sequence[Arm], figure: str) -> ImageTable | None:
    """One figure image by image at the last evaluation, over the images that all runs have."""
    lasts = [
        [(r.seed, r.last) for r in arm.runs if r.last and r.state != "diverged"] for arm in arms
    ]
    judged = [last.images for several in lasts for _, last in several]
    if not judged or not all(lasts) or len(arms) < 1:
        return None
    names = [
        name
        for name in judged[0]
        if all(math.isfinite(scores.get(name, {}).get(figure, math.nan)) for scores in judged)
    ]
    if not names:
        return None
    scores = {
        arm.name: {n: {seed: last.images[n][figure] for seed, last in several} for n in names}
        for arm, several in zip(arms, lasts, strict=True)
    }
    baseline, higher = scores[arms[0].name], _direction(figure, arms)
    bicubic = next((r.bicubic for arm in arms for r in arm.runs if r.bicubic), {})
    rows = []
    for name in names:
        differences = {
            arm.name: paired_difference(scores[arm.name][name], baseline[name]) for arm in arms[1:]
        }
        rows.append(
            ImageRow(
                name,
                bicubic.get(name, {}).get(figure),
                {arm.name: interval(list(scores[arm.name][name].values())) for arm in arms},
                {arm: found for arm, found in differences.items() if found},
            )
        )
    rows.sort(key=lambda row: row.scores[arms[-1].name].mean * (-1 if higher is False else 1))
    tallies = {arm.name: _tally(rows, arm.name, higher is not False) for arm in arms[1:]}
    return ImageTable(figure, higher, tuple(rows), {k: v for k, v in tallies.items() if v})


def _tally(rows: Sequence[ImageRow], arm: str, higher: bool) -> Tally | None:
    found = [row.differences[arm].mean for row in rows if arm in row.differences]
    if not found:
        return None
    gains = [value if higher else -value for value in found]
    return Tally(
        sum(gain > 0 for gain in gains),
        sum(gain < 0 for gain in gains),
        sum(gain == 0 for gain in gains),
        over_images(found),
        wilcoxon(found),
    )


def _notes(arms: Sequence[Arm], tables: Sequence[Table]) -> Iterator[str]:
    """What a reader must know before believing a number."""
    records = [run for arm in arms for run in arm.runs]
    if len(arms) > 1 and all(len(arm.runs) == 1 for arm in arms):
        yield "One seed an arm: no interval, and no telling a difference from chance."
    for arm in arms:
        lost = [str(r.seed) for r in arm.runs if r.state == "diverged"]
        if lost:
            yield (
                f"{arm.name}: {len(lost)} of {len(arm.runs)} runs diverged (seed "
                f"{', '.join(lost)}) and have no figure; the means are over the others."
            )
        unfinished = [r.folder.path.name for r in arm.runs if r.state not in ("done", "diverged")]
        if unfinished:
            yield f"{arm.name}: not run to the end: {', '.join(unfinished)}."
    for key in ("iterations", "batch_size", "d_steps", "g_steps", "precision"):
        values = {r.recipe[key] for r in records}
        if len(values) > 1:
            yield f"The arms differ in {key}: {', '.join(map(str, sorted(values)))}."
    for key in ("torch", "ganlab", "python"):
        versions = {str(r.manifest.get("versions", {}).get(key)) for r in records}
        if len(versions) > 1:
            yield f"The runs were made with different versions of {key}: {', '.join(versions)}."
    if len({str(r.manifest.get("code")) for r in records}) > 1:
        yield "The runs were made by different states of ganlab's own code."
    sets = {frozenset(r.last.images) for r in records if r.last}
    if len(sets) > 1:
        yield "The arms were judged on different held-out images; compare images with care."
    compared = sum(bool(row.difference and row.difference.low is not None)
                   for table in tables for row in table.rows)  # fmt: skip
    if compared > 1:
        yield (
            f"Of {compared} differences with a 95 % interval, about {compared / 20:.1f} would miss "
            "zero by chance alone."
        )
    if any(table.view.startswith("best") for table in tables):
        yield (
            "The best checkpoint is chosen on the images that it is scored on, so its score is a "
            "little flattered; the last one is not."
        )
