"""Wasserstein loss: the difference of the critic's mean outputs for real and fake images."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class Wasserstein(Plugin):
    """Wasserstein GAN loss (Arjovsky et al. 2017, arXiv:1701.07875).

    r and f are the critic's outputs for real and fake images; means are over batch and patch map.
    The critic minimises `mean(f) - mean(r)`, and the generator minimises `-mean(f)`. The critic's
    loss is minus an estimate of the Wasserstein distance only while the critic is 1-Lipschitz. So
    add gradient_penalty; without it, the critic's loss falls without bound. The losses read no
    labels.
    """

    wants_bounded_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the critic's loss is not weighted."""

    def warnings(self, others: Sequence[Plugin]) -> list[str]:
        # a discriminator with `norm = "spectral"` bounds it too
        if any(o.bounds_slope or getattr(o, "norm", "") == "spectral" for o in others):
            return []
        return [
            "needs a critic of bounded slope, but nothing bounds it, so its loss can fall forever; "
            "add gradient_penalty or weight_clipping"
        ]

    @hookimpl
    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits.mean() - real_logits.mean()

    @hookimpl
    def generator_loss(self, fake_logits: Tensor) -> dict[str, Tensor]:
        return {"G/adversarial": -self.weight.value * fake_logits.mean()}
