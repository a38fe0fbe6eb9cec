"""`ganlab compare`: from recipes and run folders to tables and a page."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab.difference import Change, difference, side
from ganlab.errors import GanlabError, RecipeError
from ganlab.plan import Job, Variant, carry_out, cost, make_plan, parse_seeds
from ganlab.records import RunRecord, read_run
from ganlab.report import write_report
from ganlab.report.model import Arm, Comparison
from ganlab.report.tables import compare

Outcome = tuple[Comparison, Path]


def compare_arms(arguments: Sequence[str], options: dict[str, Any]) -> Outcome | None:
    """`ganlab compare`: plan, run, compare, and write the page.

    :param options: as of the command line.
    :returns: None when only the plan was asked for.
    """
    variants, arms = arms_of(arguments, options["overrides"])
    names = [*(variant.name for variant in variants), *(arm.name for arm in arms)]
    if len(names) < 2:
        raise RecipeError(
            "a comparison wants two recipes or runs at least; one alone: ganlab report"
        )
    return carry_through(
        ", ".join(names[:-1]) + f" and {names[-1]}",
        f"compare-{'-'.join(names)}",
        variants,
        arms,
        options,
    )


def carry_through(
    title: str,
    stem: str,
    variants: Sequence[Variant],
    arms: list[Arm],
    options: dict[str, Any],
    words: Sequence[str] = (),
) -> Outcome | None:
    """Make the runs of variants, and compare them and the arms that are there already.

    :param words: lines to say with the plan.
    """
    device, parent = options["device"], options["parent"]
    jobs = make_plan(variants, parse_seeds(options["seeds"]), parent, device) if variants else []
    for line in (*_plan(variants, jobs, device), *words):
        _say(line)
    if options["only_plan"]:
        return None
    workers = options["jobs"] or max(1, torch.cuda.device_count() if device != "cpu" else 1)
    done = carry_out(jobs, parent, device, workers, _say)
    every = [*arms_of_jobs(done), *arms]
    comparison = compare(title, every, options["figures"], _changes(every))
    page = options["output"] or parent / f"{stem[:80]}.html"
    return comparison, write_report(comparison, page)


def _changes(arms: Sequence[Arm]) -> dict[str, list[Change]]:
    """What each recipe has other than the baseline's, by its first run."""
    try:
        sides = [side(arm.runs[0].folder.path) for arm in arms]
    except GanlabError as error:  # a plugin of the run is no longer installed, say
        _say(f"the recipes cannot be compared: {error}")
        return {}
    return {
        arm.name: [c for c in difference(sides[0], other) if c.group != "environment"]
        for arm, other in zip(arms[1:], sides[1:], strict=True)
    }


def _plan(variants: Sequence[Variant], jobs: Sequence[Job], device: str) -> Iterator[str]:
    if not variants:
        return
    missing = [job for job in jobs if not job.finished]
    cut = sum(job.folder is not None for job in missing)
    yield (
        f"plan: {len(variants)} recipes x {len(jobs) // len(variants)} seeds = {len(jobs)} runs; "
        f"{len(jobs) - len(missing)} exist, {cut} to be continued, {len(missing) - cut} to be made"
    )
    for variant in variants:
        have = sum(job.finished for job in jobs if job.variant is variant)
        yield f"  {variant.name} ({have} there)"
    seconds, source = cost(jobs, device)
    if missing:
        yield f"about {_clock(seconds)} of training, one run at a time ({source})"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arms_of(
    arguments: Sequence[str], overrides: tuple[str, ...]
) -> tuple[list[Variant], list[Arm]]:
    """The recipes among the arguments, and the arms that run folders make; names are unique.

    Run folders of one recipe but other seeds are one arm.

    :raises RecipeError: for what is neither, or an arm given twice.
    """
    variants: list[Variant] = []
    runs: dict[str, list[RunRecord]] = {}
    for argument in arguments:
        if Path(argument).suffix == ".toml":
            variants.append(Variant(Path(argument).stem, Path(argument), overrides))
        else:
            record = read_run(argument)
            alike = {k: v for k, v in record.recipe.items() if k != "seed"}
            runs.setdefault(repr(alike), []).append(record)
    if runs and overrides:
        raise RecipeError("--set changes recipes; it has no effect on a run folder that exists")
    names = Counter(variant.name for variant in variants)
    if twice := [name for name, count in names.items() if count > 1]:
        raise RecipeError(
            f"two recipes are called {twice[0]}; rename a file, or name one only once"
        )
    arms = []
    for records in runs.values():
        seeds = Counter(record.seed for record in records)
        if twice_seen := [seed for seed, count in seeds.items() if count > 1]:
            raise RecipeError(f"two runs of one recipe have seed {twice_seen[0]}; name one of them")
        name = records[0].folder.path.name
        # several are called as their recipe, and not as the first of them
        arms.append(Arm(re.sub(r"-\d+$", "", name) if len(records) > 1 else name, tuple(records)))
    every = Counter([*names, *(arm.name for arm in arms)])
    if alike_names := [name for name, count in every.items() if count > 1]:
        raise RecipeError(f"two arms are called {alike_names[0]}; rename a recipe or a run folder")
    return variants, arms


def arms_of_jobs(jobs: Iterable[Job]) -> list[Arm]:
    """The arms of a plan that is carried out, in the order of its variants."""
    runs: dict[str, list[RunRecord]] = {}
    for job in jobs:
        assert job.folder
        runs.setdefault(job.variant.name, []).append(read_run(job.folder))
    return [Arm(name, tuple(records)) for name, records in runs.items()]
