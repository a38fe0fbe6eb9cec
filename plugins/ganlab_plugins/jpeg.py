"""JPEG compression of what the generator sees."""

from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import Plugin, degradation, hookimpl

Quality = Annotated[float, Field(ge=1, le=100)]


class Jpeg(Plugin):
    """Compresses and decompresses each image as JPEG of a random quality.

    Baseline JPEG with 4:2:0 chroma (ITU-T T.81, 1992) on tensors: what loses information in
    libjpeg, the DCT of 8 x 8 blocks rounded to multiples of the scaled tables K.1 and K.2 foremost;
    within 48 dB of Pillow's files. One quality an image, U(range), as in Real-ESRGAN (Wang et al.
    2021, arXiv:2107.10833), whose own compression is coarser: its tables are not rounded and its
    chroma is enlarged by repetition. Images of 1 or 3 channels.
    """

    images_only: ClassVar[bool] = True

    probability: float = Field(1.0, ge=0, le=1)
    """Share of the images that are compressed."""

    quality: Annotated[tuple[Quality, Quality], AfterValidator(degradation.rising)] = (30.0, 95.0)
    """Range of the quality, 1 to 100."""

    differentiable: bool = False
    """Let gradients through: coefficients are rounded by round(x) + (x - round(x))^3 (Shin and
    Song 2017), and nothing else is rounded. The training steps degrade without gradients; this is
    for a loss that degrades the generator's image."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        quality = degradation.uniform(self.quality, images, self.rng)
        happens = degradation.chance(self.probability, images, self.rng)
        made = degradation.jpeg(images, quality, self.differentiable)
        return torch.where(happens, made, images)
