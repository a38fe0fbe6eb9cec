"""Tensors of which each process holds a part: the weights of a sharded network, and their like.

They are torch's `DTensor`. It is known by a method here, since its module takes a second to import.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def is_shard(value: object) -> bool:
    """Whether this process holds a part of a tensor, and others hold the rest."""
    return hasattr(type(value), "full_tensor")


def any_shards(tensors: Iterable[object]) -> bool:
    """Whether one of them is; quick, since it is asked about all gradients in each step."""
    return any(hasattr(kind, "full_tensor") for kind in set(map(type, tensors)))


def own(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory; of an ordinary tensor all of it."""
    if not is_shard(tensor):
        return tensor
    shard: Any = tensor.detach()
    part: Tensor = shard.to_local()
    return part


def joined(tensor: Tensor) -> Tensor:
    """The tensor put together from its parts; every process must ask for it."""
    if not is_shard(tensor):
        return tensor
    shard: Any = tensor.detach()
    full: Tensor = shard.full_tensor()
    return full


def total(value: Tensor, of: Iterable[Tensor]) -> Tensor:
    """The sum over the processes of a value that each computed from its parts of some tensors.

    :param of: these tensors, one of them a part.
    """
    like: Any = next(tensor for tensor in of if is_shard(tensor))
    from torch.distributed.tensor import DTensor, Partial  # imported late: it takes a second

    found: Tensor = DTensor.from_local(value, like.device_mesh, [Partial()]).full_tensor()
    return found
