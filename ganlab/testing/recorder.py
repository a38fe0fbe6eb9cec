"""A recorder for the CPU that keeps what a CUDA graph would: kernels, in order, on fixed memory.

Python runs once, while recording. A replay does the same operations on the same tensors, and writes
what they make into the tensors that they made then; random numbers come from the same generators,
wherever these now are. So it shows what capture would freeze.

All graphs share one pool of memory. What one graph frees may hold what a later captured one makes.
So each replay destroys all that later captured graphs made, as a replay of CUDA graphs may.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

READS_A_VALUE = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class Watch(TorchDispatchMode):
    """Refuses what would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket.__name__ in READS_A_VALUE:
            raise RuntimeError("called a synchronizing operation")
        return func(*args, **(kwargs or {}))


class Tape(Watch):
    """Notes every operation, and how memory was before the first write to it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._allocated: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # batch norm writes its running statistics, and its schema does not say so
        if func._schema.is_mutable or "batch_norm" in str(func):
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        given = tree_map(_plain, (args, kwargs or {}))  # an operation in place may change the shape
        result = super().__torch_dispatch__(func, types, args, kwargs)
        recorded = _leaves(tree_map(_plain, result))
        if not func.is_view:  # which looks at memory that other calls fill
            self._calls.append((func, *given, recorded))
        known = {_place(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        self._allocated += [
            leaf
            for leaf in recorded
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and _place(leaf) not in known
        ]
        return result

    def destroy(self) -> None:
        """Overwrite the memory that was allocated while recording."""
        for tensor in self._allocated:
            tensor.fill_(torch.nan)

    def undo(self) -> None:
        """Put memory back: a CUDA graph is captured without being carried out."""
        for storage, saved in self._before.values():
            storage.copy_(saved)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, recorded in self._calls:
                if torch.Tag.inplace_view in func.tags:
                    args, kwargs = tree_map(_plain, (args, kwargs))
                made = func(*args, **kwargs)
                for old, new in zip(recorded, _leaves(made), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.data.copy_(new)  # .data: a replay is not seen by version counters


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(value: Any) -> list[Any]:
    return [value] if isinstance(value, Tensor) else tree_leaves(value)


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


class CpuRecorder:
    """In the place of `ganlab.speed.graphs.CudaRecorder`."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def watching(self) -> Watch:
        return Watch()

    def record(
        self, function: Callable[[], Any], generators: Sequence[torch.Generator]
    ) -> tuple[Any, Callable[[], None]]:
        tape = Tape()
        states = [(g, g.get_state()) for g in (torch.default_generator, *generators)]
        with tape:
            answer = function()
        number = len(self.tapes)
        self.tapes.append(tape)
        tape.undo()
        for generator, state in states:
            generator.set_state(state)

        def replay() -> None:
            for later in self.tapes[number + 1 :]:
                later.destroy()
            tape.replay()

        return answer, replay
