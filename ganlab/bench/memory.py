"""The memory of an iteration's tensors at its highest moment, by the part that made them."""

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ganlab.bench.stopwatch import ENGINE, Part, Stopwatch
from ganlab.iteration import iterate
from ganlab.run import Run


def count_memory(run: Run) -> dict[str, Any]:
    """Carry out one iteration as written, and count the bytes of its tensors as they come and go.

    Tensors that were there before, such as weights, moments and images, are not counted; nor is
    what a kernel takes inside itself. A tensor belongs to the innermost part that made it: what a
    loss keeps for its backward pass belongs to the loss.

    :returns: {"peak": bytes at the highest moment, "parts": {plugin or phase: bytes of them}}.
    """
    watch = Stopwatch(run)
    counted = Counted(lambda: watch.current)
    with watch.running(), counted:
        iterate(run)
    parts: dict[str, int] = defaultdict(int)
    for (phase, plugin), size in counted.at_peak.items():
        parts[phase if plugin == ENGINE else plugin] += size
    return {"peak": counted.peak, "parts": dict(sorted(parts.items(), key=lambda one: -one[1]))}


class Counted(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in its context, while they live."""

    def __init__(self, part: Callable[[], Part], block: int = 1) -> None:
        """:param part: gives the part of an iteration that is running.

        :param block: each tensor is counted as a multiple of so many bytes.
        """
        super().__init__()
        self.peak = 0
        self.at_peak: dict[Part, int] = {}
        self.total = 0
        """Bytes at this moment."""
        self._part, self._block = part, block
        self._live: dict[Part, int] = defaultdict(int)
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):  # was there before: a view of it is not new
            if storage._cdata not in self._known:
                self._follow(storage, None)
        answer = func(*args, **(kwargs or {}))
        for storage in _storages(answer):
            if storage._cdata not in self._known:
                self._follow(storage, self._part())
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, {p: n for p, n in self._live.items() if n}
        return answer

    def _follow(self, storage: Any, part: Part | None) -> None:
        size = -(-storage.nbytes() // self._block) * self._block if part else 0
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._gone, storage._cdata, part, size).atexit = False
        if part:
            self._live[part] += size
            self.total += size

    def _gone(self, address: int, part: Part | None, size: int) -> None:
        self._known.discard(address)
        if part:
            self._live[part] -= size
            self.total -= size


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
