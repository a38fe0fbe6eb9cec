"""A generator as a graph that other programs run: any height and width, no Python."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.nn import functional as F

from ganlab.errors import RecipeError, first_line
from ganlab.images.upscaling import MULTIPLE

EXAMPLE = (45, 38)
"""Height and width of the picture with which a network is read."""
_TRIED = ((24, 40), (17, 32), (31, 23))
"""Sizes that the graph must take too: even and odd, high and wide."""


class AnySize(nn.Module):
    """A generator that gets only sides that are multiples of 8, as in `ganlab upscale`.

    The right and bottom edge pixels are repeated, and their part of the result is cut off.
    """

    def __init__(self, generator: nn.Module, scale: int) -> None:
        super().__init__()
        self.generator, self.scale = generator, scale

    def forward(self, lr: Tensor) -> Tensor:
        """:param lr: [N, C, h, w]; returns [N, c, scale h, scale w]."""
        height, width = lr.shape[-2:]
        # so written, torch knows that these are multiples, and no number is negative: ONNX rounds
        # the quotient of a negative number up
        high, wide = ((side + MULTIPLE - 1) // MULTIPLE * MULTIPLE for side in (height, width))
        made = self.generator(F.pad(lr, (0, wide - width, 0, high - height), mode="replicate"))
        # not a slice: its strides would make the graph depend on the size of the example
        for axis, side in ((-2, height), (-1, width)):
            made = made.index_select(axis, torch.arange(side * self.scale, device=made.device))
        return made


class InHalf(nn.Module):
    """A network that computes in float16, from float32 to float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, lr: Tensor) -> Tensor:
        """:param lr: [N, C, h, w], float32; the result is float32 too."""
        made: Tensor = self.network(lr.half())
        return made.float()


def program_of(
    generator: nn.Module, scale: int, channels: int, half: bool
) -> tuple[ExportedProgram, nn.Module]:
    """The graph of a generator, and the network whose pictures it makes.

    The network is the generator itself where its graph takes every size, else `AnySize` of it.

    :param half: whether the graph shall compute in float16; the network stays in float32.
    :raises RecipeError: when no graph can be made.
    """
    faults = []
    for network in (generator, AnySize(generator, scale).eval()):
        try:
            with quiet(), torch.no_grad():
                program = _traced(InHalf(network).eval() if half else network, channels)
                _try(program, network, channels)
                return program, network
        except Exception as error:  # of all kinds: the network's code is a plugin's
            faults.append(first_line(error))
    raise RecipeError(
        f"torch.export cannot read this generator as one graph for all sizes: {faults[0]}; with "
        f"sides that are multiples of {MULTIPLE}: {faults[1]}. `--to safetensors` needs no graph"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which torch and its exporters warn of nothing: what comes out is compared."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _traced(network: nn.Module, channels: int) -> ExportedProgram:
    sides = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    example = torch.rand(1, channels, *EXAMPLE)
    program = torch.export.export(network, (example,), dynamic_shapes=(sides,))
    for graph in (m for m in program.graph_module.modules() if isinstance(m, GraphModule)):
        for node in graph.graph.nodes:  # it has lines of source, and folders of this machine
            node.meta.pop("stack_trace", None)
    return program


def _try(program: ExportedProgram, network: nn.Module, channels: int) -> None:
    """:raises Exception: when the graph does not take a size, or answers with another size."""
    for size in _TRIED:
        picture = torch.rand(1, channels, *size)
        made, expected = program.module()(picture), network(picture)
        if made.shape != expected.shape:
            raise ValueError(f"it makes {[*made.shape]} of {[*picture.shape]}")
