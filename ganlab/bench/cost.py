"""Estimate of a recipe's cost from a few iterations on this machine: seconds, memory, steps."""

import time
from dataclasses import dataclass
from statistics import fmean

import torch

from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.plugin import Losses
from ganlab.recipe.model import Recipe
from ganlab.run import Run, discriminators
from ganlab.speed.device import begin_peak_memory, peak_memory, pick_device, release_memory
from ganlab.system import keep_freed_memory

POINTS = 7  # the middles of seven equal parts of the run
MOST_AGAIN = 20  # captured steps are at speed after five or six


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated cost: `seconds` and `peak_memory` (bytes) of the whole run without evaluations."""

    device: str
    seconds: float
    peak_memory: int
    parameters: dict[str, int]
    d_share: float
    """Share of the points tried that had a D step: D does not train during pretraining."""


def estimate(recipe: Recipe, device: str) -> Estimate:
    """Assemble the recipe, and time one iteration at each of seven points of its run.

    :raises RecipeError: when it cannot run here, for example because its data is missing.
    """
    where = pick_device(device)
    found = _estimate(recipe, where)
    release_memory(where)  # for the processes that train
    return found


def _estimate(recipe: Recipe, where: torch.device) -> Estimate:
    begin_peak_memory(where)
    run = assemble(recipe, where)
    keep_freed_memory()  # as training does
    times, with_d = [], []
    with run.execution.running():
        iterate(run)  # the first one also allocates and loads
        for point in range(POINTS):
            run.iteration = (2 * point + 1) * recipe.iterations // (2 * POINTS)
            seconds, losses = _timed(run)
            times.append(seconds)
            with_d.append(any(name.startswith("D/") for name in losses))
    networks = {"G": [run.G], "D": discriminators(run)}
    return Estimate(
        str(where),
        fmean(times) * recipe.iterations,
        peak_memory(where),
        {n: sum(p.numel() for m in ms for p in m.parameters()) for n, ms in networks.items()},
        fmean(with_d),
    )


def _timed(run: Run) -> tuple[float, Losses]:
    """Seconds and losses of an iteration. It is taken again until all its steps are at speed."""
    for _ in range(MOST_AGAIN):
        slow = run.execution.slow_steps
        began = time.perf_counter()
        losses = iterate(run)
        for value in losses.values():
            value.item()  # the device may still be at work
        seconds = time.perf_counter() - began
        if run.execution.slow_steps == slow:
            break
    return seconds, losses


def clock(seconds: float) -> str:
    """A duration as text, in the largest unit of which it has at least two."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
