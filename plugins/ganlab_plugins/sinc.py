"""Ringing: filters each image with an ideal low-pass filter that is cut to a window."""

import math
from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ganlab import NoEffect, Plugin, degradation, hookimpl

Frequency = Annotated[float, Field(gt=0, le=math.pi)]
Size = Annotated[int, Field(ge=3, le=63)]


class Sinc(Plugin):
    """Adds ringing and overshoot at edges, as sharpening and compression do.

        k(d) ~ c J1(c |d|) / (2 pi |d|),  k(0) ~ c^2 / (4 pi),  sum 1

    J1 is the Bessel function, and c is the cut-off, drawn once per image. The defaults are those of
    the final filter of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833). The border is reflected,
    and the result is clipped to 0..1.
    """

    images_only: ClassVar[bool] = True

    probability: Annotated[float, NoEffect(0)] = Field(0.8, ge=0, le=1)
    """Share of the images that are filtered."""

    cutoff: Annotated[tuple[Frequency, Frequency], AfterValidator(degradation.rising)] = (
        math.pi / 3,
        math.pi,
    )
    """Range of the cut-off frequency, in radians a pixel; pi, the highest, keeps nearly all."""

    kernel_sizes: Annotated[tuple[Size, Size], AfterValidator(degradation.rising)] = (7, 21)
    """Smallest and largest side of the kernels in pixels, odd. Each odd side is equally likely."""

    @model_validator(mode="after")
    def _odd(self) -> "Sinc":
        if not all(size % 2 for size in self.kernel_sizes):
            raise ValueError("kernel_sizes must be odd, such as [7, 21]")
        return self

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        kernels = degradation.random_sinc_kernels(images, self.cutoff, self.kernel_sizes, self.rng)
        happens = degradation.chance(self.probability, images, self.rng)
        filtered = degradation.filter_images(images, kernels).clamp(0, 1)
        return torch.where(happens, filtered, images)
