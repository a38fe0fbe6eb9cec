"""`ganlab trace`: which plugin runs at which hook, in order, with shapes and milliseconds."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

import torch
from pluggy import HookImpl, PluginManager
from torch import Tensor

from ganlab.device import pick_device
from ganlab.engine import Run, assemble, iterate
from ganlab.errors import RecipeError
from ganlab.plugin import Batch
from ganlab.recipe import load_recipe


@dataclass(slots=True)
class Call:
    """One plugin's answer to one call of a hook."""

    depth: int
    """How many calls it was made inside of."""
    hook: str
    plugin: str
    """"engine" for the engine's own answer."""
    wraps: bool
    """Whether it changed what the others answered; its time is then its own part alone."""
    milliseconds: float = 0.0
    result: str = ""


@dataclass(frozen=True, slots=True)
class Traced:
    """The calls of one iteration, and its logged values."""

    iteration: int
    calls: list[Call]
    losses: dict[str, float]


def trace_recipe(
    file: Path, overrides: Iterable[str], device: str, iterations: Iterable[int] = ()
) -> list[Traced]:
    """Run single iterations, as of the first and the last one when none are named.

    Each is preceded by one that is not traced, so that nothing is measured that is done once.

    :raises RecipeError: when the recipe cannot run.
    """
    recipe = load_recipe(file, overrides)
    wanted = list(iterations) or sorted({0, recipe.iterations - 1})
    if max(wanted) >= recipe.iterations:
        raise RecipeError(
            f"--iteration {max(wanted)}: the recipe's last one is {recipe.iterations - 1}"
        )
    run = assemble(recipe, pick_device(device))
    found = []
    for run.iteration in wanted:
        iterate(run)
        with tracing(run) as calls:
            losses = iterate(run)
        found.append(Traced(run.iteration, calls, {n: v.item() for n, v in losses.items()}))
    return found


@contextmanager
def tracing(run: Run) -> Iterator[list[Call]]:
    """Note every hook call of a run, in the order in which they begin."""
    tracer = _Tracer(run)
    replaced = [
        (impl, impl.function) for caller in _callers(run.manager) for impl in caller.get_hookimpls()
    ]
    for impl, function in replaced:
        impl.function = tracer.watched(impl, function)
    try:
        yield tracer.calls
    finally:
        for impl, function in replaced:
            impl.function = function


def _callers(manager: PluginManager) -> list[Any]:
    return list(vars(manager.hook).values())


class _Tracer:
    def __init__(self, run: Run) -> None:
        self.calls: list[Call] = []
        self._run, self._depth = run, 0

    def watched(self, impl: HookImpl, function: Callable[..., Any]) -> Callable[..., Any]:
        name = impl.plugin_name if hasattr(impl.plugin, "name") else "engine"
        hook = function.__name__

        @wraps(function)
        def plain(*arguments: Any) -> Any:
            with self._call(Call(self._depth, hook, name, False)) as call:
                answer = function(*arguments)
                call.result = describe(answer)
            return answer

        @wraps(function)
        def wrapper(*arguments: Any) -> Generator[None, Any, Any]:
            call = Call(self._depth, hook, name, True)
            self.calls.append(call)
            inner = function(*arguments)
            with self._timed(call):
                next(inner)
            answer = yield
            try:
                with self._timed(call):
                    inner.send(answer)
            except StopIteration as done:
                call.result = describe(done.value)
                return done.value
            raise RuntimeError(f"{name}: {hook} yields more than once")

        return wrapper if isgeneratorfunction(function) else plain

    @contextmanager
    def _call(self, call: Call) -> Iterator[Call]:
        self.calls.append(call)
        self._depth += 1
        try:
            with self._timed(call):
                yield call
        finally:
            self._depth -= 1

    @contextmanager
    def _timed(self, call: Call) -> Iterator[None]:
        began = self._now()
        try:
            yield
        finally:
            call.milliseconds += 1000 * (self._now() - began)

    def _now(self) -> float:
        if self._run.device.type == "cuda":
            torch.cuda.synchronize(self._run.device)
        return time.perf_counter()


def describe(value: Any) -> str:
    """An answer in short: shapes and dtypes of tensors, names and values of losses."""
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
