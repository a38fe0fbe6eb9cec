"""Watch every call of every hook: which plugin runs, whether it wraps others, what it returns."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, Protocol

from pluggy import HookImpl, PluginManager

from ganlab.plugin import Plugin


class Watch(Protocol):
    """Watches one call. Entered once for a plain hookimpl, twice for the two parts of a wrapper."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def answered(self, answer: Any) -> None:
        """Called at the end with what the call returned."""


Begin = Callable[[str, str, bool], Watch]
"""Makes the watch of a call. Arguments: the name of the hook, the name of the plugin ("engine" for
the engine's own implementation), and whether the implementation wraps others."""


@contextmanager
def watching(manager: PluginManager, begin: Begin) -> Iterator[None]:
    """Context in which `begin` makes a watch for every hook call, in the order of the calls."""
    callers: list[Any] = list(vars(manager.hook).values())
    replaced = [(impl, impl.function) for caller in callers for impl in caller.get_hookimpls()]
    for impl, function in replaced:
        impl.function = _watched(impl, function, begin)
    try:
        yield
    finally:
        for impl, function in replaced:
            impl.function = function


def _watched(impl: HookImpl, function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    hook = function.__name__
    plugin = impl.plugin_name if isinstance(impl.plugin, Plugin) else "engine"

    @wraps(function)
    def plain(*arguments: Any) -> Any:
        watch = begin(hook, plugin, False)
        with watch:
            answer = function(*arguments)
        watch.answered(answer)
        return answer

    @wraps(function)
    def wrapper(*arguments: Any) -> Generator[None, Any, Any]:
        watch = begin(hook, plugin, True)
        inner = function(*arguments)
        with watch:
            next(inner)
        answer = yield
        try:
            with watch:
                inner.send(answer)
        except StopIteration as done:
            watch.answered(done.value)
            return done.value
        raise RuntimeError(f"{plugin}: {hook} yields more than once")

    return wrapper if isgeneratorfunction(function) else plain
