"""Relativistic pairing: compares each real image with the generated image of its pair."""

from torch import Tensor
from torch.nn import functional as F

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class RelativisticPaired(Plugin):
    """Relativistic pairing GAN loss, RpGAN (Jolicoeur-Martineau 2018, arXiv:1807.00734).

    r and f are the logits of real and fake images, paired position by position; means are over
    batch and patch map. D minimises `mean(softplus(-(r - f)))`, and G minimises
    `mean(softplus(-(f - r)))`. In super-resolution a pair is one image, real and generated. R3GAN
    (arXiv:2501.05441) uses this objective and adds r1 and r2. It reads no labels, because a pair
    has no absolute target. Both losses are ln 2 = 0.693 when real and fake get the same logits.

    The G step runs D on the real images as well; they give no gradient to G.
    """

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on the generator's term; the discriminator's loss is not weighted."""

    @hookimpl
    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return F.softplus(fake_logits - real_logits).mean()

    @hookimpl
    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor) -> dict[str, Tensor]:
        loss = F.softplus(real_logits - fake_logits).mean()
        return {"G/adversarial": self.weight.value * loss}
