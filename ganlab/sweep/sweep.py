"""`ganlab sweep`: from a recipe and its space to trials, a table, a page and the best recipe."""

import math
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ganlab.bench.cost import clock
from ganlab.compare.comparison import say
from ganlab.compare.crew import Interrupted, Placement
from ganlab.compare.data import DataNow
from ganlab.compare.executors import placement_of
from ganlab.compare.plan import Job, cost
from ganlab.errors import RecipeError, printable
from ganlab.files import claim, new_folder, write_json
from ganlab.names import check_name
from ganlab.recipe.model import resolved
from ganlab.report import check_writable
from ganlab.runs.data import digests
from ganlab.runs.environment import code_digest
from ganlab.runs.folder import RunFolder, plugin_record
from ganlab.runs.reading import read_json
from ganlab.speed.device import pick_device
from ganlab.sweep.check import Base, Goal, base_of, check_values
from ganlab.sweep.result import Swept, result_of
from ganlab.sweep.space import SpaceFile, read_space, require_optuna
from ganlab.sweep.trials import FILE, Trial, Trials, mend
from ganlab.sweep.work import Work

ABOUT = "sweep.json"
PAGE = "sweep.html"
MOST_TOLD = 5  # differences in a message


def sweep_recipe(recipe: Path, space_file: Path, options: dict[str, Any]) -> Swept | None:
    """`ganlab sweep`: plan, run the trials, and write the page and the best recipe.

    :param options: those of the command line.
    :returns: None for a plan alone.
    :raises RecipeError: when the space is not one of the recipe.
    :raises Interrupted: at a signal; the page is written up to there.
    """
    require_optuna()
    space = read_space(space_file)
    where = placement_of(options)
    base, goal = base_of(recipe, options["overrides"], space)
    if where.limit is None and space.space.sampler == "tpe":
        raise RecipeError(
            '--jobs is needed: sampler = "tpe" learns from trials that have ended, so say how many '
            "runs go on at a time"
        )
    name = options["name"] or f"sweep-{base.recipe.name}-{space.name}"
    folder = where.parent / check_name(name[:100], "--name")
    now = DataNow(pick_device(where.here))
    about = _about(base, space, where, now)
    if folder.exists():
        check_same(folder, about)
    else:
        check_values(space, base)
    if options["only_plan"]:
        _say_plan(folder, space, goal, base, where)
        return None
    page = folder / PAGE
    with _opened(folder, about):
        check_writable(page)
        mend(folder)
        trials = Trials(folder, space, goal, where.limit or space.num_trials)
        _say_plan(folder, space, goal, base, where, trials)
        work = Work(base, goal, space, trials, where, now, say)
        try:
            work.carry_out()
        except Interrupted:
            result_of(work, folder, page)
            raise
        return result_of(work, folder, page)


def _about(base: Base, space: SpaceFile, where: Placement, now: DataNow) -> dict[str, Any]:
    """What decides about the figures of all trials; a sweep goes on only where it is the same."""
    recipe = base.recipe
    return {
        "recipe": resolved(recipe),
        "space": space.record(),
        "code": code_digest(),
        "plugins": {name: entry["sha256"] for name, entry in plugin_record(recipe).items()},
        "torch": version("torch"),
        "device": where.kind,
        "data": digests(now.of(recipe)),
    }


_TITLES = {
    "code": "ganlab's code",
    "plugins": "code of a plugin",
    "torch": "version of torch",
    "device": "kind of device",
    "data": "data",
}


def check_same(folder: Path, about: dict[str, Any]) -> None:
    """Refuse to go on with a sweep of another recipe, space, code, data or kind of device.

    :raises RecipeError: naming what differs.
    """
    known = read_json(folder / ABOUT)
    if not known:
        raise RecipeError(f"{folder}: it is not the folder of a sweep; choose another --name")
    found = [
        *_differences(_tables(known.get("recipe")), _tables(about["recipe"])),
        *_differences(known.get("space"), about["space"]),
        *(f"the {title} was another" for key, title in _TITLES.items()
          if known.get(key) != about[key]),
    ]  # fmt: skip
    if found:
        more = f"; and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
        raise RecipeError(
            f"{folder}: this sweep was begun otherwise: {'; '.join(found[:MOST_TOLD])}{more}. Its "
            "figures and new ones cannot be compared: begin another sweep with --name"
        )


def _tables(text: Any) -> Any:
    try:
        return tomllib.loads(text)
    except (TypeError, tomllib.TOMLDecodeError):
        return {}


def _differences(was: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*was, *now)):
            yield from _differences(was.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif was != now:
        yield printable(f"{key.removeprefix('plugins.')} was {was}, and is {now}")


@contextmanager
def _opened(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Context with the folder of a sweep, new or not; no other process works on it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        with new_folder(folder.parent) as made:
            write_json(made / ABOUT, about)
            try:
                claim(made, folder)
            except FileExistsError:  # another process has just begun it
                check_same(folder, about)
    with RunFolder(folder).lock():
        yield


def _say_plan(
    folder: Path,
    space: SpaceFile,
    goal: Goal,
    base: Base,
    where: Placement,
    trials: Trials | None = None,
) -> None:
    """Say what a sweep will do, and what it will cost."""
    there = trials.all() if trials else _trials_in(folder, space, goal)
    ended = sum(bool(trial.outcome) for trial in there)
    count, seeds = space.num_trials, space.space.seed_list
    say(
        f"plan: {count} trials x {len(seeds)} seeds = {count * len(seeds)} runs for {goal}; "
        f"{ended} trials have ended, {len(there) - ended} to be continued, "
        f"{max(0, count - len(there))} to be chosen"
    )
    for key, option in space.options.items():
        say(f"  {key}: {option}")
    jobs = list(_jobs(there, count, space, base, where))
    seconds, source = cost(jobs, where.here, where.executor.elsewhere)
    if any(not job.finished for job in jobs):
        most = "at most " if space.space.pruner != "none" else ""
        time = f"{most}about {clock(seconds)} of training"
        time = time if math.isfinite(seconds) else "time unknown"
        say(f"{time}, one run at a time ({source})")


def _trials_in(folder: Path, space: SpaceFile, goal: Goal) -> list[Trial]:
    """The trials of a sweep that exists; nothing is written for one that does not."""
    return Trials(folder, space, goal, 1).all() if (folder / FILE).exists() else []


def _jobs(
    there: list[Trial], count: int, space: SpaceFile, base: Base, where: Placement
) -> Iterator[Job]:
    """The runs of all trials. One that is not known yet costs as much as the recipe itself."""
    for number in range(max(count, len(there))):
        trial = there[number] if number < len(there) else None
        runs = dict(zip(space.space.seed_list, trial.runs, strict=False)) if trial else {}
        for seed in space.space.seed_list:
            job = Job(base.variant({}), seed)
            if trial and trial.outcome:
                path = where.parent / runs.get(seed, "")
                whole = seed in trial.figures and seed in runs
                yield replace(job, folder=path if whole else None, finished=True)
            else:
                yield job
