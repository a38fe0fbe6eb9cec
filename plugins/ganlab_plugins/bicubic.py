"""Bicubic shrinking: the degradation of classical super-resolution."""

from collections.abc import Generator
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ganlab import Plugin, hookimpl, resize, resize_exact, round_to_8_bits, to_float, to_uint8


class Bicubic(Plugin):
    """Bicubic shrinking by `scale`, antialiased, as in MATLAB (Keys, IEEE TASSP 29(6), 1981).

        condition = round(255 R images C^T) / 255,  clipped to 0..1

    R and C are the constant matrices of `ganlab.resize`, so a batch costs two matrix products.
    The kernel is Keys' with a = -0.5, stretched by the scale; edge pixels are repeated. MATLAB's
    imresize computes the same, and the LR images of the SR benchmarks were made with it (Set5 x4,
    enlarged again, scores 28.43 dB on Y; without antialiasing 27.69). Those files are also rounded
    between the two passes: `exact` does the same.
    """

    images_only: ClassVar[bool] = True

    scale: int = Field(4, ge=2, le=8)
    """How many times smaller the LR image is, along each side."""
    round_to_8_bits: bool = True
    """Round LR to the 256 levels of an 8-bit file, half up, and clip it to 0..1. Without this, LR
    overshoots 0..1 at sharp edges and has detail that no file has, but it is differentiable.
    """
    exact: bool = False
    """Reproduce published LR files bit for bit: round after each of the two passes. LR then always
    has 8 bits. This is slower, and within 0.01 dB of the default.
    """

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        height, width = images.shape[-2:]
        if height % self.scale or width % self.scale:
            raise self.error(
                f"cannot shrink {width} x {height} images by {self.scale}: "
                f"make both sides of the crop a multiple of {self.scale}",
                "scale",
            )
        size = height // self.scale, width // self.scale
        if self.exact:
            return to_float(resize_exact(to_uint8(images), size)).to(images.dtype)
        shrunk = resize(images, size)
        return round_to_8_bits(shrunk) if self.round_to_8_bits else shrunk
