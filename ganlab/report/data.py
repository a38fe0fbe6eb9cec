"""The data of runs in sentences, for the head of a report."""

from collections.abc import Iterator, Sequence

from ganlab.report.model import Arm
from ganlab.runs.data import TITLES, described, differences, digests, left_out, trained_on
from ganlab.runs.records import RunRecord


def data_lines(arms: Sequence[Arm]) -> Iterator[str]:
    """What the runs read, in which data they differ, and which held-out images were trained on."""
    if unknown := [run.folder.path.name for arm in arms for run in arm.runs if not run.data]:
        yield f"Data unknown: not listed in the run folder of {', '.join(unknown)}."
    named = [pair for arm in arms for pair in _distinct(arm)]
    if not named:
        return
    name, first = named[0]
    yield f"Data: {described(digests(first.data))}."
    for other, run in named[1:]:
        for section, words in differences(first.data, run.data).items():
            if section != "weights":  # the arms may have different losses
                yield f"Different {TITLES[section]}: in {other}, compared with {name}, {words}."
    for title, run in named:
        yield from _of_run(title, run)


def _distinct(arm: Arm) -> Iterator[tuple[str, RunRecord]]:
    """One run of an arm for all that read the same data, with the arm's name, or also its seed."""
    known = [run for run in arm.runs if run.data]
    kinds = {repr((run.data, run.manifest.get("data_changes"))): run for run in reversed(known)}
    for run in reversed(kinds.values()):
        yield arm.name if len(kinds) == 1 else f"{arm.name} seed {run.seed}", run


def _of_run(name: str, run: RunRecord) -> Iterator[str]:
    for sentence in left_out(run.data):
        yield f"{name}: {sentence}."
    if seen := trained_on(run.data):
        yield (
            f"{name}: also in the training data, so scores on them say nothing about new images: "
            f"{len(seen)} of the held-out images, {', '.join(seen[:4])}."
        )
    for change in run.manifest.get("data_changes", []):
        for section, words in change["changes"].items():
            when = f"changed at iteration {change['iteration']:,}"
            yield f"{name}: its {TITLES[section]} {when}: {words}."
