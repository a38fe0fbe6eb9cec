"""Poisson noise on the generator's input, as from an image sensor in low light."""

from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import NoEffect, Plugin, degradation, hookimpl

Factor = Annotated[float, Field(ge=0)]


class PoissonNoise(Plugin):
    """Adds shot noise of a random strength, whose variance grows with the intensity.

        out = clip(I + scale (P / v - J), 0, 1),  P ~ Poisson(v J),  v = 2^ceil(log2(levels))

    J is I rounded to 8 bits, and `levels` is the number of its different values. So at scale 1 the
    variance is J / v. The scale is drawn once per image. Grey noise is the noise of the luma, added
    to all channels. The defaults are those of the first stage of Real-ESRGAN (Wang et al. 2021,
    arXiv:2107.10833). No gradient passes through the noise.
    """

    images_only: ClassVar[bool] = True

    probability: Annotated[float, NoEffect(0)] = Field(1.0, ge=0, le=1)
    """Share of the images that get noise."""

    scale: Annotated[
        tuple[Factor, Factor], AfterValidator(degradation.rising), NoEffect((0, 0))
    ] = (0.05, 3.0)
    """Range of the factor on the noise."""

    grey_probability: float = Field(0.4, ge=0, le=1)
    """Share of the noisy images whose noise is grey."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        rng = self.rng
        noisy = degradation.random_poisson_noise(images, self.scale, self.grey_probability, rng)
        return torch.where(degradation.chance(self.probability, images, rng), noisy, images)
