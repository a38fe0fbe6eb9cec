"""Approximate R1: r1 from two values of the discriminator, without a second derivative."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import LazyPenalty, NonNegativeSchedule, PatchReduce, Schedule


class ApproximateR1(LazyPenalty):
    """Approximated R1 of Seaweed-APT (Lin et al. 2025, arXiv:2501.08316), on real images.

    Adds `weight * mean over images of (D(x) - D(x + sigma n))^2`, where n ~ N(0, 1) for every value
    and D(x) is the score of an image, the `patch_reduce` of its patch map. For a small sigma that
    is, in expectation, `weight sigma^2 |g|^2`: r1 with a gamma of 2 weight sigma^2, which is 0.02
    here. One first derivative instead of a second, for a forward pass through twice the images;
    and the only form for a D that cannot be differentiated twice.

    Both values come from one call of D in full precision: with spectral norm two calls see two D's,
    and in bfloat16 a difference so small is noise. Images are those that the discriminator was
    shown, so after `augment`. D must judge every image alone: no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(100.0)
    """The paper's lambda."""

    sigma: float = Field(0.01, gt=0)
    """Deviation of the noise, in units of the images (0..1). The paper: 0.01 for images, 0.1 for
    video, both on latents."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one score; with `sum` the penalty grows with the square of the map's
    h * w."""

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        x = real.detach()
        n = torch.randn(x.shape, generator=self.rng, device=x.device, dtype=x.dtype)
        logits = discriminator(torch.cat([x, x + self.sigma * n])).flatten(1)
        scores = logits.mean(1) if self.patch_reduce == "mean" else logits.sum(1)
        plain, noisy = scores.chunk(2)
        return self.weight.value * (plain - noisy).square().mean()
