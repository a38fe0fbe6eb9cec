"""Find where numbers ceased to be finite: iterations are taken again from the last checkpoint.

Losses stay on the device until a report is due, and a gradient that is not finite shows in the
losses of the next step only. So a run learns late that it diverged, and the first loss that is not
finite may not be the cause. Every random number is a function of the seed and the moment, so the
iterations can be taken again. They are taken as written, one by one, with a check after each. The
first one that fails is taken once more: loss by loss, and plugin by plugin.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ganlab.assembly import assemble
from ganlab.checkpoint import (
    checkpoints_of,
    delete_checkpoint,
    last_checkpoint,
    load_checkpoint,
    roll_back,
)
from ganlab.errors import Diverged
from ganlab.failures.bundle import Bundle
from ganlab.failures.examination import Examination
from ganlab.generator_weights import drop_later
from ganlab.iteration import iterate
from ganlab.monitoring.calls import is_finite
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager, Run
from ganlab.runs.folder import RunFolder
from ganlab.soundness import unsound_part
from ganlab.state import restore, state_of
from ganlab.stopping import Stopped, released

MOST_AGAIN = 10_000  # iterations; more would take too long for one sentence


@dataclass(frozen=True, slots=True)
class Cause:
    """The iteration at which a run diverged, and what failed there."""

    iteration: int
    """Counted from 1, as in stats.jsonl."""
    what: str
    step: str = ""
    """The optimizer step, such as "step 1 of D", where it is known."""
    bundle: Bundle | None = None
    """With which it can be taken again, where the fault came back."""

    def __str__(self) -> str:
        return f"iteration {self.iteration:,}{', ' if self.step else ''}{self.step}: {self.what}"


def find_cause(
    folder: RunFolder,
    device: torch.device,
    times: int,
    told: Diverged,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Cause:
    """Take iterations again, from the newest checkpoint or else from the start, to find the cause.

    This takes about as long as training took from there. No file is changed.

    :param times: how often the run went back to a checkpoint already.
    :param told: what the run noticed; it is the answer when nothing better is found.
    :param stop: asked before each iteration; True ends the search. A signal ends it at once.
    """
    began, last = last_checkpoint(folder.checkpoints) or 0, told.iteration
    known = f"{told.what}; it is not known which step or plugin is the cause"
    if last - began > MOST_AGAIN:
        return Cause(
            last,
            f"{known}: the nearest saved state is {last - began:,} iterations earlier, and at most "
            f"{MOST_AGAIN:,} are taken again; set a smaller checkpoint_every",
        )
    say(f"not finite: taking iterations {began + 1:,} to {last:,} again to find the cause")
    stopped = Cause(last, f"{known}: the search was stopped")
    try:
        with released():
            run = assemble(load_recipe(folder.recipe, ["watch_every=0"]), device)
            load_checkpoint(run, folder.checkpoints)
            run.progress.rolled_back = times
            # both change no number; but a step shall be taken twice, and loss by loss
            run.execution, run.share_forward = Eager(), False
            return _search(run, told, stop) or stopped
    except Stopped:
        return stopped
    except Exception as fault:  # the run has diverged anyway; a second error would hide that
        return Cause(last, f"{known}: {type(fault).__name__} when taken again: {fault}")


def gone_back(folder: RunFolder, device: torch.device, times: int, iterations: int) -> Run:
    """The run as it was at its newest planned checkpoint, or else at its start.

    A checkpoint that a stop has left between two planned ones does not count, so that a run that
    was stopped equals one that was not. Later checkpoints are deleted, and a later best generator.

    :param times: how often the run went back, which decides about its random numbers from there on.
    :param iterations: how many of its iterations are sound.
    """
    run = assemble(load_recipe(folder.recipe), device, folder)
    planned = iterations - iterations % run.recipe.checkpoint_every
    kept = checkpoints_of(folder.checkpoints)
    if planned and kept:
        roll_back(run, folder.checkpoints, planned + 1)
    else:
        for number in kept:
            delete_checkpoint(folder.checkpoints, number)
    drop_later(folder.weights("best"), run.iteration)
    run.progress.rolled_back = times
    return run


def _search(run: Run, told: Diverged, stop: Callable[[], bool]) -> Cause | None:
    """Iterate until numbers are not finite; None when `stop()` ended that."""
    began = run.iteration + 1
    while run.iteration < told.iteration and not stop():
        before = state_of(run)
        failed, number = _failure(run), run.iteration + 1
        if failed or number == told.iteration:
            # a copy, since a restored optimizer changes these tensors
            restore(run, copy.deepcopy(before), "before the iteration")
            looked = Examination(run)
            if fault := looked.of_an_iteration():
                told_again = (number, fault.step, fault.what)
                batches, samples = [b.to(torch.device("cpu")) for b in run.batches], looked.samples
                bundle = Bundle(*told_again, before, batches, samples, run.device.type)
                return Cause(number, fault.what, fault.step, bundle)
            return Cause(number, f"{failed or told.what}; {_unrepeatable(run, began)}")
        run.iteration = number
    return None


def _failure(run: Run) -> str:
    """Take an iteration; says what is not finite in it or after it, "" when all is finite."""
    try:
        losses = iterate(run)
    except Diverged as fault:
        return fault.what
    if bad := [name for name, value in losses.items() if not is_finite(value)]:
        return f"{', '.join(bad)} is not finite"
    part = unsound_part(run)
    return f"{part} not finite" if part else ""


def _unrepeatable(run: Run, began: int) -> str:
    exact = run.recipe.deterministic or run.device.type == "cpu"
    why = (
        "perhaps a plugin has state that no checkpoint holds"
        if exact
        else "the steps do not repeat to the bit on this device; deterministic = true makes them"
    )
    return f"taken again from iteration {began:,} on, it did not come back: {why}"
