"""Wasserstein loss: the critic's mean gap between real and fake."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class Wasserstein(Plugin):
    """Wasserstein GAN loss (Arjovsky et al. 2017, arXiv:1701.07875).

    With r and f the critic's outputs for real and fake images, means over batch and patch map: the
    critic minimises `mean(f) - mean(r)`, the generator `-mean(f)`. The critic's loss is minus an
    estimate of the Wasserstein distance only while the critic is 1-Lipschitz: add
    gradient_penalty, without which its loss falls without bound. It reads no labels.
    """

    wants_bounded_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the critic's loss is not weighted."""

    def warnings(self, others: Sequence[Plugin]) -> list[str]:
        # a discriminator with `norm = "spectral"` bounds it too
        if any(o.bounds_slope or getattr(o, "norm", "") == "spectral" for o in others):
            return []
        return [
            "wants a critic of bounded slope, and nothing bounds it: its loss can fall for ever; "
            "add gradient_penalty or weight_clipping"
        ]

    @hookimpl
    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits.mean() - real_logits.mean()

    @hookimpl
    def generator_loss(self, fake_logits: Tensor) -> dict[str, Tensor]:
        return {"G/adversarial": -self.weight.value * fake_logits.mean()}
