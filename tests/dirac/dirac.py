"""Dirac-GAN: the smallest game there is (Mescheder et al. 2018, arXiv:1801.04406)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import Plugin, hookimpl


class Point(nn.Module):
    """A generator that makes one number, whatever the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, condition: Tensor) -> Tensor:
        return self.theta.expand(len(condition), 1)


class Slope(nn.Module):
    """A discriminator D(x) = psi x."""

    def __init__(self) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.psi * x


class Dirac(Plugin):
    """Data at 0, generator at theta, discriminator of slope psi; plain SGD from (1, 1)."""

    step_size: float = Field(gt=0)
    """Of both players."""

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.zeros(batch_size, 1, device=device)

    @hookimpl
    def make_generator(self) -> nn.Module:
        return Point()

    @hookimpl
    def make_discriminator(self) -> nn.Module:
        return Slope()

    @hookimpl
    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.step_size)
