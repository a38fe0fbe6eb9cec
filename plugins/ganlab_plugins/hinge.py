"""Hinge loss: images beyond a margin of 1 on their side give the discriminator no gradient."""

from typing import ClassVar

from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class Hinge(Plugin):
    """Hinge GAN loss (Lim and Ye 2017, arXiv:1705.02894; SNGAN, arXiv:1802.05957).

    r and f are the logits of real and fake images; means are over batch and patch map. D minimises
    `mean(max(0, 1 - r)) + mean(max(0, 1 + f))`, so images beyond the margin teach it nothing more.
    G minimises `-mean(f)`. The loss reads no labels. It is usually combined with spectral_norm.
    """

    judges_by_sign: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @hookimpl
    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (1 - real_logits).relu().mean() + (1 + fake_logits).relu().mean()

    @hookimpl
    def generator_loss(self, fake_logits: Tensor) -> dict[str, Tensor]:
        return {"G/adversarial": -self.weight.value * fake_logits.mean()}
