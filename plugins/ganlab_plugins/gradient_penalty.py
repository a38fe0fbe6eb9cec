"""Gradient penalty: keeps the critic's slope between real and fake images near a target."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ganlab import NonNegativeSchedule, PatchReduce, Plugin, Schedule, hookimpl, input_gradient


class GradientPenalty(Plugin):
    """Gradient penalty of WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028).

    Adds `weight * mean over images of (|g| - target)^2`. g is the gradient of the critic's logit at
    `x = fake + u (real - fake)`, with one u ~ U(0, 1) for every image (not for every pixel). |g| is
    the L2 norm over C, H and W together. Some codes take the norm over C alone, which is another
    method. TF-GAN divides by the target, `(|g| / target - 1)^2`; here, as in the paper, the target
    is subtracted. At the paper's target of 1 both are equal.

    The logit of an image is the `patch_reduce` of its patch map. x lies between the images seen by
    D, so after `augment`. D must judge every image alone, so it must have no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """The paper's lambda."""

    target: float = Field(1.0, ge=0)
    """The target slope, in logits per unit of the images (L2). 0 is the zero-centred penalty,
    which converges where a target of 1 only circles (Mescheder et al. 2018, arXiv:1801.04406)."""

    one_sided: bool = False
    """Penalise only slopes above the target (WGAN-LP, arXiv:1709.08894)."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one logit. With `mean`, `weight` means the same for every map size.
    BasicSR and MMagic use `sum`: the slope then grows with the size h * w of the map. So the slope
    of the mean logit is held at target / (h * w), which is flatter for larger crops."""

    @model_validator(mode="after")
    def _one_sided_needs_a_target(self) -> "GradientPenalty":
        if self.one_sided and self.target == 0:
            raise ValueError("one_sided changes nothing at target = 0; leave one of them out")
        return self

    def warnings(self, others: Sequence[Plugin]) -> list[str]:
        if self.target == 0 or any(other.wants_bounded_slope for other in others):
            return []
        return [
            f"holds slopes at {self.target:g}, which is meant for wasserstein; beside another "
            "objective, target = 0 or r1 is the usual choice"
        ]

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        one_per_image = [len(real)] + [1] * (real.dim() - 1)
        u = torch.rand(one_per_image, generator=self.rng, device=real.device, dtype=real.dtype)
        between = torch.lerp(fake, real, u)
        gradient = input_gradient(discriminator, between, self.patch_reduce)
        # at 0, where a critic is flat, vector_norm has gradient 0 and sqrt(sum(g^2)) has NaN
        excess = torch.linalg.vector_norm(gradient, dim=1) - self.target
        if self.one_sided:
            excess = excess.relu()
        return {f"D/{self.name}": self.weight.value * excess.square().mean()}
