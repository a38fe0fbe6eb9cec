"""Exponential moving average of the generator's weights, evaluated and kept in its place."""

import copy
import operator
from collections.abc import Generator
from itertools import chain
from typing import Annotated, Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ganlab import (
    MayChange,
    NoEffect,
    Plugin,
    Run,
    hookimpl,
)

ROUNDING = 1e-5


class _Pairs:
    """The tensors of an average and of its network, listed once.

    Listing them anew would take longer than to launch the averaging on a GPU.
    """

    def __init__(self, average: nn.Module, network: nn.Module) -> None:
        self._modules = average, network
        self._tables: list[dict[str, Any]] = [
            table
            for module in (*average.modules(), *network.modules())
            for table in (module._parameters, module._buffers, module._modules)
        ]
        self._held = self._holding()
        self._averaged: tuple[list[Tensor], list[Tensor]] = [], []
        self._copied: tuple[list[Tensor], list[Tensor]] = [], []
        for mine, theirs in zip(_tensors(average), _tensors(network), strict=True):
            lists = self._averaged if mine.is_floating_point() else self._copied
            lists[0].append(mine)
            lists[1].append(theirs)

    def are_of(self, average: nn.Module, network: nn.Module) -> bool:
        """Whether these are the networks, and they still hold the same tensors."""
        now = self._holding()
        return (
            self._modules == (average, network)
            and len(now) == len(self._held)
            and all(map(operator.is_, now, self._held))
        )

    def _holding(self) -> list[object]:
        return [*chain.from_iterable(map(dict.values, self._tables))]

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Move the averages by this share of the way to the network's tensors."""
        # one call for all tensors: on a GPU a few kernels instead of one per tensor
        torch._foreach_lerp_(*self._averaged, share)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)


class EMA(Plugin):
    """Average generator: after every iteration `average = decay * average + (1 - decay) * G`.

    The average is evaluated and kept in place of G (Karras et al. 2017, arXiv:1710.10196; studied
    by Yazici et al. 2018, arXiv:1806.04498); it does not change the training. Floating-point
    buffers, such as the statistics of batch norm, are averaged like the parameters; others are
    copied. It needs memory for one more copy of G.
    """

    decay: Annotated[float, NoEffect(0), MayChange()] = Field(0.999, ge=0, lt=1)
    """Share of the average kept in each iteration; it spans about 1 / (1 - decay) iterations."""

    warmup: bool = True
    """Use min(decay, (1 + t) / (10 + t)) at iteration t, to forget the initial weights sooner."""

    _average: nn.Module | None = PrivateAttr(None)
    _pairs: _Pairs | None = PrivateAttr(None)

    def decay_at(self, iteration: int) -> float:
        """The decay at an iteration, counted from 0."""
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + iteration) / (10 + iteration))

    @hookimpl
    def run_start(self, run: Run) -> None:
        self._average = copy.deepcopy(run.G).eval().requires_grad_(False)

    @hookimpl
    def iteration_end(self, run: Run) -> None:
        if self._pairs is None or not self._pairs.are_of(self.average, run.G):
            self._pairs = _Pairs(self.average, run.G)
        self._pairs.step(1 - self.decay_at(run.iteration))

    @hookimpl(wrapper=True)
    def evaluation_generator(self) -> Generator[None, nn.Module, nn.Module]:
        yield
        return self.average

    def invariants(self, run: Run) -> Generator[None, None, list[str]]:
        before = [tensor.clone() for tensor in _tensors(self.average)]
        yield
        share = 1 - self.decay_at(run.iteration)
        gaps = []
        for old, average, now in zip(before, _tensors(self.average), _tensors(run.G), strict=True):
            if average.is_floating_point():
                expected = torch.lerp(old, now, share)
                if not torch.allclose(average, expected, rtol=ROUNDING, atol=ROUNDING):
                    gaps.append((average - expected).abs().max().item())
        if not gaps:
            return []
        return [
            "its average is not decay * average + (1 - decay) * G after an iteration: it is off "
            f"by {max(gaps):.3g}; change neither G nor the average after it has averaged them"
        ]

    @property
    def average(self) -> nn.Module:
        """The averaged generator, in eval mode."""
        assert self._average is not None, "no average before run_start"
        return self._average

    def state_dict(self) -> dict[str, Any]:
        return {"generator": dict(self.average.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["generator"], strict=True)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
