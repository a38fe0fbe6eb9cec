"""Multi-layer perceptrons: the generator and the discriminator of toy problems."""

import math
from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import nn

from ganlab import (
    Plugin,
    Run,
    hookimpl,
)

Activation = Literal["relu", "leaky_relu"]


class MLP(Plugin):
    """Fully connected generator and discriminator (toy problems of arXiv:1704.00028).

    Each network has `num_layers` hidden layers and a linear output layer. The generator flattens a
    condition of any shape; its output has the shape of the real samples. The discriminator flattens
    a sample and gives one logit, [N, 1]. The initialisation is torch's default. The paper uses 3
    layers of width 512 with ReLU on 2-D mixtures. There is no normalisation, so every sample is
    judged alone.
    """

    width: int = Field(128, ge=1)
    """Units of a hidden layer."""

    num_layers: int = Field(3, ge=0)
    """Hidden layers; 0 is a linear map."""

    activation: Activation = "relu"
    """Activation after each hidden layer; `leaky_relu` has a slope of 0.2 below 0."""

    discriminator_width: int | None = Field(None, ge=1)
    """Units of a hidden layer of D; by default `width`."""

    discriminator_num_layers: int | None = Field(None, ge=0)
    """Hidden layers of D; by default `num_layers`."""

    output: Literal["linear", "sigmoid"] = "linear"
    """Output of the generator; use `sigmoid` for images, which are in 0..1."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        hidden = [self.width] * self.num_layers
        sizes = [math.prod(condition_shape), *hidden, math.prod(real_shape)]
        layers = [nn.Flatten(), *perceptron(sizes, self.activation)]
        if self.output == "sigmoid":
            layers.append(nn.Sigmoid())
        return nn.Sequential(*layers, nn.Unflatten(1, real_shape))

    @hookimpl
    def run_start(self, run: Run) -> None:
        if run.held_out:
            raise self.error(
                "makes samples of one size only, so it cannot enlarge held-out images; use a "
                "convolutional generator, or data without held-out images"
            )

    @hookimpl
    def make_discriminator(self, real_shape: tuple[int, ...]) -> nn.Module:
        depth = self.discriminator_num_layers
        depth = self.num_layers if depth is None else depth
        hidden = [self.discriminator_width or self.width] * depth
        sizes = [math.prod(real_shape), *hidden, 1]
        return nn.Sequential(nn.Flatten(), *perceptron(sizes, self.activation))


def perceptron(sizes: list[int], activation: Activation) -> list[nn.Module]:
    """Linear layers from each size to the next, with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers.append(nn.Linear(inputs, outputs))
        layers.append(nn.ReLU() if activation == "relu" else nn.LeakyReLU(0.2))
    return layers[:-1]
