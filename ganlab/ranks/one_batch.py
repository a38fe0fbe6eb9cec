"""Random draws, dropout and batch norm on one rank's rows, as they are on the whole batch.

A plugin draws for the images that it sees, such as `torch.rand(len(images), generator=self.rng)`.
All ranks have the same random streams. So the draw is made for the whole batch, and the rank keeps
its rows: then every image has the numbers that it would have in one process.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ganlab.ranks.world import World

Function = Callable[..., Any]

_SIZED: set[Function] = {torch.rand, torch.randn, torch.randint, torch.normal}
_LIKE: dict[Function, Function] = {
    torch.rand_like: torch.rand_like,
    torch.randn_like: torch.randn_like,
    torch.randint_like: torch.randint_like,
}
_IN_PLACE: set[Function] = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.random_,
    Tensor.exponential_,
    Tensor.cauchy_,
    Tensor.log_normal_,
    Tensor.geometric_,
    Tensor.bernoulli_,
}
_OF_VALUES: set[Function] = {torch.bernoulli, Tensor.bernoulli, torch.poisson, torch.normal}
_DROPOUT: set[Function] = {
    torch.dropout,
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
}


class OneBatch(TorchFunctionMode):
    """Context in which torch computes on this rank's rows what it computes on the whole batch.

    A draw is taken to be one for the images if its first dimension is that of this rank's rows, or
    twice that, for two batches in a row; or if it is a table with a column for each of them. Any
    other draw is the same on all ranks.
    """

    def __init__(self, world: World, parts: int, unit: int) -> None:
        """:param parts: of the batch that is drawn for; this rank has `unit` rows of each."""
        super().__init__()
        self.world, self.parts, self.unit = world, parts, unit

    def __torch_function__(
        self, function: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if function in _IN_PLACE:
            return self._in_place(function, *args, **kwargs)
        if function in _DROPOUT:
            return self._dropout(function, *args, **kwargs)
        if function in _LIKE:
            return self._like(function, *args, **kwargs)
        if function in _SIZED or function in _OF_VALUES:
            return self._drawn(function, args, kwargs)
        return function(*args, **kwargs)

    def batches(self, shape: Any) -> int:
        """How many batches' rows a shape has; 0 if it is not of the images."""
        mine = self.parts * self.unit
        if len(shape) and shape[0] in (mine, 2 * mine):
            return int(shape[0]) // self.unit
        self.world.other_sizes |= {(self.parts, size) for size in shape[:1]}
        return 0

    def _whole(self, shape: Any) -> tuple[int, ...]:
        return (shape[0] * self.world.size, *shape[1:])

    def _drawn(self, function: Function, args: Any, kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if tensors:
            return self._of_values(function, tensors, args, kwargs)
        args, kwargs, shape = _size_taken(function, args, kwargs)
        count = self.batches(shape)
        if not count and len(shape) == 2 and self.batches(shape[::-1]):  # a column for each image
            wide = (shape[0], shape[1] * self.world.size)
            columns = function(*args, wide, **kwargs).t()
            return self.world.rows(columns, self.batches(shape[::-1])).t()
        if not count:
            return function(*args, shape, **kwargs)
        return self.world.rows(function(*args, self._whole(shape), **kwargs), count)

    def _of_values(self, function: Function, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        """A draw whose distribution is given by tensors of this rank's rows."""
        count = self.batches(tensors[0].shape)
        if not count:
            return function(*args, **kwargs)

        args = [self._spread(value, count) for value in args]
        kwargs = {name: self._spread(value, count) for name, value in kwargs.items()}
        return self.world.rows(function(*args, **kwargs), count)

    def _spread(self, value: Any, count: int) -> Any:
        """A value of this rank's rows in the place of the rows of every rank."""
        if not isinstance(value, Tensor) or self.batches(value.shape) != count:
            return value
        return torch.cat([v for v in value.chunk(count) for _ in range(self.world.size)])

    def _like(self, function: Function, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count = self.batches(tensor.shape)
        if not count:
            drawn: Tensor = function(tensor, *args, **kwargs)
            return drawn
        return self.world.rows(function(self._wide(tensor), *args, **kwargs), count)

    def _in_place(self, function: Function, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count = self.batches(tensor.shape)
        if not count:
            drawn: Tensor = function(tensor, *args, **kwargs)
            return drawn
        args = tuple(self._spread(value, count) for value in args)
        kwargs = {name: self._spread(value, count) for name, value in kwargs.items()}
        whole = function(self._wide(tensor), *args, **kwargs)
        with torch.no_grad():
            return tensor.copy_(self.world.rows(whole, count))

    def _dropout(self, function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count = self.batches(input.shape)
        if not count:
            dropped: Tensor = function(input, *args, **kwargs)
            return dropped
        kept = function(self._wide(input).fill_(1), *args, **{**kwargs, "inplace": False})
        return input * self.world.rows(kept, count)

    def _wide(self, tensor: Tensor) -> Tensor:
        """An empty tensor of the whole batch, laid out in memory as a tensor of the rows."""
        made = torch.empty(self._whole(tensor.shape), dtype=tensor.dtype, device=tensor.device)
        if tensor.dim() == 4 and not tensor.is_contiguous():
            made = made.to(memory_format=torch.channels_last)
        return made

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Batch norm with the statistics of the whole batch; they have a gradient."""
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        exact = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        mean = self.world.mean(exact.mean(dims))
        centred = exact - mean.view(shape)
        variance = self.world.mean(centred.square().mean(dims))
        if running_mean is not None and running_var is not None:
            count = input.numel() // input.shape[1] * self.world.size
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        normed = centred * torch.rsqrt(variance + eps).view(shape)
        if weight is not None:
            normed = normed * weight.view(shape)
        if bias is not None:
            normed = normed + bias.view(shape)
        return normed.to(input.dtype)


def _size_taken(function: Function, args: Any, kwargs: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """The arguments of a draw without the size, and the size."""
    kwargs = dict(kwargs)
    if "size" in kwargs:
        return args, kwargs, tuple(kwargs.pop("size"))
    if function in (torch.rand, torch.randn):
        sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        return (), kwargs, tuple(sizes)
    return args[:-1], kwargs, tuple(args[-1])
