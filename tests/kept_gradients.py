"""The gradients of a step, which are gone when it has been taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def kept(optimizer: torch.optim.Optimizer) -> Iterator[list[Tensor]]:
    """A list that holds each parameter's gradient once the optimizer has taken a step."""
    found: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found[:] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    handle = optimizer.register_step_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()
