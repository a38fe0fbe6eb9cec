"""Hinge loss: the discriminator is content with a margin of 1 on either side."""

from typing import ClassVar

from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class Hinge(Plugin):
    """Hinge GAN loss (Lim and Ye 2017, arXiv:1705.02894; SNGAN, arXiv:1802.05957).

    With r and f the logits of real and fake images, means over batch and patch map: D minimises
    `mean(max(0, 1 - r)) + mean(max(0, 1 + f))`, so that it learns nothing more from images beyond
    the margin; G minimises `-mean(f)`. It reads no labels. Usual with spectral_norm.
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
