"""GANLAB_TRACE_PLUGINS=1: a line on stderr for every call of a hook, and one for its answer."""

import sys
from typing import Any

import torch
from pluggy import PluginManager
from torch import Tensor

from ganlab.errors import printable
from ganlab.monitoring.calls import Watch, watch
from ganlab.plugin import Batch


def trace_calls(manager: PluginManager) -> None:
    """Print every call of the manager's hooks from now on: its arguments, and what it returns.

    Tensors are told by shape and dtype: reading values would wait for the device, and cannot be
    captured. Calls inside a call are indented.
    """
    depth = [0]
    watch(manager, lambda *call: _Printed(depth, *call))


class _Printed(Watch):
    def __init__(self, depth: list[int], hook: str, plugin: str, wraps: bool) -> None:
        self._depth, self._name = depth, f"{'~' if wraps else ''}{plugin}.{hook}"

    def __enter__(self) -> None:
        self._depth[0] += 1

    def __exit__(self, *error: object) -> None:
        self._depth[0] -= 1

    def given(self, arguments: dict[str, Any]) -> None:
        told = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
        self._say(f"{self._name}({told})")

    def answered(self, answer: Any) -> None:
        self._say(f"{self._name} -> {shown(answer)}")

    def _say(self, line: str) -> None:
        print(f"{'  ' * self._depth[0]}{printable(line)}", file=sys.stderr)


def shown(value: Any) -> str:
    """A short text for an argument or an answer; no value of a tensor is read."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[*value.shape]}"
    if isinstance(value, Batch):
        return f"Batch({shown(value.real)}, {shown(value.condition)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, str | int | float | bool | torch.device) or value is None:
        return str(value)
    return type(value).__name__
