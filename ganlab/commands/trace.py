"""`ganlab trace`: which plugin runs at which hook, in order, with shapes and milliseconds."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab.assembly import assemble
from ganlab.checking.chains import Recorder, dropped
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.monitoring.calls import Watch, watching
from ganlab.plugin import Batch
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.speed.device import now, pick_device


@dataclass(slots=True)
class Call:
    """One plugin's answer to one call of a hook."""

    depth: int
    """The number of calls that enclose this one."""
    hook: str
    plugin: str
    """Name of the plugin; "engine" for the engine's own answer."""
    wraps: bool
    """Whether it wraps the others and may change their answers; its time then excludes theirs."""
    milliseconds: float = 0.0
    result: str = ""


@dataclass(frozen=True, slots=True)
class Traced:
    """The calls of one iteration, and its logged values."""

    iteration: int
    calls: list[Call]
    losses: dict[str, float]
    dropped: list[str]
    """A sentence for each plugin that throws away what came before it in a chain."""


def trace_recipe(
    file: Path, overrides: Iterable[str], device: str, iterations: Iterable[int] = ()
) -> list[Traced]:
    """Trace single iterations; the first and the last one when none are named.

    Each is run once before without a trace, so that one-time work is not measured. Steps run as
    written, whatever the recipe's `compile`: a replayed step calls no plugin.

    :raises RecipeError: when the recipe cannot run.
    """
    recipe = load_recipe(file, [*overrides, "compile=off"])
    wanted = list(iterations) or sorted({0, recipe.iterations - 1})
    if max(wanted) >= recipe.iterations:
        raise RecipeError(
            f"--iteration {max(wanted)}: the recipe's last iteration is {recipe.iterations - 1}"
        )
    run = assemble(recipe, pick_device(device))
    found = []
    for run.iteration in wanted:
        recorder = Recorder()
        with watching(run.manager, recorder.begin):
            iterate(run)
        with tracing(run) as calls:
            losses = iterate(run)
        figures = {name: value.item() for name, value in losses.items()}
        found.append(Traced(run.iteration, calls, figures, dropped(run, recorder.calls)))
    return found


@contextmanager
def tracing(run: Run) -> Iterator[list[Call]]:
    """Context in which every hook call of a run is recorded, in the order in which calls begin."""
    tracer = _Tracer(run.device)
    with watching(run.manager, tracer.begin):
        yield tracer.calls


class _Tracer:
    def __init__(self, device: torch.device) -> None:
        self.calls: list[Call] = []
        self.depth, self.device = 0, device

    def begin(self, hook: str, plugin: str, wraps: bool) -> "_Watch":
        self.calls.append(Call(self.depth, hook, plugin, wraps))
        return _Watch(self, self.calls[-1])


class _Watch(Watch):
    """The clock of one call; calls made inside a call that is no wrapper are one level deeper."""

    def __init__(self, tracer: _Tracer, call: Call) -> None:
        self._tracer, self._call = tracer, call

    def __enter__(self) -> None:
        self._tracer.depth += not self._call.wraps
        self._began = now(self._tracer.device)

    def __exit__(self, *error: object) -> None:
        self._call.milliseconds += 1000 * (now(self._tracer.device) - self._began)
        self._tracer.depth -= not self._call.wraps

    def answered(self, answer: Any) -> None:
        self._call.result = describe(answer)


def describe(value: Any) -> str:
    """A short text for an answer: shapes and dtypes of tensors, names and values of losses."""
    if isinstance(value, Tensor):
        if value.dim() == 0:
            return f"{value.item():.4g} {_dtype(value)}"
        return f"[{', '.join(map(str, value.shape))}] {_dtype(value)}"
    if isinstance(value, Batch):
        return f"real {describe(value.real)}, condition {describe(value.condition)}"
    if isinstance(value, dict):
        shown = ", ".join(f"{name} {describe(inner)}" for name, inner in value.items())
        return shown or "nothing"
    if isinstance(value, tuple | list):
        return ", ".join(describe(inner) for inner in value)
    return "" if value is None else str(value)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def lines(traced: Traced) -> Iterator[str]:
    """A trace as text, inner calls indented; `~` marks a plugin that changes others' answers."""
    yield f"iteration {traced.iteration}"
    for call in traced.calls:
        name = f"{'  ' * call.depth}{call.hook}"
        who = ("~" if call.wraps else "") + call.plugin
        yield f"  {call.milliseconds:>9.3f} ms  {name:<28} {who:<24} {call.result}".rstrip()
    yield from (f"  warning: {sentence}" for sentence in traced.dropped)
