"""Out of memory: what was at work, how much was missing, and what needs less.

Everything is read from the error and its traceback, so no code has to say what it is about to do.
"""

import re
import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import CodeType

import torch
from torch.optim import Optimizer

from ganlab.assembly import assemble
from ganlab.checkpoint import last_checkpoint, load_checkpoint, write_checkpoint
from ganlab.defaults import Defaults
from ganlab.engine import Loop, iterate
from ganlab.errors import OutOfMemory
from ganlab.evaluation.health import game_health
from ganlab.evaluation.scores import evaluate_generator
from ganlab.monitoring.attribution import gradients
from ganlab.monitoring.blame import Blame, blame
from ganlab.recipe.model import Recipe
from ganlab.run import Run, Update
from ganlab.runs.folder import RunFolder
from ganlab.speed.device import free_memory
from ganlab.speed.graphs import Graphs
from ganlab.speed.trial import tried
from ganlab.steps import discriminator_losses, generator_losses

# in a CUDA or a CPU error that has no class of its own
_WORDS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
_AMOUNT = r"([\d.]+) ?([KMGTP]i?B|bytes)"
_UNITS = {"bytes": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}

# what is told when a function is at work; the innermost one counts
_ITERATION: dict[CodeType, str] = {
    Defaults.sample_batch.__code__: "sampling",
    discriminator_losses.__code__: "forward pass",
    generator_losses.__code__: "forward pass",
    torch.Tensor.backward.__code__: "backward pass",
    gradients.__code__: "the gradient of one loss, since this step is watched",
    tried.__code__: "trial of a quicker way to take it",
}
_BESIDE: dict[CodeType, str] = {
    assemble.__code__: "the assembly of the run",
    load_checkpoint.__code__: "reading a checkpoint",
    write_checkpoint.__code__: "writing a checkpoint",
    Loop.save.__code__: "writing a checkpoint",
    Loop.evaluate.__code__: "the evaluation",
    evaluate_generator.__code__: "the evaluation",
    game_health.__code__: "the health of the game",
}
_ADVICE = {
    "the assembly of the run": [
        "networks and data do not fit, before any step: take smaller networks; on a GPU, data may "
        "also stay in the machine's memory"
    ],
    "the evaluation": [
        "the memory of an evaluation grows with the largest held-out image: hold out smaller ones"
    ],
}


@contextmanager
def telling_out_of_memory(folder: RunFolder | None = None) -> Iterator[None]:
    """Context in which an error for lack of memory becomes one message with remedies.

    What the failed work held is freed, so that the run can still write how it ended.

    :param folder: of the run; the message then says how to go on.
    :raises OutOfMemory: instead of the error.
    """
    try:
        yield
    except Exception as error:
        told = explained(error, folder)
        if told is None:
            raise
        _release(error)
        raise told from None


def explained(error: BaseException, folder: RunFolder | None = None) -> OutOfMemory | None:
    """The message for an error for lack of memory; None for any other error."""
    if isinstance(error, OutOfMemory):
        return error
    if not is_out_of_memory(error):
        return None
    place = Place.of(error)
    lines = [f"out of memory{place.words()}: {_amounts(error, place.device)}"]
    lines += _ADVICE.get(place.phase, [])
    if place.recipe and place.is_of_a_step:
        lines.append("each of these lines in a recipe, or with --set, makes a run need less:")
        lines += [f"  {key} = {value}  # {what}" for key, value, what in _remedies(place)]
        file = str(folder.recipe if folder else place.recipe.file)
        lines.append(
            f"the largest batch that fits: {shlex.join(['ganlab', 'bench', file, '--fit'])}"
        )
    if folder:
        lines.append(_going_on(folder))
    return OutOfMemory("\n".join(lines))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: torch's on any device, Python's or NumPy's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@dataclass(slots=True)
class Place:
    """What was at work when an error was raised, read from its traceback."""

    run: Run | None = None
    recipe: Recipe | None = None
    phase: str = ""
    """Such as "the evaluation", or "iteration 7"."""
    details: list[str] = field(default_factory=list)
    """Of an iteration, such as ["G step", "backward pass"]."""
    culprit: Blame | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Place":
        place = cls(culprit=blame(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            code, here = frame.f_code, frame.f_locals
            if isinstance(run := here.get("run"), Run):
                place.run = place.run or run
            if isinstance(recipe := here.get("recipe"), Recipe):
                place.recipe = place.recipe or recipe
            if code is iterate.__code__ and place.run:
                place.phase, place.details = f"iteration {place.run.iteration + 1:,}", []
            elif code in _BESIDE:
                place.phase, place.details = _BESIDE[code], []
            elif code is Update.__call__.__code__:
                place.details = [f"{here['self'].role} step"]
            elif code in _ITERATION:
                place.details = [*place.details[:1], _ITERATION[code]]
            elif isinstance(here.get("self"), Optimizer):
                place.details = [*place.details[:1], "optimizer"]
        if place.run and not place.recipe:
            place.recipe = place.run.recipe
        return place

    @property
    def is_of_a_step(self) -> bool:
        """Whether smaller steps leave more memory for what was at work.

        On a CPU they do so for what comes between steps too, since freed memory is kept.
        """
        if self.phase in ("", _BESIDE[assemble.__code__]):
            return False
        beside = set(_BESIDE.values()) - {_BESIDE[game_health.__code__]}
        return self.device.type == "cpu" or self.phase not in beside

    @property
    def device(self) -> torch.device:
        return self.run.device if self.run else torch.device("cpu")

    def words(self) -> str:
        """The place as a part of a sentence."""
        told = f" in {self.phase}" if self.phase else ""
        if self.run and not self.details and not self.phase.startswith("iteration"):
            told += f" after {self.run.iteration:,} iterations" if self.run.iteration else ""
        told += f" ({', '.join(self.details)})" if self.details else ""
        if self.culprit:
            told += f", in {self.culprit.plugin.name}'s {self.culprit.hook}"
        return told


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
    if _ITERATION[gradients.__code__] in place.details:
        yield "watch_every", "0", "the gradient of each loss is not measured"
    if run and isinstance(getattr(run, "execution", None), Graphs):
        yield "compile", '"off"', "the same numbers; captured steps keep their memory"
    if place.device.type == "cuda" and recipe.precision == "float32":
        yield "precision", '"bfloat16"', "half the memory of most activations"


def _going_on(folder: RunFolder) -> str:
    kept = last_checkpoint(folder.checkpoints)
    begins = "from the start" if kept is None else f"from its checkpoint of iteration {kept:,}"
    command = shlex.join(["ganlab", "resume", str(folder.path)])
    return (
        f"this run goes on {begins}: {command} (before that, "
        f"activation_checkpointing and compile may be changed in {folder.recipe})"
    )


def _release(error: BaseException) -> None:
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
