"""`ganlab compare`: from recipes and run folders to tables and a page."""

import math
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganlab.bench.cost import clock
from ganlab.compare.crew import Placement, carry_out
from ganlab.compare.data import ArmData, DataNow, check_same_data
from ganlab.compare.difference import Change, difference, side
from ganlab.compare.executors import placement_of
from ganlab.compare.plan import Job, Variant, cost, make_plan, parse_seeds
from ganlab.compare.seeds import Needs, find_needs, seeds_there
from ganlab.errors import GanlabError, RecipeError
from ganlab.recipe.model import Recipe, resolved
from ganlab.recipe.own_data import on_folder
from ganlab.report import check_writable, write_report
from ganlab.report.model import Arm, Comparison
from ganlab.report.tables import compare
from ganlab.runs.data import digests
from ganlab.runs.records import RunRecord, read_run
from ganlab.runs.reference import names_recipe
from ganlab.speed.device import pick_device

Outcome = tuple[Comparison, Path] | Needs | None
"""What a comparison gives: tables and page; of a plan alone the seeds needed, if asked for."""


def compare_arms(arguments: Sequence[Path | str], options: dict[str, Any]) -> Outcome:
    """`ganlab compare`: plan, run, compare, and write the page.

    :param options: those of the command line.
    """
    variants, arms, names = arms_of(arguments, options["overrides"], options["data"])
    if len(names) < 2:
        raise RecipeError(
            "a comparison needs at least two recipes or runs; for one run use ganlab report"
        )
    return carry_through(
        ", ".join(names[:-1]) + f" and {names[-1]}",
        f"compare-{'-'.join(names)}",
        variants,
        arms,
        names,
        options,
    )


def carry_through(
    title: str,
    stem: str,
    variants: Sequence[Variant],
    arms: Sequence[Arm],
    order: Sequence[str],
    options: dict[str, Any],
    words: Sequence[str] = (),
) -> Outcome:
    """Make the runs of the variants, and compare them with the arms that exist already.

    :param order: the names of variants and arms, the baseline first.
    :param words: lines to print after the plan.
    """
    parent, effect = options["parent"], options["effect"]
    if effect and not options["only_plan"]:
        raise RecipeError("--effect tells how many seeds are needed; give it together with --plan")
    page = options["output"] or parent / f"{stem[:80]}.html"
    check_writable(page)  # now, before hours of training
    seeds = parse_seeds(options["seeds"])
    where = placement_of(options)
    now = DataNow(pick_device(where.here))
    if not options["accept_data"]:
        _check_data(variants, arms, order, seeds[0], now)
    _check_figures(variants, arms, seeds[0], now)
    jobs = make_plan(variants, seeds, parent, where.here, now, where.kind) if variants else []
    for line in (*_plan(variants, jobs, where), *words):
        say(line)
    if options["accept_data"]:
        jobs = [replace(job, data=None) for job in jobs]
    if options["only_plan"]:
        there = [*arms_there(variants, where, now), *arms]
        return find_needs(effect, order, there, options["figures"]) if effect else None
    done = carry_out(jobs, where, say)
    every = sorted([*arms_of_jobs(done), *arms], key=lambda arm: order.index(arm.name))
    comparison = compare(title, every, options["figures"], _changes(every))
    return comparison, write_report(comparison, page)


def _check_data(
    variants: Sequence[Variant], arms: Sequence[Arm], order: Sequence[str], seed: int, now: DataNow
) -> None:
    """Refuse to compare recipes and runs that read different data under the same options."""
    found = [ArmData(arm.name, arm.runs[0].recipe["plugins"], arm.runs[0].data) for arm in arms]
    for variant in variants:
        recipe = variant.recipe(seed)
        options = tomllib.loads(resolved(recipe))["plugins"]
        found.append(ArmData(variant.name, options, now.of(recipe)))
    check_same_data(sorted(found, key=lambda arm: order.index(arm.name)))


_REMEDY = "give the data plugin held-out images, or add a plugin with the hook evaluate"


def _check_figures(
    variants: Sequence[Variant], arms: Sequence[Arm], seed: int, now: DataNow
) -> None:
    """Refuse to train for a comparison in which fewer than two arms would have a figure."""
    silent = [variant.name for variant in variants if not _has_figures(variant.recipe(seed), now)]
    judged = sum(any(run.evaluations for run in arm.runs) for arm in arms)
    if silent and len(variants) - len(silent) + judged < 2:
        raise RecipeError(
            f"nothing to compare: {' and '.join(silent)} would have no figure, because there are "
            f"no held-out images and no plugin evaluates anything else; {_REMEDY}"
        )


def _has_figures(recipe: Recipe, now: DataNow) -> bool:
    plugins = recipe.plugins.values()
    return bool(now.of(recipe).get("held_out")) or any(
        hasattr(type(p), "evaluate") for p in plugins
    )


def check_compared(comparison: Comparison) -> None:
    """Refuse a comparison in which no two arms have a figure in common.

    It says nothing of runs that diverged or failed; these are the reason when there are any.

    :raises RecipeError: with the remedy.
    """
    values = ([row for row in table.rows if row.value] for table in comparison.tables)
    lost = any(not run.counts for arm in comparison.arms for run in arm.runs)
    if lost or any(len(rows) > 1 for rows in values):
        return
    figures = {
        arm.name: ", ".join(dict.fromkeys(f for run in arm.runs for e in run.evaluations
                                          for f in e.figures)) or "none" for arm in comparison.arms
    }  # fmt: skip
    there = "; ".join(f"{name} has {those}" for name, those in figures.items())
    raise RecipeError(f"nothing to compare: the arms have no figure in common ({there}); {_REMEDY}")


