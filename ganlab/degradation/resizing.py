"""Plain resizing to any size, for degradations, and the size that results from a scale."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.degradation.draws import Range, host_choice, host_uniform

Size = tuple[int, int]
Mode = Literal["area", "bilinear", "bicubic"]

MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
"""The modes from which the published pipelines choose, with equal probability."""


def resample(images: Tensor, size: Size, mode: Mode) -> Tensor:
    """Resize without antialiasing: the aliases are part of the degradation.

    `area` is the mean of the pixels that a new pixel touches. `bilinear` and `bicubic` (Keys' cubic
    with a = -0.75) read 2 or 4 pixels per axis, however small the result, as OpenCV and the
    published pipelines do. To shrink without aliases use `ganlab.resize`. Pixel centres follow the
    ratio of the sizes, so that the corners of the images coincide.

    :param images: [N, C, H, W], float.
    :param size: (h, w), each at least 1.
    :returns: [N, C, h, w]; `bicubic` overshoots 0..1 at edges.
    """
    if min(size) < 1:
        raise ValueError(f"cannot resize to {size[1]} x {size[0]}: must be at least 1 x 1")
    if mode == "area":
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode=mode, align_corners=False)


def random_mode(modes: Sequence[Mode], generator: torch.Generator | None) -> Mode:
    """One of several modes for a whole batch, drawn on the CPU."""
    return modes[host_choice([1 / len(modes)] * len(modes), generator)]


def random_scale(
    probabilities: Sequence[float], bounds: Range, generator: torch.Generator | None
) -> float:
    """Real-ESRGAN's random scale for a whole batch, drawn on the CPU (arXiv:2107.10833).

    :param probabilities: of enlarging, scale ~ U(1, bounds[1]); of shrinking, U(bounds[0], 1); and
        of keeping the size, scale 1.
    """
    up, down = (1.0, bounds[1]), (bounds[0], 1.0)
    return host_uniform((up, down, (1.0, 1.0))[host_choice(probabilities, generator)], generator)


def scaled_size(images: Tensor, scale: float) -> Size:
    """The size of the images times a scale, rounded down, at least 1 x 1."""
    height, width = images.shape[-2:]
    return max(1, int(height * scale)), max(1, int(width * scale))


def shrunk_size(
    images: Tensor, scale: int, error: Callable[[str, str], Exception], option: str = "scale"
) -> Size:
    """The size of the images divided by a whole scale.

    :param error: a plugin's `self.error`, raised when the scale does not divide both sides.
    :param option: the plugin's option that holds the scale.
    """
    height, width = images.shape[-2:]
    if height % scale or width % scale:
        raise error(
            f"cannot shrink {width} x {height} images by {scale}: "
            f"make both sides of the crop a multiple of {scale}",
            option,
        )
    return height // scale, width // scale
