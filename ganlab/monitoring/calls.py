"""Watch every call of every hook: which plugin runs, what it receives and what it returns."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

from pluggy import HookImpl, PluginManager
from torch import Tensor

from ganlab.plugin import Batch, EvaluatedImage, Plugin


class Watch:
    """Watches one call. Entered once for a plain hookimpl, twice for the two parts of a wrapper."""

    def __enter__(self) -> object:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def given(self, arguments: dict[str, Any]) -> None:
        """Called at the beginning with the arguments of the call, by name."""

    def received(self, answer: Any) -> None:
        """Called between the two parts of a wrapper with what it wraps."""

    def answered(self, answer: Any) -> None:
        """Called at the end with what the call returned."""


Begin = Callable[[str, str, bool], Watch]
"""Makes the watch of a call. Arguments: the name of the hook, the name of the plugin ("engine" for
the engine's own implementation), and whether the implementation wraps others."""


@contextmanager
def watching(manager: PluginManager, begin: Begin) -> Iterator[None]:
    """Context in which `begin` makes a watch for every hook call, in the order of the calls."""
    restore = watch(manager, begin)
    try:
        yield
    finally:
        restore()


def watch(manager: PluginManager, begin: Begin) -> Callable[[], None]:
    """As `watching`, from now on; returns a function that ends it."""
    callers: list[Any] = list(vars(manager.hook).values())
    replaced = [(impl, impl.function) for caller in callers for impl in caller.get_hookimpls()]
    for impl, function in replaced:
        impl.function = _watched(impl, function, begin)

    def restore() -> None:
        for impl, function in replaced:
            impl.function = function

    return restore


def _watched(impl: HookImpl, function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    hook = function.__name__
    plugin = impl.plugin_name if isinstance(impl.plugin, Plugin) else "engine"

    @wraps(function)
    def plain(*arguments: Any) -> Any:
        watch = begin(hook, plugin, False)
        watch.given(dict(zip(impl.argnames, arguments, strict=True)))
        with watch:
            answer = function(*arguments)
        watch.answered(answer)
        return answer

    @wraps(function)
    def wrapper(*arguments: Any) -> Generator[None, Any, Any]:
        watch = begin(hook, plugin, True)
        watch.given(dict(zip(impl.argnames, arguments, strict=True)))
        inner = function(*arguments)
        with watch:
            next(inner)
        answer = yield
        watch.received(answer)
        try:
            with watch:
                inner.send(answer)
        except StopIteration as done:
            watch.answered(done.value)
            return done.value
        raise RuntimeError(f"{plugin}: {hook} yields more than once")

    return wrapper if isgeneratorfunction(function) else plain


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value: a tensor, a batch, an image, or lists, tuples and dicts of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Batch):
        return [value.real, value.condition]
    if isinstance(value, EvaluatedImage):
        return [value.hr, value.lr, value.sr, value.bicubic]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def is_finite(value: Any) -> bool:
    """Whether all numbers of the tensors in a value are finite. Waits for the device."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors(value))
