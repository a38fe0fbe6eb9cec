"""Gaussian noise on what the generator sees."""

from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import NoEffect, Plugin, degradation, hookimpl

Level = Annotated[float, Field(ge=0, le=255)]


class GaussianNoise(Plugin):
    """Adds Gaussian noise of random strength (Real-ESRGAN; Wang et al. 2021, arXiv:2107.10833).

        clip(I + sigma / 255 n, 0, 1),  n ~ N(0, 1)

    sigma is drawn once per image. With probability `grey_probability` the channels of an image
    share one n. The defaults are those of Real-ESRGAN's first stage. Deviation from the published
    code: there, all images of a batch with grey noise share one n as well.
    """

    images_only: ClassVar[bool] = True

    probability: Annotated[float, NoEffect(0)] = Field(1.0, ge=0, le=1)
    """Share of the images that get noise."""

    sigma: Annotated[tuple[Level, Level], AfterValidator(degradation.rising), NoEffect((0, 0))] = (
        1.0,
        30.0,
    )
    """Range of the standard deviation, in grey levels of 255."""

    grey_probability: float = Field(0.4, ge=0, le=1)
    """Share of the noisy images whose noise is grey."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        rng = self.rng
        noisy = degradation.random_gaussian_noise(images, self.sigma, self.grey_probability, rng)
        return torch.where(degradation.chance(self.probability, images, rng), noisy, images)