def _changes(arms: Sequence[Arm]) -> dict[str, list[Change]]:
    """How each arm's recipe differs from the baseline's, according to the first run of each."""
    try:
        sides = [side(arm.runs[0].folder.path) for arm in arms]
    except GanlabError as error:  # such as a plugin of the run that is not installed
        say(f"the recipes cannot be compared: {error}")
        return {}
    return {
        arm.name: [c for c in difference(sides[0], other) if c.group != "environment"]
        for arm, other in zip(arms[1:], sides[1:], strict=True)
    }


def _plan(variants: Sequence[Variant], jobs: Sequence[Job], where: Placement) -> Iterator[str]:
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
        yield f"  {variant.name} ({have} exist)"
    seconds, source = cost(jobs, where.here, where.executor.elsewhere)
    if missing:
        time = f"about {clock(seconds)} of training" if math.isfinite(seconds) else "time unknown"
        yield f"{time}, one run at a time ({source})"


def say(line: str) -> None:
    """Print a line about the work under way, or the plan, to stderr."""
    print(line, file=sys.stderr, flush=True)


def arms_of(
    arguments: Sequence[Path | str], overrides: tuple[str, ...], data: Path | None = None
) -> tuple[list[Variant], list[Arm], list[str]]:
    """The recipes among the arguments, the arms made of run folders, and all names in order.

    Run folders with the same recipe and code but different seeds are one arm.

    :param data: a folder of images in the place of every recipe's data.
    :raises RecipeError: for an argument that is neither a recipe nor a run, or an arm given twice.
    """
    variants: list[Variant] = []
    runs: dict[str, list[RunRecord]] = {}
    order: list[str] = []  # names of recipes and keys of run folders
    for argument in arguments:
        if names_recipe(argument):
            changes = on_folder(argument, overrides, data)
            variants.append(Variant(Path(argument).stem, Path(argument), changes))
            order.append(variants[-1].name)
        else:
            record = read_run(argument)
            runs.setdefault(_alike(record), []).append(record)
            order.append(_alike(record))
    if runs and (overrides or data):
        given = "--set" if overrides else "--data"
        raise RecipeError(f"{given} changes recipes; it has no effect on a run folder that exists")
    names = Counter(variant.name for variant in variants)
    if twice := [name for name, count in names.items() if count > 1]:
        raise RecipeError(
            f"two recipes are called {twice[0]}; rename a file, or give each recipe once"
        )
    # an arm of several runs has the name of the recipe, not that of its first run
    stems = Counter(_stem(records[0]) for records in runs.values())
    arms: dict[str, Arm] = {}
    for key, records in runs.items():
        seeds = Counter(record.seed for record in records)
        if twice_seen := [seed for seed, count in seeds.items() if count > 1]:
            raise RecipeError(f"two runs of one recipe have seed {twice_seen[0]}; name only one")
        alone = len(records) == 1 or stems[_stem(records[0])] > 1
        name = records[0].folder.path.name if alone else _stem(records[0])
        arms[key] = Arm(name, tuple(records))
    every = Counter([*names, *(arm.name for arm in arms.values())])
    if alike_names := [name for name, count in every.items() if count > 1]:
        raise RecipeError(f"two arms are called {alike_names[0]}; rename a recipe or a run folder")
    named = [arms[key].name if key in arms else key for key in dict.fromkeys(order)]
    return variants, list(arms.values()), named


def can_be_compared(arguments: Sequence[Path | str]) -> bool:
    """Whether `ganlab compare` takes these recipes and runs as two arms or more."""
    try:
        return len(arms_of(arguments, ())[2]) > 1
    except GanlabError:
        return False


def _alike(record: RunRecord) -> str:
    """A key of a run's arm: recipe without seed, its changes, data, code, torch's version."""
    recipe = {key: value for key, value in record.recipe.items() if key != "seed"}
    plugins = {n: entry.get("sha256") for n, entry in record.manifest.get("plugins", {}).items()}
    torch_version = record.manifest.get("versions", {}).get("torch")
    changes = [(c.iteration, c.key, c.old, c.new) for c in record.changes if c.alters]
    code = record.manifest.get("code")
    return repr((recipe, plugins, code, torch_version, digests(record.data), changes))


def _stem(record: RunRecord) -> str:
    return re.sub(r"-\d+$", "", record.folder.path.name)


def arms_of_jobs(jobs: Iterable[Job]) -> list[Arm]:
    """The arms of a plan that was carried out, in the order of its variants."""
    runs: dict[str, list[RunRecord]] = {}
    for job in jobs:
        if job.folder is None:  # the run failed before it had a folder
            continue
        runs.setdefault(job.variant.name, []).append(read_run(job.folder))
    return [Arm(name, tuple(records)) for name, records in runs.items()]


def arms_there(variants: Sequence[Variant], where: Placement, now: DataNow) -> list[Arm]:
    """The arms of all finished runs of the variants, whatever their seeds."""
    seeds = seeds_there(where.parent)
    jobs = make_plan(variants, seeds, where.parent, where.here, now, where.kind)
    return arms_of_jobs(job for job in jobs if job.finished)
