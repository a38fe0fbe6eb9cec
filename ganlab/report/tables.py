"""The tables of a comparison: figures of the runs, differences, and their intervals."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from ganlab.errors import RecipeError
from ganlab.files import finite
from ganlab.report.data import data_lines
from ganlab.report.figures import FIGURES, direction
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
from ganlab.report.notes import notes_on
from ganlab.report.statistics import (
    effect,
    interval,
    over_images,
    paired_difference,
    smallest_visible,
    unpaired_difference,
    wilcoxon,
)
from ganlab.report.views import Chosen, last, views_of


def compare(
    title: str,
    arms: Sequence[Arm],
    figures: Sequence[str] = (),
    changes: Mapping[str, Sequence[Change]] | None = None,
) -> Comparison:
    """Make all tables of a comparison; the first arm is the baseline.

    :param figures: evaluation figures to compare; the usual ones when left out.
    :param changes: differences of each arm's recipe from the baseline's, for the page.
    :raises RecipeError: for a figure that no run has.
    """
    records = [run for arm in arms for run in arm.runs]
    known = list(dict.fromkeys(name for r in records for e in r.evaluations for name in e.figures))
    if missing := [name for name in figures if name not in known]:
        there = f"there are {', '.join(known)}" if known else "no run was evaluated"
        raise RecipeError(f"--figure {missing[0]}: no run has it; {there}")
    usual = [*FIGURES, *(record.recipe["best_metric"] for record in records)]
    shown = figures or [n for n in dict.fromkeys(usual) if n in known] or known
    views = list(views_of(arms))
    tables = [_table(figure, view, arms, chosen) for view, chosen in views for figure in shown]
    tables = [table for table in tables if any(row.value for row in table.rows)]
    first = views[0][1] if views else last
    return Comparison(
        title,
        tuple(arms),
        tuple(tables),
        tuple(_cost(arm) for arm in arms),
        _images(arms, shown, first),
        first,
        changes=dict(changes or {}),
        notes=tuple(notes_on(arms, tables, _unscored(arms, shown, first))),
        data=tuple(data_lines(arms)),
    )


def _table(figure: str, view: str, arms: Sequence[Arm], chosen: Chosen) -> Table:
    higher = direction(figure, arms)
    values = values_of(arms, figure, chosen)
    baseline, rows = values[0], [_row(arms[0].name, values[0])]
    if len(arms) == 1:
        rows = [replace(rows[0], words="")]
    for arm, mine in zip(arms[1:], values[1:], strict=True):
        rows.append(_row(arm.name, mine, baseline, higher))
    return Table(figure, view, higher, tuple(rows), bicubic_of(arms, figure, chosen))


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
        effect(difference, higher),
    )


def values_of(arms: Sequence[Arm], figure: str, chosen: Chosen) -> list[dict[int, float]]:
    """A figure of the runs of each arm, by their seed; runs without a finite one are left out.

    When the means of these runs are over different images, since a score was not finite somewhere,
    they are taken again over the images that all runs have.
    """
    behind = _behind(arms, figure, chosen)
    shared = set.intersection(*behind) if behind else set()
    again = shared if any(images != shared for images in behind) else set()
    return [by_seed(arm, figure, chosen, again) for arm in arms]


def _behind(arms: Sequence[Arm], figure: str, chosen: Chosen) -> list[set[str]]:
    """The images over which each run's figure is a mean; without runs whose figure is no mean."""
    records = [record for arm in arms for record in arm.runs]
    found = [set(r.behind(e, figure)) for r in records if (e := chosen(r))]
    return [images for images in found if images]


def bicubic_of(arms: Sequence[Arm], figure: str, chosen: Chosen) -> float | None:
    """A figure of bicubic interpolation, the mean over the images of the runs' own means.

    None where no run has it, and where the runs have different ones: those of another degradation.
    """
    behind = _behind(arms, figure, chosen)
    images = sorted(set.intersection(*behind)) if behind else []
    rows = [record.bicubic for arm in arms for record in arm.runs if record.bicubic]
    scores = [[row.get(image, {}).get(figure, math.nan) for image in images] for row in rows]
    found = [fmean(of_one) for of_one in scores if of_one]
    # devices round differently
    same = bool(found) and all(math.isclose(one, found[0], rel_tol=1e-4) for one in found)
    return found[0] if same else None


