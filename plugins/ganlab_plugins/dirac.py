"""Dirac-GAN: the smallest GAN, a test of which methods converge."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import (
    Plugin,
    Run,
    content_digest,
    hookimpl,
)


class Point(nn.Module):
    """A generator that makes the same number for every condition."""

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
    """Dirac-GAN (Mescheder et al. 2018, arXiv:1801.04406): a GAN of two parameters.

    All data is 0, the generator makes theta, and the discriminator is D(x) = psi x. Both parameters
    begin at 1 and are trained by plain gradient descent. The equilibrium is theta = psi = 0. Within
    seconds, a run shows whether a method converges (r1, r2, consensus, a gradient penalty with
    target 0, instance noise) or circles around the equilibrium (bce, wasserstein and hinge alone,
    weight clipping, a gradient penalty with target 1). Use `precision = "float64"`.

    The plugin provides the data, both networks and the optimizer; add the losses and penalties to
    study. An evaluation reports `theta`, `psi` and `radius`, the distance from the equilibrium.
    Here D steps first, then G; in the authors' experiments with alternating steps G comes first.
    """

    step_size: float = Field(gt=0, examples=[0.2])
    """Size of the gradient steps of both networks; the paper's experiments use 0.2."""

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.zeros(batch_size, 1, device=device)

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return {"zeros": content_digest(0)}

    @hookimpl
    def make_generator(self) -> nn.Module:
        return Point()

    @hookimpl
    def make_discriminator(self) -> nn.Module:
        return Slope()

    @hookimpl
    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.step_size)

    @hookimpl
    def evaluate(self, run: Run) -> dict[str, float]:
        players: dict[str, float] = {}
        for network in (run.G, run.D):
            assert network is not None
            players |= {name: value.item() for name, value in network.named_parameters()}
        return players | {"radius": sum(value**2 for value in players.values()) ** 0.5}
