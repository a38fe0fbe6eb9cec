"""The runs of a comparison: which exist, which are to be continued, and which to be made."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from ganlab.bench.cost import estimate
from ganlab.compare.data import DataNow
from ganlab.ending import UNHEALTHY
from ganlab.errors import RecipeError
from ganlab.limits import Limits
from ganlab.recipe.model import Recipe, load_recipe, resolved
from ganlab.runs.data import Data, as_opened, differences
from ganlab.runs.environment import code_digest
from ganlab.runs.folder import RunFolder, plugin_record, read_data
from ganlab.runs.links import plain_runs
from ganlab.runs.reading import read_json
from ganlab.runs.record import check_recipe, read_record
from ganlab.speed.device import pick_device

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
    limits: Callable[..., Limits] = Limits
    """What ends the run early, made where the run is; it gets `called_off`. It can be pickled."""

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
    kind: str = "",
) -> list[Job]:
    """A job for every variant and seed, seed after seed; each finds its run if that exists already.

    Two runs are the same when they have the same resolved recipe with its seed, data, code of
    plugins and ganlab, version of torch and kind of device. Of several, the furthest one is taken.

    :param device: on which the data are looked up, in this process.
    :param kind: of the device on which runs compute; by default that of `device`.
    """
    where = pick_device(device)
    kind = kind or where.type
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
                if _same_code(read_json(folder.manifest), recipe, kind)
                and _is_unchanged(folder)
                and not differences(as_opened(read_data(folder), now), now)
            ]
            same.sort(key=lambda f: (_finished(f), f.read_status().get("iteration", 0)))
            job = Job(variant, seed, data=now)
            jobs.append(
                replace(job, folder=same[-1].path, finished=_finished(same[-1])) if same else job
            )
    return jobs


def _same_code(manifest: dict[str, Any], recipe: Recipe, kind: str) -> bool:
    theirs = {name: entry.get("sha256") for name, entry in manifest.get("plugins", {}).items()}
    mine = {name: entry["sha256"] for name, entry in plugin_record(recipe).items()}
    return (
        theirs == mine
        and manifest.get("code") == code_digest()
        and manifest.get("versions", {}).get("torch") == version("torch")
        and str(manifest.get("device", "")).partition(":")[0] == kind
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


def cost(jobs: Sequence[Job], device: str, elsewhere: bool = False) -> tuple[float, str]:
    """Seconds that the missing runs of a plan will take, one at a time, and the source of that.

    The source is the finished runs of the plan; if there are none, iterations of the first missing
    run, timed at seven points of it.

    :param elsewhere: whether the runs will be made on other machines, so that timing iterations
        here says nothing.
    """
    missing = [job for job in jobs if not job.finished]
    if not missing:
        return 0.0, "all exist"
    known = [RunFolder(job.folder).read_status().get("seconds") for job in jobs if job.finished
             and job.folder]  # fmt: skip
    times = [float(seconds) for seconds in known if seconds]
    if times:
        return len(missing) * median(times), f"from {len(times)} runs that exist"
    if elsewhere:
        return math.nan, "no run of it exists yet, and the workers are other machines"
    first = missing[0].variant.recipe(missing[0].seed)
    try:
        return len(missing) * estimate(first, device).seconds, "from a few timed iterations"
    except RecipeError:
        raise
    except Exception as error:  # an error of a plugin; the run itself will report it
        return math.nan, f"an iteration of {missing[0]} fails: {type(error).__name__}: {error}"
