"""Out of memory: how much was missing, and what needs less."""

import re
import shlex
import traceback
from collections.abc import Iterator
from contextlib import suppress

import torch

from ganlab.failures.place import ASSEMBLY, BESIDE, EVALUATION, HEALTH, WATCHED, Place
from ganlab.runs.folder import RunFolder
from ganlab.speed.device import free_memory
from ganlab.speed.graphs import Graphs

# in a CUDA or a CPU error that has no class of its own
_WORDS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
_AMOUNT = r"([\d.]+) ?([KMGTP]i?B|bytes)"
_UNITS = {"bytes": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}

_ADVICE = {
    ASSEMBLY: [
        "networks and data do not fit, before any step: take smaller networks; on a GPU, data may "
        "also stay in the machine's memory"
    ],
    EVALUATION: [
        "the memory of an evaluation grows with the largest held-out image: hold out smaller ones"
    ],
}


def out_of_memory(place: Place, error: BaseException, folder: RunFolder | None) -> list[str]:
    """The lines of the message for an error for lack of memory, with remedies.

    :param folder: of the run; the message then names its recipe.
    """
    words = f" {place.words()}" if place.words() else ""
    lines = [f"out of memory{words}{_whose(place)}: {_amounts(error, place.device)}"]
    if place.culprit and place.culprit.place:
        lines.append(f"at {place.culprit.place}")
    lines += _ADVICE.get(place.phase, [])
    if place.recipe and is_of_a_step(place):
        lines.append("each of these lines in a recipe, or with --set, makes a run need less:")
        lines += [f"  {key} = {value}  # {what}" for key, value, what in _remedies(place)]
        file = str(folder.recipe if folder else place.recipe.file)
        lines.append(
            f"the largest batch that fits: {shlex.join(['ganlab', 'bench', file, '--fit'])}"
        )
    return lines


def _whose(place: Place) -> str:
    if not place.culprit:
        return ""
    return f", in {place.culprit.where} of {place.whose()}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: torch's on any device, Python's or NumPy's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def is_of_a_step(place: Place) -> bool:
    """Whether smaller steps leave more memory for what was at work.

    On a CPU they do so for what comes between steps too, since freed memory is kept.
    """
    if place.phase in ("", ASSEMBLY):
        return False
    return place.device.type == "cpu" or place.phase not in set(BESIDE.values()) - {HEALTH}


def _amounts(error: BaseException, device: torch.device) -> str:
    """How much was asked for, as far as the error says it, and how much was free."""
    message = str(error)
    asked = re.search(f"(?:[Aa]llocate|Requested size:) {_AMOUNT}", message)
    free = re.search(f"{_AMOUNT} is free", message)
    allowed = re.search(f"{_AMOUNT} allowed", message)
    told = f"{_size(*asked.groups())} asked for, " if asked else ""
    room = _size(*free.groups()) if free else _size(str(free_memory(device)), "bytes")
    limit = f", this process may have {_size(*allowed.groups())}" if allowed else ""
    return f"{told}{room} free on {device}{limit}"


def _size(number: str, unit: str) -> str:
    size = float(number) * 1024 ** _UNITS[unit if unit == "bytes" else unit[0]]
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _remedies(place: Place) -> Iterator[tuple[str, str, str]]:
    """Settings that need less memory: name, value as in a recipe, and what it does."""
    recipe, run = place.recipe, place.run
    assert recipe
    batch, parts = recipe.batch_size, recipe.accumulate
    if half := batch // 2 // parts * parts:
        yield "batch_size", str(half), "half the batch, which --fit tries first"
    if more := next((n for n in range(2 * parts, batch + 1) if batch % n == 0), None):
        yield "accumulate", str(more), f"the same batch, taken in {more} parts"
    if not recipe.activation_checkpointing:
        yield "activation_checkpointing", "true", "the same numbers; 1.2 times as long"
    if WATCHED in place.details:
        yield "watch_every", "0", "the gradient of each loss is not measured"
    if run and isinstance(getattr(run, "execution", None), Graphs):
        yield "compile", '"off"', "the same numbers; captured steps keep their memory"
    if place.device.type == "cuda" and recipe.precision == "float32":
        yield "precision", '"bfloat16"', "half the memory of most activations"


def release(error: BaseException) -> None:
    """Free what the frames of an error hold: the activations of a step, the copies of a trial."""
    one: BaseException | None = error
    while one:
        for frame, _line in traceback.walk_tb(one.__traceback__):
            with suppress(RuntimeError):  # it is still at work
                frame.clear()
            _ = frame.f_locals  # before Python 3.13 a dict, which is emptied when it is read again
        one = one.__context__
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # an error of CUDA may have left it unusable
            torch.cuda.empty_cache()
