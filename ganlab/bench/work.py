"""The work of an iteration, operation by operation: calls, time, FLOPs and bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ganlab.iteration import iterate
from ganlab.run import Eager, Run
from ganlab.speed.device import now

_MOVES_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(slots=True)
class Operation:
    """All calls of one operation in an iteration."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    """2 per multiply-add of matrix products and convolutions; 0 for all other operations."""
    moved: int = 0
    """Bytes of every tensor read and every tensor written, each counted once per call."""

    @property
    def is_matrix(self) -> bool:
        return self.flops > 0


def count_work(run: Run) -> list[Operation]:
    """Carry out one iteration as written, and time each operation alone; the slowest come first.

    FLOPs follow torch's own formulas (`torch.utils.flop_counter`). Unlike torch's counter, this one
    also counts the second derivative of a gradient penalty. On CUDA every operation is followed by
    a wait for the device, so small ones look slower than they are.
    """
    counted, before = _Counted(run.device), run.execution
    run.execution = Eager()
    try:
        with counted:
            iterate(run)
    finally:
        run.execution = before
    return sorted(counted.found.values(), key=lambda one: -one.seconds)


class _Counted(TorchDispatchMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.found: dict[str, Operation] = {}
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        began = now(self._device)
        answer = func(*args, **kwargs)
        seconds = now(self._device) - began
        if func.is_view:
            return answer
        name = func.overloadpacket.__name__.strip("_")
        operation = self.found.setdefault(name, Operation(name))
        operation.calls += 1
        operation.seconds += seconds
        if formula := flop_registry.get(func.overloadpacket):
            operation.flops += formula(*args, **kwargs, out_val=answer)
        if name not in _MOVES_NOTHING:
            operation.moved += _bytes((args, kwargs)) + _bytes(answer)
        return answer


def _bytes(values: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
