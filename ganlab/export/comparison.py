"""Whether a file makes the pictures of the generator: both are shown real photographs."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ganlab.errors import GanlabError
from ganlab.images.files import read_image
from ganlab.images.resampling import to_float

Network = Callable[[Tensor], Tensor]

PHOTOGRAPHS = (
    ("astronaut.png", (64, 64)),
    ("chelsea.png", (51, 77)),
    ("coffee.png", (90, 33)),
)
"""Of scikit-image, with the height and width of the part that is enlarged."""
LARGEST = 0.1
"""Grey levels, of 255, by which a value in float32 may differ; the same sums in another order."""
LEAST_DB = 50.0
"""PSNR against the picture in float32 that a file in float16 must have, at the least."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two networks on all photographs."""

    levels: float
    """The largest, in grey levels of 255."""
    psnr: float
    """In dB, of the worst photograph; inf where they are equal."""

    def __str__(self) -> str:
        if not self.levels:
            return "nothing"
        return f"at most {self.levels:.2g} of 255 levels, PSNR {self.psnr:.1f} dB"

    def fault(self, half: bool) -> str:
        """What is too much of it; empty when it is within its bound.

        :param half: whether the file computes in float16, or holds its weights so.
        """
        if half:
            within = self.psnr >= LEAST_DB
            return "" if within else f"a file in float16 must reach {LEAST_DB:g} dB"
        within = self.levels <= LARGEST
        return "" if within else f"a file in float32 may differ by {LARGEST:g} levels"


def photographs(channels: int) -> list[Tensor]:
    """Parts of photographs that come with scikit-image, [1, C, h, w] in 0..1.

    :raises GanlabError: when this installation has them not.
    """
    skimage = importlib.util.find_spec("skimage")
    if skimage is None or skimage.origin is None:
        raise GanlabError("scikit-image, which has the photographs, is not installed")
    folder = Path(skimage.origin).parent / "data"
    found = []
    for name, (height, width) in PHOTOGRAPHS:
        pixels = to_float(read_image(folder / name))[[i % 3 for i in range(channels)]]
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        found.append(pixels[None, :, top : top + height, left : left + width].contiguous())
    return found


@torch.no_grad()
def difference(made_by: Network, expected_of: Network, pictures: list[Tensor]) -> Difference:
    """How much the pictures of two networks differ.

    :raises GanlabError: when a picture has another size, or a number that is not finite.
    """
    levels, psnr = 0.0, math.inf
    for picture in pictures:
        made, expected = made_by(picture), expected_of(picture)
        if made.shape != expected.shape:
            raise GanlabError(f"it makes {[*made.shape]} in the place of {[*expected.shape]}")
        apart = (made.double() - expected.double()).abs()
        if not bool(torch.isfinite(apart).all()):
            raise GanlabError("it makes a number that is not finite")
        levels = max(levels, 255 * apart.max().item())
        mean = apart.square().mean().item()
        psnr = min(psnr, -10 * math.log10(mean) if mean else math.inf)
    return Difference(levels, psnr)
