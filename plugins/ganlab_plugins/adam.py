"""Adam, optionally with another learning rate for the discriminator."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from ganlab import MayChange, Plugin, hookimpl

Beta = Annotated[float, Field(ge=0, lt=1)]


class Adam(Plugin):
    """Adam for both networks (Kingma and Ba 2014, arXiv:1412.6980).

    Different learning rates for G and D are the two time-scale update rule, TTUR (Heusel et al.
    2017, arXiv:1706.08500). WGAN-GP trains with betas (0, 0.9) or (0.5, 0.9). There is no weight
    decay. On CPU and CUDA the fused kernel is used: it makes the same update several times faster.
    """

    learning_rate: Annotated[float, MayChange()] = Field(1e-4, gt=0)
    """Step size of G, and of D unless `discriminator_learning_rate` is given."""

    betas: Annotated[tuple[Beta, Beta], MayChange()] = (0.9, 0.99)
    """Decay per step of the means of gradient and squared gradient, each in [0, 1)."""

    discriminator_learning_rate: Annotated[float | None, MayChange()] = Field(None, gt=0)
    """Step size of D; by default `learning_rate`."""

    discriminator_betas: Annotated[tuple[Beta, Beta] | None, MayChange()] = None
    """Betas of D; by default `betas`."""

    eps: float = Field(1e-8, gt=0)
    """Added to the root of the mean squared gradient."""

    @hookimpl
    def make_optimizer(self, module: nn.Module, role: str) -> torch.optim.Optimizer:
        learning_rate, betas = self.learning_rate, self.betas
        if role == "discriminator":
            learning_rate = self.discriminator_learning_rate or learning_rate
            betas = self.discriminator_betas or betas
        parameters = list(module.parameters())
        options: dict[str, Any] = {}
        if all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters):
            options["fused"] = True
        return torch.optim.Adam(parameters, learning_rate, betas, self.eps, **options)
