"""A CUDA device that is only pretended: it computes on the CPU, and notes where CUDA would wait.

Its tensors say that they are on CUDA. So code takes the paths that it takes there, and numbers and
gradients are those of the CPU. What the host sends to it or reads from it is noted.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from ganlab.streams import Streams

PRETENDED = torch.device("cuda", 99)
"""No machine has so many; so what is kept for a device is never mistaken for that of a real one."""

# operations in which the host reads a number of the device before it can go on
READS_INSIDE = ("nonzero", "masked_select", "bincount", "multinomial", "histc", "equal", "_unique2")
READS_INSIDE += ("_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_inv_ex", "linalg_cholesky_ex")

waits: list[str] = []


class OnDevice(Tensor):
    """A tensor of the pretended device; its numbers are in a tensor on the CPU."""

    inner: Tensor
    device = property(lambda self: PRETENDED)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls: type["OnDevice"], inner: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        return nn.Parameter(copied) if isinstance(self, nn.Parameter) else copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        of_host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        masked = name == "index" and any(t.dtype == torch.bool for t in tensors[1:])
        if masked or name == "_local_scalar_dense" or name in READS_INSIDE:
            _note("reads a number")
        elif name == "copy_" and of_host:
            _note("sends numbers" if isinstance(args[0], OnDevice) else "reads numbers")
        elif any(tensor.dim() for tensor in of_host) and not _in_backward():
            _note("sends numbers")  # a 0-d tensor goes along with the call
        made = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_outer, made))


def _in_backward() -> bool:
    """Whether autograd is at work, whose own zeros are on the CPU here, but on CUDA there."""
    return torch._C._current_graph_task_id() != -1


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _outer(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) else value


def _note(what: str) -> None:
    """Note a wait with the innermost line of code outside torch and this file."""
    for frame in reversed(traceback.extract_stack()):
        if "torch" not in Path(frame.filename).parts and frame.filename != __file__:
            waits.append(f"{what}: {Path(frame.filename).name}: {frame.line}")
            return


class Transfers(TorchFunctionMode):
    """Makes tensors on the pretended device, and moves them to it and from it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "__array__") and isinstance(args[0], OnDevice):
            _note("reads numbers")
            return func(args[0].inner, *args[1:], **kwargs)
        if name == "pin_memory":
            pinned = args[0].clone()
            pinned.pinned = True
            return pinned
        if name in ("cpu", "cuda", "to", "type_as"):
            return _moved(func, *args, **kwargs)
        device = kwargs.get("device")
        if device is None:
            return func(*args, **kwargs)
        made = func(*args, **kwargs | {"device": "cpu"})
        if torch.device(device).type == "cpu" or isinstance(made, OnDevice):
            return made
        if name in ("tensor", "as_tensor", "asarray"):
            _note("sends numbers")
        return _outer(made)


def _moved(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The tensor where `.to` and its like put it; a copy that waits is noted."""
    name, away = func.__name__, isinstance(tensor, OnDevice)
    target = {"cpu": False, "cuda": True}.get(name, away)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            target = isinstance(value, OnDevice)
        elif _is_device(value):
            target = torch.device(value).type == "cuda"
    args, kwargs = tree_map(_on_cpu, (args, kwargs))
    if target == away:
        return func(tensor, *args, **kwargs) if name in ("to", "type_as") else tensor
    assert not tensor.requires_grad or tensor.is_leaf, "no gradient passes through a transfer"
    if away:
        _note("reads numbers")
        return func(tensor.inner, *args, **kwargs)
    if not (kwargs.get("non_blocking") and getattr(tensor, "pinned", False)):
        _note("sends numbers")
    converted = func(tensor, *args, **kwargs) if name in ("to", "type_as") else tensor
    return OnDevice(converted.detach()).requires_grad_(tensor.requires_grad)


def _is_device(value: Any) -> bool:
    kinds = ("cpu", "cuda")
    return isinstance(value, torch.device) or (isinstance(value, str) and value[:4] in kinds)


def _on_cpu(value: Any) -> Any:
    return "cpu" if _is_device(value) else _inner(value)


_by_device = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists: list[list[Any]], indices: bool = False) -> dict[Any, Any]:
    """torch's grouping, which asks C++ for the device and so finds the CPU."""
    groups = _by_device(lists, indices)
    away = isinstance(lists[0][0], OnDevice)
    return {(PRETENDED if away else d, dtype): rest for (d, dtype), rest in groups.items()}


@contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Context in which there is the pretended device.

    :returns: each wait so far: what it is, and the line of code.
    """
    cpu, get = torch.device("cpu"), Streams._get
    monkeypatch.setattr(Streams, "_of_torch", lambda self: [torch.default_generator])
    monkeypatch.setattr(Streams, "_get", lambda self, name, side, _: get(self, name, side, cpu))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: torch.set_rng_state(state))
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
    torch.__future__.set_swap_module_params_on_conversion(True)
    waits.clear()
    try:
        with Transfers():
            yield waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
