"""The original adversarial loss: the discriminator classifies images as real or fake."""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class BCE(Plugin):
    """Binary cross-entropy GAN loss (Goodfellow et al. 2014, arXiv:1406.2661).

    r and f are the logits of real and fake images; means are over batch and patch map:

    - D minimises `mean(softplus(-r)) + mean(softplus(f))`, which is the cross-entropy of the logits
      against the labels 1 and 0; other labels (label_smoothing) are used where given.
    - G minimises `mean(softplus(-f))` (`nonsaturating`) or `-mean(softplus(f))` (`minimax`).

    The labels are for D alone; G always aims at 1. At equilibrium every term is ln 2 = 0.693.
    """

    judges_by_sign: ClassVar[bool] = True

    kind: Literal["nonsaturating", "minimax"] = "nonsaturating"
    """The generator's loss; `minimax` has almost no gradient while D is sure about the fakes."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @hookimpl
    def discriminator_loss(
        self, real_logits: Tensor, fake_logits: Tensor, real_label: Tensor, fake_label: Tensor
    ) -> Tensor:
        real_term = F.binary_cross_entropy_with_logits(real_logits, real_label)
        return real_term + F.binary_cross_entropy_with_logits(fake_logits, fake_label)

    @hookimpl
    def generator_loss(self, fake_logits: Tensor) -> dict[str, Tensor]:
        if self.kind == "minimax":
            label = torch.zeros_like(fake_logits)
            loss = -F.binary_cross_entropy_with_logits(fake_logits, label)
        else:
            label = torch.ones_like(fake_logits)
            loss = F.binary_cross_entropy_with_logits(fake_logits, label)
        return {"G/adversarial": self.weight.value * loss}
