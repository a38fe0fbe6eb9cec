"""Instance noise: real and fake images are blurred into each other by noise."""

from collections.abc import Generator

import torch
from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class InstanceNoise(Plugin):
    """Gaussian noise on all that the discriminator sees (Sønderby et al. 2017, arXiv:1610.04490).

    `images + sigma * n`, n ~ N(0, 1) drawn anew for every value of every image, real and fake with
    the same sigma, in the D step and in the G step. The two distributions then overlap, so that D
    cannot tell them apart perfectly and G's gradient stays useful; as sigma falls to 0 the
    problem becomes the true one. The result is not clamped: that would change the distribution.
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
