"""The test of a quicker way to take an optimizer step against the step as it is written."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ganlab.monitoring.blame import blame, described
from ganlab.plugin import Losses
from ganlab.run import Run, Update

TOLERANCE = 0.02  # share of a step's length; bfloat16 and other kernels differ by much less


class InTheWayError(Exception):
    """A step cannot be taken the quicker way; the message says why."""


class Measure(Protocol):
    """What a trial compares: tensors that a step leaves behind."""

    fault: str
    """The sentence for a difference; {} is its share of what the step changed."""
    tolerance: float

    def read(self) -> list[Tensor]:
        """Copies of the tensors, as they are now."""


class Weights(Measure):
    """The weights that an update moves."""

    fault, tolerance = "the weights would move differently, by {} of a step", TOLERANCE

    def __init__(self, run: Run, update: Update) -> None:
        self._parameters = update.parameters(run)

    def read(self) -> list[Tensor]:
        return _copied(self._parameters)


def tried(
    run: Run,
    update: Update,
    plain: Callable[[], Losses],
    quick: Callable[[], Losses],
    measure: Measure | None = None,
) -> Losses:
    """Take a step the quick way, if the plain way takes the same step from the same state.

    :param measure: what must be the same; by default the weights.
    :raises InTheWayError: when either way raises or they differ; the state is then restored. Call
        `release_memory` before the plain step, outside of the `except` block.
    """
    before: Snapshot | None = None
    try:
        before, measure = Snapshot(run), measure or Weights(run, update)
        start = measure.read()
        plain()
        wanted = measure.read()
        before.restore()
        losses = quick()
        apart = _distance(measure.read(), wanted) / max(_distance(start, wanted), 1e-30)
        if apart <= measure.tolerance:
            return losses
        reason = measure.fault.format(f"{apart:.2g}")
    except Exception as error:  # what torch raises here has no common base
        reason = _reason(error, run)
    if before:
        before.restore()
    raise InTheWayError(reason)


def compared(
    run: Run, update: Update, plain: Callable[[], Losses], quick: Sequence[Callable[[], object]]
) -> tuple[Losses, float]:
    """Take a step the plain way, after each of the quick ways took it from the same state.

    :returns: the losses of the plain way, whose weights are kept; and the largest distance between
        the weights of a quick way and those of the plain way, as a share of the step's length. It
        is 0 when the plain step itself is not finite.
    :raises torch.OutOfMemoryError: when memory is used up; the state is then restored.
    """
    before = Snapshot(run)
    parameters = update.parameters(run)
    try:
        start = _copied(parameters)
        ends = []
        for way in quick:
            way()
            ends.append(_copied(parameters))
            before.restore()
        losses = plain()
        length = max(_distance(start, parameters), 1e-30)
        apart = [_distance(end, parameters) / length for end in ends]
    except torch.OutOfMemoryError:
        before.restore()
        raise
    if not math.isfinite(length):
        return losses, 0.0
    return losses, max(share if math.isfinite(share) else math.inf for share in apart)


def _copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def share_apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The distance of some tensors from others, as a share of the length of the others."""
    zeros = [torch.zeros_like(other) for other in others]
    return _distance(some, others) / max(_distance(zeros, others), 1e-30)


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    with torch.no_grad():
        squares = [(a - b).double().square().sum() for a, b in zip(some, others, strict=True)]
        return torch.stack(squares).sum().sqrt().item()


def _reason(error: BaseException, run: Run) -> str:
    """Why a step could not be taken, in one line; it names the plugin whose code was at work."""
    found = blame(error, run.recipe.plugins.values())
    return f"{found.plugin.name}: {found.error} ({found.place})" if found else described(error)


class Snapshot:
    """A copy of everything an update may change; it is restored in place, in the same memory."""

    def __init__(self, run: Run) -> None:
        self._run = run
        networks = run.networks.values()
        self._tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
        self._optimizers = list(run.optimizers.values())
        states = [state for o in self._optimizers for state in o.state.values()]
        self._tensors += [t for state in states for t in state.values() if isinstance(t, Tensor)]
        plugins = [p for p in run.recipe.plugins.values() if hasattr(p, "state_dict")]
        # a state dict holds a plugin's own tensors, or copies
        self._plugins = [(p, tree_map(_detached, p.state_dict())) for p in plugins]
        self._tensors += [t for t in tree_leaves(self._plugins) if isinstance(t, Tensor)]
        self._copies = [torch.empty_like(t) for t in self._tensors]
        _copy(self._copies, self._tensors)
        # restored values are the same, so a shared pass must find the same versions of D's weights
        self._versions = torch.autograd._unsafe_preserve_version_counter(tuple(self._tensors))
        self._begun = [set(optimizer.state) for optimizer in self._optimizers]
        self._random = run.streams.state()
        self._passes = list(run.step.passes)

    def restore(self) -> None:
        run = self._run
        with self._versions:
            _copy(self._tensors, self._copies)
        for optimizer, begun in zip(self._optimizers, self._begun, strict=True):
            for parameter in optimizer.state.keys() - begun:
                del optimizer.state[parameter]
        for plugin, state in self._plugins:
            if not _are_the_same(plugin.state_dict(), state):
                owner: Any = plugin
                owner.load_state_dict(tree_map(_cloned, state))
        run.streams.set_state(self._random)
        run.step.passes[:] = self._passes


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _are_the_same(state: Any, other: Any) -> bool:
    """Whether two state dicts hold the same tensors, not only equal ones, and equal values."""
    (leaves, structure), (others, expected) = tree_flatten(state), tree_flatten(other)
    return structure == expected and all(
        a.is_set_to(b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(leaves, others, strict=True)
    )


@torch.no_grad()
def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy into many tensors in place: on a GPU in few kernels, which want one dtype at a time."""
    for dtype in {tensor.dtype for tensor in to}:
        pairs = [(a, b) for a, b in zip(to, values, strict=True) if a.dtype == dtype]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
