"""JPEG compression of what the generator sees."""

from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import NoEffect, Plugin, degradation, hookimpl

Quality = Annotated[float, Field(ge=1, le=100)]


class Jpeg(Plugin):
    """JPEG compression of random quality (Real-ESRGAN; Wang et al. 2021, arXiv:2107.10833).

    Compresses and decompresses each image, of 1 or 3 channels, as tensors: baseline JPEG with 4:2:0
    chroma (ITU-T T.81, 1992). It follows libjpeg in all that loses information, above all the DCT
    of 8 x 8 blocks, rounded to multiples of the scaled tables K.1 and K.2. The result agrees with
    Pillow's files to 48 dB. The quality is drawn once per image, U(range), as in Real-ESRGAN.
    Real-ESRGAN's own compression is coarser: its tables are not rounded, and its chroma is enlarged
    by repetition.
    """

    images_only: ClassVar[bool] = True

    probability: Annotated[float, NoEffect(0)] = Field(1.0, ge=0, le=1)
    """Share of the images that are compressed."""

    quality: Annotated[tuple[Quality, Quality], AfterValidator(degradation.rising)] = (30.0, 95.0)
    """Range of the quality, 1 to 100."""

    differentiable: bool = False
    """Let gradients pass: coefficients are rounded by round(x) + (x - round(x))^3 (Shin and
    Song 2017), and nothing else is rounded. The training steps degrade images without gradients;
    use this option for a loss that degrades the generator's image."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        quality = degradation.uniform(self.quality, images, self.rng)
        happens = degradation.chance(self.probability, images, self.rng)
        made = degradation.jpeg(images, quality, self.differentiable)
        return torch.where(happens, made, images)
