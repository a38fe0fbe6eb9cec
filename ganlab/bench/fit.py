"""The largest batch that a recipe can take here."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from ganlab.assembly import assemble
from ganlab.engine import iterate
from ganlab.errors import RecipeError
from ganlab.monitoring.attribution import attributed
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.speed.device import begin_peak_memory, free_memory, peak_memory, pick_device
from ganlab.system import keep_freed_memory

ITERATIONS = {"cpu": 2, "cuda": 10}  # on CUDA enough to capture graphs, which has its own peak
SHARE = 0.9  # of the free memory; the rest is for evaluation and other programs


@dataclass(frozen=True, slots=True)
class Fit:
    """The batch size that was found, and how; memory in bytes."""

    batch_size: int
    measured: dict[int, int]
    """Peak memory by batch size."""
    available: int
    extrapolated: bool
    """Whether a straight line through the measured sizes gave it; otherwise this size was run."""


def largest_batch(file: Path, overrides: Iterable[str], device: str) -> Fit:
    """Find the largest batch size, in steps of the recipe's `accumulate`.

    On CUDA, sizes are run: doubled until memory is short, then by bisection. On a CPU, too large a
    batch would bring down the machine. So only the recipe's own size and half of it are run, each
    in its own process, and the line through them is extended to 90 % of the free memory.

    :raises RecipeError: when not even the smallest size fits.
    """
    changes = tuple(overrides)
    where, recipe = pick_device(device), load_recipe(file, changes)
    if where.type == "cuda":
        return _by_trying(file, changes, where, recipe.accumulate)
    return _by_a_line(recipe, changes, where)


def _by_trying(file: Path, changes: tuple[str, ...], where: torch.device, step: int) -> Fit:
    available = free_memory(where)
    measured: dict[int, int] = {}

    def fits(parts: int) -> bool:
        size = parts * step
        try:
            peak = peak_of(file, changes, str(where), size)
        except torch.OutOfMemoryError:
            peak = available
        torch.cuda.empty_cache()
        if peak < SHARE * available:
            measured[size] = peak
        return size in measured

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Fit(_at_least_one(file, low) * step, measured, available, extrapolated=False)


def _by_a_line(recipe: Recipe, changes: tuple[str, ...], where: torch.device) -> Fit:
    available, step = free_memory(where), recipe.accumulate
    parts = max(2, recipe.batch_size // step)
    small, large = (n * step for n in (parts // 2, parts))
    measured = {}
    for size in (small, large):
        # in its own process: memory that one has used and freed would count for the next
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned) as pool:
            try:
                job = pool.submit(peak_of, recipe.file, changes, str(where), size)
                measured[size] = job.result()
            except BrokenProcessPool:
                raise RecipeError(
                    f"{recipe.file}: the system ended the trial of batch_size = {size}, perhaps "
                    f"for lack of memory; begin with a smaller one, as in --set batch_size={step}"
                ) from None
    each = max((measured[large] - measured[small]) / (large - small), 1.0)
    size = int(small + (SHARE * available - measured[small]) / each) // step
    return Fit(_at_least_one(recipe.file, size) * step, measured, available, extrapolated=True)


def _at_least_one(file: Path, parts: int) -> int:
    if parts < 1:
        raise RecipeError(
            f"{file}: not even one sample fits into the free memory; take smaller crops or networks"
        )
    return parts


def peak_of(file: Path, changes: tuple[str, ...], device: str, batch_size: int) -> int:
    """Peak memory, in bytes, of a few iterations late in the run with this batch size."""
    where = pick_device(device)
    iterations = ITERATIONS.get(where.type, ITERATIONS["cpu"])
    recipe = load_recipe(file, [*changes, f"batch_size={batch_size}", "watch_every=0"])
    run = assemble(recipe, where)
    keep_freed_memory()  # as training does
    begin_peak_memory(where)
    run.iteration = max(0, recipe.iterations - iterations)
    with run.execution.running():
        for number in range(iterations):
            # the last one is watched: it keeps the gradients of several losses
            iterate(run, attributed if number == iterations - 1 else None)
    return peak_memory(where)