def by_seed(
    arm: Arm, figure: str, chosen: Chosen, images: Collection[str] = ()
) -> dict[int, float]:
    """A figure of each run of an arm by its seed; runs without a finite one are left out.

    :param images: take the mean over these images, where it is a mean over images.
    """
    found = {}
    for record in arm.runs:
        evaluation = chosen(record)
        value = evaluation.figures.get(figure, math.nan) if evaluation else math.nan
        scores = record.behind(evaluation, figure) if evaluation and images else {}
        if scores:
            value = fmean(scores[image] for image in sorted(images))
        if math.isfinite(value):
            found[record.seed] = value
    return found


def _unscored(arms: Sequence[Arm], figures: Sequence[str], chosen: Chosen) -> dict[str, list[str]]:
    """The images that the means of a comparison leave out, by the figure."""
    found: dict[str, list[str]] = {}
    for record in (record for arm in arms for record in arm.runs):
        evaluation = chosen(record)
        for name in figures if evaluation and evaluation.images else ():
            assert evaluation
            counted = record.behind(evaluation, name)
            scored = [i for i, scores in evaluation.images.items() if name in scores]
            missing = [image for image in scored if image not in counted]
            if missing:
                found[name] = list(dict.fromkeys([*found.get(name, []), *missing]))
    return found


def _cost(arm: Arm) -> Cost:
    states = Counter(
        "stopped by a verdict" if r.status.get("exit_code") == 4 else r.state for r in arm.runs
    )
    seconds = [float(r.status.get("seconds", math.nan)) for r in arm.runs]
    images = [r.recipe["batch_size"] * r.recipe["g_steps"] for r in arm.runs]
    rates = [
        images_of_one * r.status.get("iteration", 0) / time
        for r, images_of_one, time in zip(arm.runs, images, seconds, strict=True)
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


def _images(arms: Sequence[Arm], figures: Sequence[str], chosen: Chosen) -> ImageTable | None:
    """Table of one figure for the images that all runs have; leaves out arms without images.

    :param figures: the first one that the images have is taken, or PSNR if they have none.
    """
    found = {
        arm.name: {run.seed: e.images for run in arm.runs if (e := chosen(run)) and e.images}
        for arm in arms
    }
    found = {name: runs for name, runs in found.items() if runs}
    evaluated = [images for runs in found.values() for images in runs.values()]
    if not evaluated:
        return None
    for figure in (*figures, "psnr_y"):
        names = [
            name
            for name in evaluated[0]
            if all(
                math.isfinite(images.get(name, {}).get(figure, math.nan)) for images in evaluated
            )
        ]
        if names:
            break
    else:
        return None
    scores = {
        arm: {n: {seed: images[n][figure] for seed, images in runs.items()} for n in names}
        for arm, runs in found.items()
    }
    baseline, higher = scores.get(arms[0].name, {}), direction(figure, arms)
    others = [arm for arm in scores if arm != arms[0].name and baseline]
    bicubic = next((r.bicubic for arm in arms for r in arm.runs if r.bicubic), {})
    rows = []
    for name in names:
        differences = {arm: paired_difference(scores[arm][name], baseline[name]) for arm in others}
        rows.append(
            ImageRow(
                name,
                finite(bicubic.get(name, {}).get(figure)),
                {arm: interval(list(of[name].values())) for arm, of in scores.items()},
                {arm: difference for arm, difference in differences.items() if difference},
            )
        )
    worst = list(scores)[-1]
    rows.sort(key=lambda row: row.scores[worst].mean * (-1 if higher is False else 1))
    # without a better direction there is no winner
    tallies = {} if higher is None else {arm: _tally(rows, arm, higher) for arm in others}
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
