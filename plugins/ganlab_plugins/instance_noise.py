"""Instance noise: noise makes the distributions of real and fake images overlap."""

from collections.abc import Generator

import torch
from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class InstanceNoise(Plugin):
    """Gaussian noise on all that the discriminator sees (Sønderby et al. 2017, arXiv:1610.04490).

    D sees `images + sigma * n`, with a new n ~ N(0, 1) for every value of every image. Real and
    fake images get the same sigma, in the D step and in the G step. The two distributions then
    overlap, so D cannot tell them apart perfectly, and G's gradient stays useful. As sigma falls
    to 0, the problem becomes the original one. The result is not clamped, because that would change
    the distribution.
    """

    sigma: NonNegativeSchedule = Schedule.model_validate({"from": 0.1, "to": 0.0, "over": 10_000})
    """Standard deviation of the noise, for images in 0..1 (0.1 is 25 grey levels of 255)."""

    @hookimpl(wrapper=True)
    def augment(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        noise = torch.randn(
            images.shape, generator=self.rng, device=images.device, dtype=images.dtype
        )
        return images + self.sigma.value * noise
