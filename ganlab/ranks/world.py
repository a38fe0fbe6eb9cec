"""The processes that train one run together, its ranks. Usually there is one.

A batch belongs to all ranks together. Each rank has some of its rows, and the mean over ranks of
what each computes on its rows is what one process computes on the whole batch.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class World:
    """The ranks of a run, as one process sees them. This one is of a single process.

    A plugin finds it as `self.world`, an event hook as `run.world`.
    """

    rank = 0
    """Number of this process, from 0."""
    size = 1
    """How many processes there are."""

    def __init__(self) -> None:
        self.other_sizes: set[tuple[int, int]] = set()
        """Of what was drawn so far and not taken to be for the images: the parts of the batch that
        it was drawn for, and its first dimension."""

    @property
    def leads(self) -> bool:
        """Whether this process writes, evaluates and decides."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a tensor that has one shape on all. It has a gradient.

        A plugin needs it where a mean over the batch goes into something that is not linear, or
        into its state. A loss that is a mean over the batch needs nothing.
        """
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in the order of one batch: [n, ...] to [n * size, ...].

        It has a gradient. It is for what compares the images of a batch with each other.
        """
        return rows

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in place and without a gradient."""

    def share_of(self, count: int) -> int:
        """How many of `count` samples are this rank's."""
        return count // self.size

    def rows(self, whole: Tensor, parts: int = 1) -> Tensor:
        """This rank's rows of what one process would have: [n * size, ...] to [n, ...].

        :param parts: how many batches lie one after another in it; the rank has rows of each.
        """
        return whole

    def as_one(self, parts: int = 1, unit: int = 0) -> AbstractContextManager[Any]:
        """Context in which random draws and batch norm are those of the whole batch."""
        return nullcontext()

    # what follows is for the core alone

    def order(self, what: str, about: Any = None) -> None:
        """Tell the other ranks what comes next; they wait for it."""

    def scattered(self, items: Sequence[Any]) -> Sequence[Any]:
        """This rank's share of a list; see `gathered`."""
        return items

    def gathered(self, mine: Sequence[Any]) -> list[Any]:
        """The list again, from what each rank made of its share; on other ranks than 0 empty."""
        return list(mine)

    def device(self, name: str) -> str:
        """The name of this process's device, from what the user named."""
        return name

    def called_off(self) -> bool:
        """Whether a rank was asked by a signal to end."""
        return False

    def agree(self, values: Iterable[int]) -> list[list[int]]:
        """The numbers of every rank, a list for each rank."""
        return [list(values)]


ALONE = World()
"""One process for the whole run."""


def shared_out(count: int, size: int, parts: int) -> int:
    """How many rows of one part of a batch a rank has; 0 where the batch cannot be divided."""
    return 0 if count % (size * parts) else count // (size * parts)


def rows_of(whole: Tensor, rank: int, size: int, parts: int) -> Tensor:
    """The rows of one rank: of each of `parts` batches in a row, an equal and continuous share."""
    if parts == 1:
        return whole.chunk(size)[rank]
    return torch.cat([part.chunk(size)[rank] for part in whole.chunk(parts)])
