"""Relativistic average: compares each image with the average of the other side."""

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

    r and f are the logits of real and fake images; `r' = r - mean(f)` and `f' = f - mean(r)`. Means
    are over batch and patch map. Each player minimises the sum of two terms:

    - `bce`: `softplus(-r') + softplus(f')` for D; for G, r' and f' are exchanged. ESRGAN
      (arXiv:1809.00219) uses this. Other labels for D (label_smoothing) are used where given.
    - `lsgan`: `(r' - 1)^2 + (f' + 1)^2` for D; for G, r' and f' are exchanged. A label l in 0..1
      gives the target 2 l - 1. BasicSR and KAIR use the targets 1 and 0, which cannot both be
      reached, because mean(r') = -mean(f').
    - `hinge`: `max(0, 1 - r') + max(0, 1 + f')` for D; for G, r' and f' are exchanged. It reads no
      labels.

    Gradients flow through the means, as the formula says. The G step runs D on the real images as
    well. These give no gradient to G, but the mean of the fakes in their term does.
    """

    base: Literal["bce", "lsgan", "hinge"] = "bce"
    """The loss that compares an image with the other side's mean."""

    halved: bool = False
    """Halve both players' losses, as BasicSR and KAIR do; the papers sum the two terms."""

    mean_over: Literal["all", "batch"] = "all"
    """`all`: the other side's mean is over batch and patch map; `batch`: over the batch alone,
    separately for each position of the map (KAIR). With one logit per image both are equal."""

    detach_means: bool = False
    """Cut the gradient through the means in D's loss, as BasicSR and KAIR do. The result is not the
    gradient of the loss; it can differ by a factor of several. G's gradient is always exact."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        readers = [
            i.plugin for i in run.hook.labels.get_hookimpls() if isinstance(i.plugin, Plugin)
        ]
        if self.base == "hinge" and readers:
            raise self.error(
                f"base = 'hinge' reads no labels, but {readers[0].name} changes them; remove "
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
        """The logits of each side, minus the mean of the other side's logits."""
        means = [
            self.world.mean(x.mean() if self.mean_over == "all" else x.mean(0, keepdim=True))
            for x in (fake, real)
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
