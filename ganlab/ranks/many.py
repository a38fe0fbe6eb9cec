"""A world of several processes, over torch.distributed."""

import datetime
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed

from ganlab.errors import GanlabError, RecipeError
from ganlab.ranks.one_batch import OneBatch
from ganlab.ranks.world import ALONE, World, rows_of
from ganlab.stopping import heard

BUCKET = 2**26  # bytes that are reduced at once: large messages, but not a second copy of a network
ORDERS = ("begin", "state", "iterate", "evaluate", "compare", "end")
_LONG = datetime.timedelta(days=30)  # the others wait while rank 0 evaluates or writes


class LostRank(GanlabError):  # noqa: N818  # it names an outcome
    """Another process of the run is gone."""


class Many(World):
    """The ranks of a run that several processes train."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        # orders have a group of their own, so that they cannot pass for gradients
        self._orders: Any = distributed.new_group(backend="gloo", timeout=_LONG)
        self._called_off = False

    def mean(self, value: Tensor) -> Tensor:
        found: Tensor = _Sum.apply(self, value) / self.size
        return found

    def gather(self, rows: Tensor) -> Tensor:
        found: Tensor = _Gathered.apply(self, rows)
        return found

    def average(self, tensors: Sequence[Tensor]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        with torch.no_grad():
            for alike in kinds.values():
                for bucket in _buckets(alike):
                    self._average(bucket)

    def _average(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self.total(flat).div_(self.size)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        with _telling():
            distributed.all_reduce(tensor)
        return tensor

    def of_each(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank; it has one shape on all."""
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        with _telling():
            distributed.all_gather(every, tensor.contiguous())
        return every

    def rows(self, whole: Tensor, parts: int = 1) -> Tensor:
        return rows_of(whole, self.rank, self.size, parts)

    def as_one(self, parts: int = 1, unit: int = 0) -> AbstractContextManager[Any]:
        return OneBatch(self, parts, unit)

    def order(self, what: str, about: Any = None) -> None:
        self._exchange(ORDERS.index(what), about)

    def receive(self) -> tuple[str, Any]:
        """The next order of rank 0, and what it is about; waits for it."""
        number, about = self._exchange(-1, None)
        return ORDERS[number], about

    def _exchange(self, number: int, about: Any) -> tuple[int, Any]:
        """The number of rank 0's order, and what it is about, on all ranks.

        Most orders are one small message; it tells too whether any rank was asked to end.
        """
        message = torch.tensor([number, int(about is not None), int(heard() is not None)])
        told = [about]
        with _telling():
            distributed.all_reduce(message, distributed.ReduceOp.MAX, group=self._orders)
            number, more, asked = message.tolist()
            if more:
                distributed.broadcast_object_list(told, 0, group=self._orders)
        self._called_off = self._called_off or bool(asked)
        return number, told[0]

    def scattered(self, items: Sequence[Any]) -> Sequence[Any]:
        return items[self.rank :: self.size]

    def gathered(self, mine: Sequence[Any]) -> list[Any]:
        shares: list[Any] | None = [None] * self.size if self.leads else None
        with _telling():
            distributed.gather_object(list(mine), shares, 0, group=self._orders)
        if shares is None:
            return []
        count = sum(map(len, shares))
        return [shares[place % self.size][place // self.size] for place in range(count)]

    def device(self, name: str) -> str:
        here = int(os.environ.get("LOCAL_RANK", "0"))
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            return f"cuda:{here}"
        if name.startswith("cuda:"):
            raise RecipeError(
                f"--device {name}: {self.size} processes need a device each; say --device cuda"
            )
        return name

    def called_off(self) -> bool:
        return self._called_off

    def agree(self, values: Iterable[int]) -> list[list[int]]:
        mine = torch.tensor(list(values), dtype=torch.int64)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        with _telling():
            distributed.all_gather(every, mine, group=self._orders)
        return [found.tolist() for found in every]


@contextmanager
def _telling() -> Iterator[None]:
    """Context in which the end of another process is told as what it is."""
    try:
        yield
    except RuntimeError as error:
        why = _told_by_another() or "it was killed, or lost its connection"
        raise LostRank(
            f"another process of this run is gone: {why}; resumed, the run goes on from its last "
            "checkpoint"
        ) from error


_LAST_WORDS = "ganlab/last words"
_FAREWELL = 3.0  # seconds from the last words to the end of the process
_PATIENCE = 2.0  # seconds to wait for them: the connection is cut before they are told


def _told_by_another() -> str:
    """What a process that failed has said about it; "" when it said nothing."""
    store = distributed.distributed_c10d._get_default_store()
    until = time.monotonic() + _PATIENCE
    with suppress(Exception):  # of several kinds, when the store is gone too
        while time.monotonic() < until:
            if store.check([_LAST_WORDS]):
                return store.get(_LAST_WORDS).decode()
            time.sleep(0.05)
    return ""


@contextmanager
def telling_the_leader() -> Iterator[None]:
    """Context of a process that others wait for: what ends it is told to rank 0."""
    try:
        yield
    except LostRank:
        raise
    except Exception as error:
        if distributed.is_initialized():
            kind = "" if isinstance(error, GanlabError) else f"{type(error).__name__}: "
            words = f"rank {distributed.get_rank()}: {kind}{error}"
            with suppress(Exception):  # the store may be gone too
                distributed.distributed_c10d._get_default_store().set(_LAST_WORDS, words)
            # rank 0 may have found the same fault, and still wait for the last message of this one
            time.sleep(_FAREWELL)
        raise


class _Sum(torch.autograd.Function):
    """The sum over the ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, world: Many, value: Tensor) -> Tensor:
        ctx.world = world
        return world.total(value.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _Sum.apply(ctx.world, gradient)


class _Gathered(torch.autograd.Function):
    """The rows of all ranks; a row's gradient is the sum of what each rank makes of it."""

    @staticmethod
    def forward(ctx: Any, world: Many, rows: Tensor) -> Tensor:
        ctx.world = world
        return torch.cat(world.of_each(rows.detach().contiguous()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        whole: Tensor = _Sum.apply(ctx.world, gradient)
        return None, ctx.world.rows(whole)


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


_STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process. A cluster may set some of them for other reasons."""


def is_several() -> bool:
    """Whether this process was started as one of several of a run, as torchrun does."""
    told = [os.environ.get(name, "") for name in _STARTED]
    return all(told) and told[1].isdecimal() and int(told[1]) > 1


def follows() -> bool:
    """Whether this process obeys rank 0 of its run."""
    return is_several() and os.environ.get("RANK", "0") != "0"


@cache
def join() -> World:
    """The world of this process: that of torchrun's environment, or it is alone."""
    if not is_several():
        return ALONE
    if not distributed.is_initialized():
        gpus = torch.cuda.is_available() and torch.cuda.device_count() > 0
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    return Many()
