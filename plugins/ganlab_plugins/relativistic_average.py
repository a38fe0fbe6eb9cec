"""Relativistic average: an image should look more real than the other side does on average."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    hookimpl,
)


class RelativisticAverage(Plugin):
    """Relativistic average GAN loss, RaGAN (Jolicoeur-Martineau 2018, arXiv:1807.00734).

    With r and f the logits of real and fake images, `r' = r - mean(f)` and `f' = f - mean(r)`, and
    means over batch and patch map, a player minimises the sum of two terms:

    - `bce`: D `softplus(-r') + softplus(f')`, G the same with r' and f' exchanged; as in ESRGAN
      (arXiv:1809.00219). The labels of D (label_smoothing) are honoured.
    - `lsgan`: D `(r' - 1)^2 + (f' + 1)^2`, G exchanged. A label l in 0..1 asks for 2 l - 1;
      BasicSR and KAIR aim at 1 and 0, which cannot both be met, for mean(r') = -mean(f').
    - `hinge`: D `max(0, 1 - r') + max(0, 1 + f')`, G exchanged. Reads no labels.

    Gradients flow through the means, as the formula says. The G step runs D on the real images as
    well; these carry no gradient to G, but the mean of the fakes in their term does.
    """

    base: Literal["bce", "lsgan", "hinge"] = "bce"
    """The loss that compares an image with the other side's mean."""

    halved: bool = False
    """Halve both players' losses, as BasicSR and KAIR do; the papers sum the two terms."""

    mean_over: Literal["all", "batch"] = "all"
    """What the mean of the other side is over: batch and patch map, or the batch alone, apart for
    each position of the map (KAIR). The same for a discriminator of one logit per image."""

    detach_means: bool = False
    """Cut the gradient through the means in D's loss, as BasicSR and KAIR do. That is not the
    gradient of the loss: it can differ several times. The generator's is exact in either."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        readers = [
            i.plugin for i in run.hook.labels.get_hookimpls() if isinstance(i.plugin, Plugin)
        ]
        if self.base == "hinge" and readers:
            raise self.error(
                f"base = 'hinge' reads no labels, and {readers[0].name} changes them; remove "
                f"{readers[0].name} or use base = 'bce'",
                "base",
            )

    @hookimpl
    def discriminator_loss(
        self, real_logits: Tensor, fake_logits: Tensor, real_label: Tensor, fake_label: Tensor
    ) -> Tensor:
        real, fake = self._relative(real_logits, fake_logits, self.detach_means)
        return self._loss(real, real_label) + self._loss(fake, fake_label)

    @hookimpl
    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor) -> dict[str, Tensor]:
        real, fake = self._relative(real_logits, fake_logits, detach_means=False)
        loss = self._loss(real, torch.zeros_like(real)) + self._loss(fake, torch.ones_like(fake))
        return {"G/adversarial": self.weight.value * loss}

    def _relative(self, real: Tensor, fake: Tensor, detach_means: bool) -> tuple[Tensor, Tensor]:
        """Either side's logits, less the mean of the other side's."""
        means = [
            x.mean() if self.mean_over == "all" else x.mean(0, keepdim=True) for x in (fake, real)
        ]
        if detach_means:
            means = [mean.detach() for mean in means]
        return real - means[0], fake - means[1]

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.base == "bce":
            loss = F.binary_cross_entropy_with_logits(logits, label)
        elif self.base == "lsgan":
            loss = F.mse_loss(logits, 2 * label - 1)
        else:
            loss = (1 - (2 * label - 1) * logits).relu().mean()
        return loss / 2 if self.halved else loss
