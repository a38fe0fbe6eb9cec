"""The test of a quicker way to take an optimizer step against the step as it is written."""

import copy
import gc
import linecache
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ganlab.plugin import Losses, Plugin
from ganlab.run import Run, Update

TOLERANCE = 0.02  # share of a step's length; bfloat16 and other kernels differ by much less


class InTheWayError(Exception):
    """A step cannot be taken the quicker way; the message says why."""


def tried(
    run: Run, update: Update, plain: Callable[[], Losses], quick: Callable[[], Losses]
) -> Losses:
    """Take a step the quick way, if the plain way takes the same step from the same state.

    :raises InTheWayError: when either way raises or they differ; the state is then restored. Call
        `free_memory` before the plain step, outside of the `except` block.
    """
    before = Snapshot(run)
    parameters = update.parameters(run)
    start = _copied(parameters)
    reason = ""
    try:
        plain()
        wanted = _copied(parameters)
        before.restore()
        losses = quick()
    except Exception as error:  # what torch raises here has no common base
        reason = culprit(error)
    if not reason:
        apart = _distance(parameters, wanted) / max(_distance(start, wanted), 1e-30)
        if apart <= TOLERANCE:
            return losses
        reason = f"the weights would move differently, by {apart:.2g} of a step"
    before.restore()
    raise InTheWayError(reason)


def free_memory(device: torch.device) -> None:
    """Free what a failed way to take a step left behind.

    The error that it raised must be gone: its traceback holds every tensor of the failed step.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    with torch.no_grad():
        squares = [(a - b).double().square().sum() for a, b in zip(some, others, strict=True)]
        return torch.stack(squares).sum().sqrt().item()


def culprit(error: BaseException) -> str:
    """The cause of an error, in one line: the innermost plugin, the message, its line of code."""
    plugin = line = ""
    cause: BaseException | None = error
    while cause and not plugin:  # a capture that ends with an error raises a second one
        for frame, number in traceback.walk_tb(cause.__traceback__):
            if isinstance(owner := frame.f_locals.get("self"), Plugin):
                plugin = f"{owner.name}: "
                line = f" ({linecache.getline(frame.f_code.co_filename, number).strip()})"
                error = cause
        cause = cause.__context__
    error = getattr(error, "inner_exception", error)  # what torch's compiler wraps
    message = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{plugin}{message}{line}"


class Snapshot:
    """A copy of everything an update may change; it is restored in place, in the same memory."""

    def __init__(self, run: Run) -> None:
        self._run = run
        networks = run.networks.values()
        self._tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
        self._optimizers = list(run.optimizers.values())
        states = [state for o in self._optimizers for state in o.state.values()]
        self._tensors += [t for state in states for t in state.values() if isinstance(t, Tensor)]
        self._copies = [t.detach().clone() for t in self._tensors]
        # restored values are the same, so a shared pass must find the same versions of D's weights
        self._versions = torch.autograd._unsafe_preserve_version_counter(tuple(self._tensors))
        self._begun = [bool(optimizer.state) for optimizer in self._optimizers]
        self._plugins = {
            name: copy.deepcopy(plugin.state_dict())
            for name, plugin in run.recipe.plugins.items()
            if hasattr(plugin, "state_dict")
        }
        self._random = run.streams.state()
        self._passes = list(run.step.passes)

    def restore(self) -> None:
        run = self._run
        with torch.no_grad(), self._versions:
            for tensor, saved in zip(self._tensors, self._copies, strict=True):
                tensor.copy_(saved)
        for optimizer, begun in zip(self._optimizers, self._begun, strict=True):
            if not begun:
                optimizer.state.clear()
        for name, state in self._plugins.items():
            plugin: Any = run.recipe.plugins[name]
            plugin.load_state_dict(copy.deepcopy(state))
        run.streams.set_state(self._random)
        run.step.passes[:] = self._passes
