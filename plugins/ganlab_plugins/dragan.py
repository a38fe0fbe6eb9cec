"""DRAGAN: hold the slope of the discriminator at a target around the real images."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import NonNegativeSchedule, PatchReduce, Plugin, Schedule, hookimpl, input_gradient


class DRAGAN(Plugin):
    """Gradient penalty around real images (Kodali et al. 2017, arXiv:1705.07215).

    Adds `weight * mean over images of (|g| - target)^2`, where g is the gradient of the
    discriminator's score at a disturbed real image x', and |g| its L2 norm over C, H and W
    together. With s the deviation of all values of the batch and z ~ U(0, 1) for every value:

    - `upward`: `x' = x + u s z / 2` with one u ~ U(0, 1) for every image, as in the authors' code
      and StudioGAN. It disturbs upwards only, and may leave 0..1.
    - `centred`: `x' = clip(x + s (z - 1/2), 0, 1)`, as in compare_gan.

    s is the population deviation (torch's own divides by n - 1). Real images are those that the
    discriminator was shown, so after `augment`; the fakes play no part. D must judge every image
    alone: no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """The paper's lambda."""

    target: float = Field(1.0, ge=0)
    """The wanted slope, in logits per unit of the images (L2); the paper's k."""

    noise: Literal["upward", "centred"] = "upward"
    """How a real image is disturbed, see above."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one score; `sum` makes the slope grow with the map's h * w."""

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor) -> dict[str, Tensor]:
        gradient = input_gradient(discriminator, self.disturbed(real), self.patch_reduce)
        excess = torch.linalg.vector_norm(gradient, dim=1) - self.target
        return {f"D/{self.name}": self.weight.value * excess.square().mean()}

    def disturbed(self, real: Tensor) -> Tensor:
        """The point, near each real image, where the slope is taken."""
        deviation = real.std(correction=0)
        z = self._uniform(real, list(real.shape))
        if self.noise == "centred":
            return (real + deviation * (z - 0.5)).clamp(0, 1)
        u = self._uniform(real, [len(real)] + [1] * (real.dim() - 1))
        return real + u * 0.5 * deviation * z

    def _uniform(self, like: Tensor, shape: list[int]) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=like.device, dtype=like.dtype)
