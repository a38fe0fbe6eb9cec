"""The tables of a comparison: figures of the runs, differences, and their intervals."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from ganlab.errors import RecipeError
from ganlab.files import finite
from ganlab.report.data import data_lines
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
from ganlab.report.statistics import (
    effect,
    interval,
    over_images,
    paired_difference,
    smallest_visible,
    unpaired_difference,
    wilcoxon,
)
from ganlab.runs.means import told
from ganlab.runs.records import Evaluation, RunRecord

FIGURES = ("psnr_y", "ssim_y", "hf_ratio", "lr_psnr")
# without hf_ratio: it is best at 1, so neither higher nor lower is better
HIGHER_IS_BETTER = {
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
    views = list(_views(arms))
    tables = [_table(figure, view, arms, chosen) for view, chosen in views for figure in shown]
    tables = [table for table in tables if any(row.value for row in table.rows)]
    first = views[0][1] if views else _last
    return Comparison(
        title,
        tuple(arms),
        tuple(tables),
        tuple(_cost(arm) for arm in arms),
        _images(arms, shown, first),
        first,
        changes=dict(changes or {}),
        notes=tuple(_notes(arms, tables, _unscored(arms, shown, first))),
        data=tuple(data_lines(arms)),
    )


def _views(arms: Sequence[Arm]) -> Iterator[tuple[str, Chosen]]:
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
        return f"last checkpoint, {lasts.pop():,} iterations", _last
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


def _last(record: RunRecord) -> Evaluation | None:
    return _latest(record, lambda _: True)


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


def direction(figure: str, arms: Sequence[Arm]) -> bool | None:
    """Whether a higher value of a figure is better; None when nobody says so."""
    for arm in arms:
        for record in arm.runs:
            if record.recipe["best_metric"] == figure:
                return record.sign > 0
    return HIGHER_IS_BETTER.get(figure)


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


def _notes(
    arms: Sequence[Arm], tables: Sequence[Table], without: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Notes that a reader must know before trusting a number."""
    if without:
        yield f"Scores that are not finite are left out of the means: {told(without)}."
    if len(arms) > 1 and all(len(arm.runs) == 1 for arm in arms):
        yield "Each arm has one seed: there are no intervals, and any difference may be chance."
    for arm in arms:
        yield from _lost_runs(arm)
        for run in arm.runs:
            yield from (f"Damaged record: {damage}." for damage in run.damage)
            if run.changes:
                changes = "; ".join(map(str, run.changes))
                yield f"{arm.name}, seed {run.seed}: its recipe was changed in the run: {changes}."
    yield from _differences([run for arm in arms for run in arm.runs])
    compared = sum(bool(row.difference and row.difference.low is not None)
                   for table in tables for row in table.rows)  # fmt: skip
    if compared > 1:
        yield (
            f"Of {compared} differences with a 95 % interval, about {compared / 20:.1f} would "
            "exclude zero by chance alone."
        )
    if any(table.view.startswith("best") for table in tables):
        yield (
            "The best checkpoint is chosen on the images that it is scored on, so its score is a "
            "little too good; the score of the last checkpoint is not."
        )


def _lost_runs(arm: Arm) -> Iterator[str]:
    """Notes on the runs of an arm that have no figure, or did not run to the end."""
    for state in ("diverged", "failed"):
        lost = [str(run.seed) for run in arm.runs if run.state == state]
        rest = "" if len(lost) == len(arm.runs) else "; the means are over the others"
        if lost:
            yield (
                f"{arm.name}: {len(lost)} of {len(arm.runs)} runs {state} (seed "
                f"{', '.join(lost)}) and have no figure{rest}."
            )
    early = [
        f"seed {r.seed} at {r.status.get('iteration', 0):,}" for r in arm.runs if r.ended_early
    ]
    if early:
        yield (
            f"{arm.name}: patience ended {len(early)} of {len(arm.runs)} runs before the recipe's "
            f"last iteration: {', '.join(early)}."
        )
    ended = ("done", "diverged", "failed")
    unfinished = [run.folder.path.name for run in arm.runs if run.state not in ended]
    if unfinished:
        yield f"{arm.name}: these runs did not reach the end: {', '.join(unfinished)}."


def _differences(records: Sequence[RunRecord]) -> Iterator[str]:
    """Notes on what the runs differ in besides the methods that are compared."""
    for key in ("iterations", "batch_size", "d_steps", "g_steps", "precision"):
        values = {run.recipe[key] for run in records}
        if len(values) > 1:
            yield f"The arms differ in {key}: {', '.join(map(str, sorted(values)))}."
    for key in ("torch", "ganlab", "python"):
        versions = {str(run.manifest.get("versions", {}).get(key)) for run in records}
        if len(versions) > 1:
            named = ", ".join(sorted(versions))
            yield f"The runs were made with different versions of {key}: {named}."
    for key, consequence in _MADE_WITH.items():
        if len({str(run.manifest.get(key)) for run in records}) > 1:
            yield consequence
    if len({frozenset(run.last.images) for run in records if run.last}) > 1:
        yield "The arms were evaluated on different held-out images; compare images with care."


_MADE_WITH = {
    "threads": (
        "The runs were made with different numbers of CPU threads: sums are rounded "
        "differently, and a game amplifies that, so equal recipes and seeds give other results."
    ),
    "device_name": "The runs were made on different devices: their times cannot be compared.",
    "code": "The runs were made by different states of ganlab's own code.",
}
