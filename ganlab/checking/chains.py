"""Which plugin of a chain throws away what the plugins before it made, found by measurement."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from pluggy import HookImpl
from torch import Tensor, nn

from ganlab.monitoring.calls import Watch, tensors, watching
from ganlab.requirements import CHAINED
from ganlab.run import Run

OF_ENGINE = ("augment",)
"""Chains that begin with something that must not be lost: the images that D judges."""


@dataclass(slots=True)
class Call:
    """One call of one plugin's hook: what it was given, what it received, what it returned."""

    hook: str
    plugin: str
    wraps: bool
    role: str = ""
    """The network that was being updated, "G" or "D"; "" between the steps."""
    arguments: dict[str, Any] = field(default_factory=dict)
    received: Any = None
    """What a wrapper received from `yield`."""
    answer: Any = None
    weights: str = ""
    """A digest of the weights of both networks at the end of the call."""


class Recorder:
    """Records every call of a hook in the order in which calls end; give `begin` to `watching`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def begin(self, hook: str, plugin: str, wraps: bool) -> "_Recorded":
        """The watch of a call."""
        return _Recorded(self, Call(hook, plugin, wraps))


class _Recorded(Watch):
    def __init__(self, recorder: Recorder, call: Call) -> None:
        self._recorder, self._call = recorder, call

    def given(self, arguments: dict[str, Any]) -> None:
        self._call.arguments = arguments

    def received(self, answer: Any) -> None:
        self._call.received = answer

    def answered(self, answer: Any) -> None:
        self._call.answer = answer
        self._recorder.calls.append(self._call)


def dropped(run: Run, calls: Iterable[Call]) -> list[str]:
    """A sentence for each wrapper that throws away what came before it in its chain.

    Each recorded call is made twice more, with the same random numbers: with what it received, and
    with other values of the same shape. When the answers are always the same, what came before has
    no effect. It is told where another plugin came before, and always for `augment`.
    """
    ignoring: dict[tuple[str, str], bool] = {}
    recorder = Recorder()
    with watching(run.manager, recorder.begin):  # no step need call it
        run.hook.evaluation_generator(generator=run.G)
    begun: dict[str, Any] = {}
    for call in [*calls, *recorder.calls]:
        if not call.wraps:
            begun[call.hook] = call.answer
        if call.hook not in CHAINED or not call.wraps:
            continue
        impl, before = _place(run, call)
        if not before and call.hook not in OF_ENGINE:
            continue
        key = call.hook, call.plugin
        if ignoring.get(key, True):
            ignoring[key] = _ignores(run, impl, call, begun.get(call.hook))
    return [_sentence(run, hook, plugin) for (hook, plugin), ignores in ignoring.items() if ignores]


def _place(run: Run, call: Call) -> tuple[HookImpl, list[str]]:
    """The implementation of a wrapper, and the plugins before it in the chain."""
    wrappers = [i for i in getattr(run.hook, call.hook).get_hookimpls() if i.wrapper]
    names = [impl.plugin_name for impl in wrappers]
    index = names.index(call.plugin)
    return wrappers[index], names[:index]


def _sentence(run: Run, hook: str, plugin: str) -> str:
    _, before = _place(run, Call(hook, plugin, True))
    what = " and ".join(before) or "the engine"
    effect = "so they have no effect" if len(before) > 1 else "so that has no effect"
    remedy = f"list {plugin} first" if before else f"leave out {plugin}"
    return (
        f"{plugin} throws away what {what} made in {hook}, {effect}; make its answer from what "
        f"`yield` gives, or {remedy}"
    )


def _ignores(run: Run, impl: HookImpl, call: Call, begun: Any) -> bool:
    """Whether some part of what a wrapper received has no influence on its answer.

    :param begun: what the chain began with; a part that nobody changed cannot be lost.
    """
    try:
        plain = _again(run, impl, call, call.received)
        return any(
            _equal(plain, _again(run, impl, call, other))
            for other in _variants(call.received, begun)
        )
    except Exception:  # its code may refuse the other values: then it reads them
        return False


def _again(run: Run, impl: HookImpl, call: Call, received: Any) -> Any:
    run.streams.moment("chain", call.hook)
    with torch.no_grad():
        wrapper: Any = impl.function(*(call.arguments[name] for name in impl.argnames))
        next(wrapper)
        try:
            wrapper.send(received)
        except StopIteration as done:
            return done.value
    raise RuntimeError("it yields more than once")


def _variants(received: Any, begun: Any) -> Iterator[Any]:
    """What was received with other values: of a tuple, one changed part after another."""
    if isinstance(received, tuple):
        for index, (part, first) in enumerate(zip(received, begun, strict=True)):
            if _equal(part, first):
                continue
            yield (*received[:index], _other(part), *received[index + 1 :])
    else:
        yield _other(received)


def _other(value: Any) -> Any:
    if isinstance(value, Tensor):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(value.shape, generator=generator).to(value.device, value.dtype)
    if isinstance(value, nn.Module):
        other = copy.deepcopy(value)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        return other
    raise TypeError(f"no other value of type {type(value).__name__}")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, nn.Module):
        return one is other
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)
