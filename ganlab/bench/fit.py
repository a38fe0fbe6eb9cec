"""The largest batch that a recipe can take here."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from ganlab import system
from ganlab.assembly import assemble
from ganlab.errors import GanlabError, RecipeError
from ganlab.failures.out_of_memory import is_out_of_memory
from ganlab.failures.telling import explained
from ganlab.iteration import iterate
from ganlab.monitoring.attribution import attributed
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.speed.device import (
    begin_peak_memory,
    free_memory,
    peak_memory,
    pick_device,
    release_memory,
)
from ganlab.system import keep_freed_memory

ITERATIONS = {"cpu": 2, "cuda": 10}  # on CUDA enough to capture graphs, which has its own peak
GROWTH = 8  # from one trial on a CPU to the next, at most
MOST_SECONDS = 120  # for all trials on a CPU
SHARE = 0.9  # of the free memory; the rest is for evaluation and other programs


@dataclass(frozen=True, slots=True)
class Fit:
    """The batch size that was found, and how; memory in bytes."""

    batch_size: int
    measured: dict[int, int]
    """Peak memory by batch size."""
    available: int
    extrapolated: bool
    """Whether a straight line gave it, from sizes of at least half of it; otherwise it was run."""


def largest_batch(file: Path, overrides: Iterable[str], device: str) -> Fit:
    """Find the largest batch size, in steps of the recipe's `accumulate`.

    Sizes are run. On CUDA they are doubled until memory is short, then by bisection. On a CPU, too
    large a batch would bring down the machine: so each is run in its own process, which ends itself
    at 90 % of the free memory, and `grow` chooses the next.

    :raises RecipeError: when not even the smallest size fits.
    """
    changes = tuple(overrides)
    where, recipe = pick_device(device), load_recipe(file, changes)
    if where.type == "cuda":
        return _by_trying(file, changes, where, recipe.accumulate)
    return _by_growing(recipe, changes, where)


def _by_trying(file: Path, changes: tuple[str, ...], where: torch.device, step: int) -> Fit:
    available = free_memory(where)
    measured: dict[int, int] = {}

    def fits(parts: int) -> bool:
        size = parts * step
        try:
            peak = peak_of(file, changes, str(where), size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            peak = available
        release_memory(where)
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


def _by_growing(recipe: Recipe, changes: tuple[str, ...], where: torch.device) -> Fit:
    available, step = free_memory(where), recipe.accumulate
    room, deadline = int(SHARE * available), time.monotonic() + MOST_SECONDS
    pace = 0.0  # seconds of the iterations for each part of a batch

    def trial(parts: int) -> Outcome:
        nonlocal pace
        left = deadline - time.monotonic()
        if left < pace * parts:
            return "no time"
        found = in_a_process(recipe.file, changes, str(where), parts * step, room, left)
        if isinstance(found, str):
            return found
        peak, seconds = found
        pace = seconds / parts
        return peak

    largest, measured = grow(trial, max(1, recipe.batch_size // step // 2), room)
    known = {parts * step: peak for parts, peak in measured.items()}
    size = _at_least_one(recipe.file, largest) * step
    return Fit(size, known, available, extrapolated=size not in known)


Outcome = int | Literal["no room", "no time"]
"""Of a trial: its peak memory in bytes, or why it was ended."""


def grow(trial: Callable[[int], Outcome], first: int, room: int) -> tuple[int, dict[int, int]]:
    """Find the largest number for which the peak memory stays within the room, by trials.

    A line through the two largest trials says where to try next: at most `GROWTH` times the
    largest so far, and below what had no room. So no number is believed before it was tried.
    When time is up, the line may be followed to twice the largest trial, and no further.

    :param first: the number of the first trial.
    :returns: the number, 0 if none has room; and the peak memory of each trial that had room.
    :raises RecipeError: when there was no time for a single trial.
    """
    measured: dict[int, int] = {}
    over: int | None = None
    target, growth = first, GROWTH
    while True:
        found = trial(target)
        if found == "no time":
            if not measured:
                raise RecipeError(
                    f"one trial took longer than {MOST_SECONDS} s; begin with a smaller batch_size"
                )
            target = _next(measured, over, room, 2) if len(measured) > 1 else max(measured)
            if growth == 2 or len(measured) == 1:
                return target, measured
            growth = 2  # there may be time for a smaller one
            continue
        if found == "no room":
            over = target
        else:
            measured[target] = found
        if not measured:
            if target == 1:
                return 0, measured
            target //= 2
            continue
        largest = max(measured)
        target = _next(measured, over, room, growth)
        if target - largest <= largest // 16:
            return largest, measured


def _next(measured: dict[int, int], over: int | None, room: int, growth: int) -> int:
    """The number at which the room is used up, by a line, within the bounds of `grow`."""
    *_, small, large = sorted([0, *measured])
    highest = 2 * large if len(measured) == 1 else growth * large
    if len(measured) > 1:
        each = max((measured[large] - measured[small]) / (large - small), 1.0)
        highest = min(highest, int(large + (room - measured[large]) / each))
    return highest if over is None else min(highest, (large + over) // 2)


NO_ROOM, NO_TIME = 91, 92  # exit codes of a trial


def in_a_process(
    file: Path, changes: tuple[str, ...], device: str, batch_size: int, room: int, seconds: float
) -> tuple[int, float] | Literal["no room", "no time"]:
    """`trained` in a process of its own, which ends itself when memory or time is used up.

    In this process, memory that one trial has used and freed would count for the next.

    :raises GanlabError: whatever the trial raises.
    """
    # where possible a fork of one process that has imported torch and run nothing
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([__name__, "torch._dynamo"])  # the optimizers import it
    answers, sender = context.Pipe(duplex=False)
    arguments = (sender, room, seconds, file, changes, device, batch_size)
    child = context.Process(target=_watched_trial, args=arguments, daemon=True)
    child.start()
    sender.close()
    try:
        answer: Any = answers.recv()
    except EOFError:
        answer = None
    finally:
        child.join()
    if isinstance(answer, Exception):
        raise answer
    if answer is not None:
        return int(answer[0]), float(answer[1])
    if child.exitcode == NO_TIME:
        return "no time"
    if child.exitcode == NO_ROOM or (child.exitcode or 0) < 0:  # ended by the system
        return "no room"
    raise GanlabError(f"{file}: the trial of batch_size = {batch_size} crashed")


def _watched_trial(sender: Connection, room: int, seconds: float, *trial: Any) -> None:
    deadline = time.monotonic() + seconds

    def watch() -> None:
        while True:
            if system.peak_memory() > room:
                os._exit(NO_ROOM)
            if time.monotonic() > deadline:
                os._exit(NO_TIME)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    try:
        sender.send(trained(*trial))
    except GanlabError as error:
        sender.send(error)
    except BaseException as error:
        if is_out_of_memory(error):
            os._exit(NO_ROOM)
        if told := explained(error):  # here is the traceback that says whose code it was
            sender.send(told)
        raise


def _at_least_one(file: Path, parts: int) -> int:
    if parts < 1:
        raise RecipeError(
            f"{file}: not even one sample fits into the free memory; take smaller crops or networks"
        )
    return parts


def peak_of(file: Path, changes: tuple[str, ...], device: str, batch_size: int) -> int:
    """Peak memory, in bytes, of a few iterations late in the run with this batch size."""
    return trained(file, changes, device, batch_size)[0]


def trained(
    file: Path, changes: tuple[str, ...], device: str, batch_size: int
) -> tuple[int, float]:
    """Peak memory and seconds of a few iterations late in the run with this batch size."""
    where = pick_device(device)
    iterations = ITERATIONS.get(where.type, ITERATIONS["cpu"])
    recipe = load_recipe(file, [*changes, f"batch_size={batch_size}", "watch_every=0"])
    run = assemble(recipe, where)
    keep_freed_memory()  # as training does
    begin_peak_memory(where)
    run.iteration = max(0, recipe.iterations - iterations)
    began = time.monotonic()
    with run.execution.running():
        for number in range(iterations):
            # the last one is watched: it keeps the gradients of several losses
            iterate(run, attributed if number == iterations - 1 else None)
    return peak_memory(where), time.monotonic() - began
