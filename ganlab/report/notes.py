"""The notes of a comparison: what a reader must know before trusting a number."""

from collections.abc import Iterator, Mapping, Sequence

from ganlab.report.model import Arm, Table
from ganlab.runs.means import told
from ganlab.runs.records import RunRecord


def notes_on(
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
        lost = [run for run in arm.runs if run.state == state]
        rest = "" if len(lost) == len(arm.runs) else "; the means are over the others"
        if lost:
            yield f"{_some(arm, lost)} {state} and gave no figure{rest}."
    early = [run for run in arm.runs if run.ended_early]
    if early:
        ends = ", ".join(f"{run.status.get('iteration', 0):,}" for run in early)
        yield (
            f"{_some(arm, early)} did not take all iterations of the recipe: patience ended at "
            f"iteration {ends}."
        )
    ended = ("done", "diverged", "failed")
    unfinished = [run for run in arm.runs if run.state not in ended]
    if unfinished:
        yield f"{_some(arm, unfinished)} did not reach the end."


def _some(arm: Arm, runs: Sequence[RunRecord]) -> str:
    """The subject of a sentence about some runs of an arm."""
    if len(arm.runs) == 1:
        return f"{arm.name}: the run"
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"{arm.name}: {len(runs)} of {len(arm.runs)} runs (seed {seeds})"


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
