"""Least-squares loss: logits are pulled to targets instead of being classified."""

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class LSGAN(Plugin):
    """Least-squares GAN loss (Mao et al. 2016, arXiv:1611.04076).

    With r and f the logits of real and fake images, b = `real_target`, a = `fake_target`, c =
    `generator_target`, means over batch and patch map: D minimises
    `(mean((r - b)^2) + mean((f - a)^2)) / 2` and G `mean((f - c)^2) / 2`. Unlike cross-entropy it
    also pulls back fakes that D takes for real but that lie far from its border.

    The labels of D are honoured: a label l in 0..1 (label_smoothing) asks for a + (b - a) l. With
    b - c = 1 and b - a = 2 the game minimises Pearson's chi-squared: a = -1, b = 1, c = 0.
    """

    real_target: float = 1.0
    """The paper's b: what D aims at for real images."""

    fake_target: float = 0.0
    """The paper's a: what D aims at for generated images."""

    generator_target: float = 1.0
    """The paper's c: what G wants D to say of its images."""

    halved: bool = True
    """Halve both players' losses, as the paper does; BasicSR and most SR codes do not."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @model_validator(mode="after")
    def _targets_differ(self) -> "LSGAN":
        if self.real_target == self.fake_target:
            raise ValueError(
                "real_target and fake_target are equal, so D has nothing to tell apart; change one"
            )
        return self

    @hookimpl
    def discriminator_loss(
        self, real_logits: Tensor, fake_logits: Tensor, real_label: Tensor, fake_label: Tensor
    ) -> Tensor:
        real_term = F.mse_loss(real_logits, self._target(real_label))
        return self._share * (real_term + F.mse_loss(fake_logits, self._target(fake_label)))

    @hookimpl
    def generator_loss(self, fake_logits: Tensor) -> dict[str, Tensor]:
        loss = self._share * (fake_logits - self.generator_target).square().mean()
        return {"G/adversarial": self.weight.value * loss}

    def _target(self, label: Tensor) -> Tensor:
        return self.fake_target + (self.real_target - self.fake_target) * label

    @property
    def _share(self) -> float:
        return 0.5 if self.halved else 1.0
