"""Least-squares loss: the squared distance of the logits from target values."""

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class LSGAN(Plugin):
    """Least-squares GAN loss (Mao et al. 2016, arXiv:1611.04076).

    r and f are the logits of real and fake images, b = `real_target`, a = `fake_target`, c =
    `generator_target`; means are over the batch and the patch map. D minimises
    `(mean((r - b)^2) + mean((f - a)^2)) / 2` and G minimises `mean((f - c)^2) / 2`. Unlike
    cross-entropy, it also corrects fake images that D takes for real, but that lie far from D's
    decision boundary.

    The labels of D are used: for a label l in 0..1 (label_smoothing), the target is
    a + (b - a) l. With b - c = 1 and b - a = 2, as for a = -1, b = 1, c = 0, the game minimises
    Pearson's chi-squared divergence.
    """

    real_target: float = 1.0
    """The paper's b: D's target for the logits of real images."""

    fake_target: float = 0.0
    """The paper's a: D's target for the logits of fake images."""

    generator_target: float = 1.0
    """The paper's c: G's target for the logits of fake images."""

    halved: bool = True
    """Halve the losses of D and G, as the paper does; BasicSR and most SR codes do not."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @model_validator(mode="after")
    def _targets_differ(self) -> "LSGAN":
        if self.real_target == self.fake_target:
            raise ValueError(
                "real_target and fake_target are equal, so D cannot tell real from fake; change one"
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
