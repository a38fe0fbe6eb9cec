"""The runs of a comparison: finished ones are used, stopped ones continue, the rest are made."""

import math
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ganlab.bench.cost import estimate
from ganlab.compare.data import DataNow
from ganlab.ending import DIVERGED, DONE, FAILED, UNHEALTHY
from ganlab.errors import GanlabError, RecipeError
from ganlab.limits import Limits
from ganlab.recipe.model import Recipe, load_recipe, resolved
from ganlab.runs.data import Data, as_opened, differences
from ganlab.runs.environment import code_digest
from ganlab.runs.folder import RunFolder, plugin_record, read_data
from ganlab.runs.links import plain_runs
from ganlab.runs.reading import read_json
from ganlab.runs.record import check_recipe, read_record
from ganlab.session import resume, start
from ganlab.speed.device import devices, pick_device, release_memory
from ganlab.stopping import SIGTERMED, Stopped, exit_code, heard, heeding, held
from ganlab.system import interrupt

# a diverged run is a result too; a failed run is tried again by the next command
_FINISHED = ("done", "diverged")


MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe with the overrides of one arm of a comparison."""

    name: str
    file: Path
    overrides: tuple[str, ...] = ()

    def recipe(self, seed: int) -> Recipe:
        return load_recipe(self.file, (*self.overrides, f"seed={seed}"), self.name)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a plan."""

    variant: Variant
    seed: int
    folder: Path | None = None
    """The folder of the run, finished or not; None when there is no run yet."""
    finished: bool = False
    data: Data | None = None
    """The data that a new run must read; None allows any."""

    def __str__(self) -> str:
        return f"{self.variant.name} seed {self.seed}"


