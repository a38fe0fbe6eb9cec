"""Weight clipping: every weight of the critic is kept within a small range."""

from collections.abc import Generator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ganlab import (
    Losses,
    Plugin,
    Run,
    discriminators,
    hookimpl,
)


class WeightClipping(Plugin):
    """Weight clipping of the first WGAN (Arjovsky et al. 2017, arXiv:1701.07875).

    After every update of the discriminator, each of its parameters, biases too, is clamped to
    -limit..limit. This bounds the discriminator's slope by an unknown constant. The paper calls it
    "a clearly terrible way to enforce a Lipschitz constraint"; gradient_penalty is the usual
    remedy. The paper trains with RMSProp at 5e-5 and 5 critic steps.
    """

    bounds_slope: ClassVar[bool] = True

    limit: float = Field(0.01, gt=0)
    """The paper's c: the largest absolute value of a parameter."""

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        for plugin in run.recipe.plugins.values():
            if plugin is not self and plugin.bounds_slope:
                raise self.error(
                    f"the discriminator's slope is bounded twice, by {self.name} and by "
                    f"{plugin.name}; remove one of them"
                )

    # outermost, so that it also runs after the additional step of a lazy penalty
    @hookimpl(wrapper=True, tryfirst=True)
    def discriminator_step(self, run: Run) -> Generator[None, Losses, Losses]:
        losses = yield
        if losses:  # without losses D did not step
            with torch.no_grad():
                for discriminator in discriminators(run):
                    parameters: list[Tensor] = list(discriminator.parameters())
                    # two calls for all: on a GPU a few kernels instead of one per parameter
                    torch._foreach_clamp_min_(parameters, -self.limit)
                    torch._foreach_clamp_max_(parameters, self.limit)
        return losses
