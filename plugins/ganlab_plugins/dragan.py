"""DRAGAN: a penalty that keeps D's slope near a target around the real images."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import NonNegativeSchedule, PatchReduce, Plugin, Schedule, hookimpl, input_gradient


class DRAGAN(Plugin):
    """Gradient penalty around real images (Kodali et al. 2017, arXiv:1705.07215).

    Adds `weight * mean over images of (|g| - target)^2`, where g is the gradient of D's logit at a
    disturbed real image x', and |g| its L2 norm over C, H and W together. s is the standard
    deviation of all values of the batch, and z ~ U(0, 1) is drawn for every value:

    - `upward`: `x' = x + u s z / 2` with one u ~ U(0, 1) for every image, as in the authors' code
      and StudioGAN. Values only increase, and may leave 0..1.
    - `centred`: `x' = clip(x + s (z - 1/2), 0, 1)`, as in compare_gan.

    s is the population deviation (torch's default divides by n - 1). The real images are those
    seen by D, so after `augment`; fake images are not used. D must judge every image alone, so it
    must have no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """The paper's lambda."""

    target: float = Field(1.0, ge=0)
    """The target slope, in logits per unit of the images (L2); the paper's k."""

    noise: Literal["upward", "centred"] = "upward"
    """How a real image is disturbed, see above."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one logit; with `sum` the slope grows with the map's h * w."""

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor) -> dict[str, Tensor]:
        gradient = input_gradient(discriminator, self.disturbed(real), self.patch_reduce)
        excess = torch.linalg.vector_norm(gradient, dim=1) - self.target
        return {f"D/{self.name}": self.weight.value * excess.square().mean()}

    def disturbed(self, real: Tensor) -> Tensor:
        """A point near each real image; the slope is measured there."""
        deviation = self.world.gather(real).std(correction=0)
        z = self._uniform(real, list(real.shape))
        if self.noise == "centred":
            return (real + deviation * (z - 0.5)).clamp(0, 1)
        u = self._uniform(real, [len(real)] + [1] * (real.dim() - 1))
        return real + u * 0.5 * deviation * z

    def _uniform(self, like: Tensor, shape: list[int]) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=like.device, dtype=like.dtype)