def parse_seeds(text: str) -> list[int]:
    """The seeds in a text such as `0..4`, `3` or `0,2,5`.

    :raises RecipeError: for any other form, or a seed given twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise RecipeError(f"--seeds {text}: write 0..4, or 0,2,5")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first >= MOST_SEEDS:
            raise RecipeError(f"--seeds {text}: at most {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"--seeds {text}: a seed is given twice")
    return seeds


def make_plan(
    variants: Iterable[Variant],
    seeds: Sequence[int],
    parent: Path,
    device: str,
    data: DataNow | None = None,
) -> list[Job]:
    """A job for every variant and seed, seed after seed; each finds its run if that exists already.

    Two runs are the same when they have the same resolved recipe with its seed, data, code of
    plugins and ganlab, version of torch and kind of device. Of several, the furthest one is taken.
    """
    where = pick_device(device)
    data = data or DataNow(where)
    existing: dict[str, list[RunFolder]] = {}
    for folder in map(RunFolder, plain_runs(parent)):
        text = folder.recipe.read_text(encoding="utf-8", errors="replace")
        existing.setdefault(text, []).append(folder)
    jobs = []
    for seed in seeds:  # an interrupted comparison then has all arms of its first seeds
        for variant in variants:
            recipe = variant.recipe(seed)
            now = data.of(recipe)
            same = [
                folder
                for folder in existing.get(resolved(recipe), [])
                if _same_code(read_json(folder.manifest), recipe, where)
                and _is_unchanged(folder)
                and not differences(as_opened(read_data(folder), now), now)
            ]
            same.sort(key=lambda f: (_finished(f), f.read_status().get("iteration", 0)))
            job = Job(variant, seed, data=now)
            jobs.append(
                replace(job, folder=same[-1].path, finished=_finished(same[-1])) if same else job
            )
    return jobs


def _same_code(manifest: dict[str, Any], recipe: Recipe, device: torch.device) -> bool:
    theirs = {name: entry.get("sha256") for name, entry in manifest.get("plugins", {}).items()}
    mine = {name: entry["sha256"] for name, entry in plugin_record(recipe).items()}
    return (
        theirs == mine
        and manifest.get("code") == code_digest()
        and manifest.get("versions", {}).get("torch") == version("torch")
        and str(manifest.get("device", "")).partition(":")[0] == device.type
    )


def _is_unchanged(folder: RunFolder) -> bool:
    """Whether a run has been what its recipe says from its start."""
    manifest = read_json(folder.manifest)
    if manifest.get("data_changes") or manifest.get("made_again"):
        return False
    try:
        check_recipe(folder.path)
        return not any(change.alters for change in read_record(folder.path).changes)
    except RecipeError:  # it was edited by hand, or the journal of its changes is damaged
        return False


def _finished(folder: RunFolder) -> bool:
    status = folder.read_status()
    return status.get("state") in _FINISHED or status.get("exit_code") == UNHEALTHY


SAVING = "saving the runs in progress"


class Interrupted(GanlabError):  # noqa: N818  # it names an outcome
    """A signal stopped the comparison; the runs in progress are saved."""

    def __init__(self, code: int) -> None:
        super().__init__("interrupted; the same command continues where it stopped")
        self.exit_code = code


def carry_out(
    jobs: Sequence[Job], parent: Path, device: str, workers: int, say: Callable[[str], None]
) -> list[Job]:
    """Make or finish every run of a plan; returns the jobs with their folders.

    A run that fails does not stop the others: its error is printed, and its job is returned
    unfinished.

    :param workers: processes that train at a time. They are spread over the devices that `device`
        allows.
    :raises Interrupted: at a signal that asks to end, after the runs in progress are saved.
    :raises RecipeError: when a run cannot begin.
    """
    if any(job.finished for job in jobs):
        say(f"{sum(job.finished for job in jobs)} of {len(jobs)} runs exist already")
    waiting = [job for job in jobs if not job.finished]
    done: dict[tuple[str, int], Job] = {}
    work = _one_by_one if workers == 1 else _side_by_side
    with closing(work(waiting, parent, device, workers, say)) as results, _ending_saved():
        for number, (job, code, fault) in enumerate(results, 1):
            if code not in (DONE, DIVERGED, UNHEALTHY, FAILED):
                raise Interrupted(code)
            done[job.variant.name, job.seed] = job
            state = RunFolder(job.folder).read_status().get("state") if job.folder else "failed"
            what = f"failed: {fault}" if code == FAILED else str(state)
            say(f"{number} of {len(waiting)}: {job}: {what}, {job.folder}")
    return [done.get((job.variant.name, job.seed), job) for job in jobs]


@contextmanager
def _ending_saved() -> Iterator[None]:
    """Context in which a signal between two runs ends the comparison as within a run."""
    try:
        yield
    except Stopped as stopped:
        raise Interrupted(stopped.exit_code) from None


Result = tuple[Job, int, str]
"""A job with its folder, the exit code of its run, and its error, empty if there was none."""


def _one_by_one(
    jobs: Sequence[Job], parent: Path, device: str, workers: int, say: Callable[[str], None]
) -> Generator[Result, None, None]:
    for number, job in enumerate(jobs, 1):
        say(f"{'continuing' if job.folder else 'starting'} run {number} of {len(jobs)}: {job}")
        result = _train(job, parent, device, Limits())
        release_memory(pick_device(device))
        yield result


def _side_by_side(
    jobs: Sequence[Job], parent: Path, device: str, workers: int, say: Callable[[str], None]
) -> Generator[Result, None, None]:
    # spawned, because CUDA does not work after a fork
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    # nothing is ever sent: the workers notice that this end is closed, also when a kill closes it
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (numbers, theirs, device, workers))
    with held(SAVING, ours.close), pool:
        say(f"{len(jobs)} runs, {workers} at a time")
        futures = [pool.submit(_train_quietly, job, parent) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            ours.close()
            pool.shutdown(wait=True, cancel_futures=True)


def _train(job: Job, parent: Path, device: str, limits: Limits) -> Result:
    try:
        recipe = job.variant.recipe(job.seed)  # its code is that of the run, and may run here
        if job.folder:
            folder, code = resume(job.folder, device, limits)
        else:
            folder, code = start(recipe, device, limits, parent, data=job.data)
    except Stopped as stopped:  # before its training began, or went on
        return job, stopped.exit_code, ""
    except Exception as error:
        (found,) = make_plan([job.variant], [job.seed], parent, device)
        if found.folder is None:  # it never began, and the others would not either
            raise
        kind = "" if isinstance(error, GanlabError) else f"{type(error).__name__}: "
        return found, FAILED, f"{kind}{error}".partition("\n")[0]
    finished = code in (DONE, DIVERGED, UNHEALTHY)
    return replace(job, folder=folder.path, finished=finished), code, ""


def device_of_worker(number: int, name: str) -> str:
    """The device of a worker process: the workers take turns among the devices of this name."""
    allowed = devices(name)
    return str(allowed[number % len(allowed)])


_device = "cpu"  # the device of this worker process
_idle = threading.Event()
_life = ExitStack()


def _begin_worker(numbers: Any, lifeline: Connection, device: str, workers: int) -> None:
    global _device
    # a run handles signals itself; one that comes between runs is noted, and ends the next
    _life.enter_context(heeding())
    _life.enter_context(held())
    _idle.set()
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    _device = device_of_worker(numbers.get(), device)
    if not _device.startswith("cuda"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # no bars of several runs on one line


def _end_with_parent(lifeline: Connection) -> None:
    """Stop the run at work when the parent says so or is gone; then end, if it is gone."""
    family = multiprocessing.parent_process()
    assert family
    wait([lifeline, family.sentinel])
    interrupt(signal.SIGTERM)
    family.join()
    _idle.wait()
    os._exit(SIGTERMED)


def _train_quietly(job: Job, parent: Path) -> Result:
    _idle.clear()
    try:
        if heard() is not None:  # the pool gives out one job more than it has workers
            return job, exit_code(heard()), ""
        return _train(job, parent, _device, Limits())
    finally:
        _idle.set()


def cost(jobs: Sequence[Job], device: str) -> tuple[float, str]:
    """Seconds that the missing runs of a plan will take, one at a time, and the source of that.

    The source is the finished runs of the plan; if there are none, iterations of the first missing
    run, timed at seven points of it.
    """
    missing = [job for job in jobs if not job.finished]
    if not missing:
        return 0.0, "all exist"
    known = [RunFolder(job.folder).read_status().get("seconds") for job in jobs if job.finished
             and job.folder]  # fmt: skip
    times = [float(seconds) for seconds in known if seconds]
    if times:
        return len(missing) * median(times), f"from {len(times)} runs that exist"
    first = missing[0].variant.recipe(missing[0].seed)
    try:
        return len(missing) * estimate(first, device).seconds, "from a few timed iterations"
    except RecipeError:
        raise
    except Exception as error:  # an error of a plugin; the run itself will report it
        return math.nan, f"an iteration of {missing[0]} fails: {type(error).__name__}: {error}"
