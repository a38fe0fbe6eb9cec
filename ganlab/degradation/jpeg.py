"""JPEG compression as tensor operations, with one quality per image of a batch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Tables K.1 and K.2 of the standard (ITU-T T.81), row by row
_LUMINANCE = """
    16 11 10 16 24 40 51 61      12 12 14 19 26 58 60 55      14 13 16 24 40 57 69 56
    14 17 22 29 51 87 80 62      18 22 37 56 68 109 103 77    24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
    17 18 24 47 99 99 99 99      18 21 26 66 99 99 99 99      24 26 56 99 99 99 99 99
    47 66 99 99 99 99 99 99      99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99
    99 99 99 99 99 99 99 99      99 99 99 99 99 99 99 99
"""

# Decides ties despite the error of float sums; whole pixels and steps make ties common
_MARGIN = 1e-4

Rounding = Callable[[Tensor], Tensor]


def jpeg(images: Tensor, quality: Tensor, differentiable: bool = False) -> Tensor:
    """Images compressed and decompressed (baseline JPEG, ITU-T T.81, JFIF colours, 4:2:0 chroma).

    Follows libjpeg in every step that loses information: 8-bit pixels; Y'CbCr rounded to 8 bits;
    chroma averaged over 2 x 2 pixels; the DCT of 8 x 8 blocks, divided by the tables K.1 and K.2
    scaled to the quality, and rounded; edge pixels repeated beyond the edges; chroma enlarged by
    the triangle filter. Entropy coding is lossless and left out.

    `differentiable` rounds only the coefficients, and with
    `round(x) + (x - round(x))^3` (Shin and Song 2017, JPEG-resistant Adversarial Images), whose
    derivative is that of the cube; the result is still clipped to 0..1.

    :param images: [N, 1 or 3, H, W] in 0..1, any size.
    :param quality: [N], 1 to 100; need not be whole numbers.
    :returns: [N, C, H, W] in 0..1; 8-bit values unless `differentiable`.
    :raises ValueError: for another number of channels.
    """
    channels, height, width = images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"JPEG images have 1 or 3 channels, not {channels}")
    # float64 on CUDA, because products in float32 may be computed in TF32
    dtype = torch.float64 if images.is_cuda else images.dtype
    to_whole: Rounding = (lambda x: x) if differentiable else _half_up
    levels = to_whole(images.to(dtype).clamp(0, 1) * 255)
    scale = _table_scale(quality.to(dtype))

    def coded(plane: Tensor, table: str) -> Tensor:
        return _through_blocks(plane, _table(table, scale), differentiable)

    if channels == 1:
        out = coded(levels, _LUMINANCE)
    else:
        luma, chroma = _to_ycbcr(levels, to_whole)
        luma = coded(luma, _LUMINANCE)
        chroma = coded(_halved(chroma, differentiable), _CHROMINANCE)
        small = chroma[..., : math.ceil(height / 2), : math.ceil(width / 2)]
        chroma = _doubled(small, differentiable)[..., :height, :width]
        out = _to_rgb(luma[..., :height, :width], chroma, to_whole)
    return out[..., :height, :width].clamp(0, 255).div(255).to(images.dtype)


def _half_up(x: Tensor) -> Tensor:
    return (x + (0.5 + _MARGIN)).floor()


def _cubic_round(x: Tensor) -> Tensor:
    whole = x.detach().round()
    return whole + (x - whole) ** 3


def _half_away(x: Tensor) -> Tensor:
    """Round coefficients to the nearest whole number, halves away from 0."""
    return _half_up(x.abs()) * x.sign()


def _to_ycbcr(rgb: Tensor, to_whole: Rounding) -> tuple[Tensor, Tensor]:
    """Luma [N, 1, H, W] and chroma [N, 2, H, W], all in 0..255."""
    red, green, blue = rgb.split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.cat([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    # libjpeg's chroma is rounded half down
    return to_whole(luma), -to_whole(-(chroma + 128))


def _to_rgb(luma: Tensor, chroma: Tensor, to_whole: Rounding) -> Tensor:
    cb, cr = (chroma - 128).split(1, dim=1)
    red = luma + to_whole(1.402 * cr)
    green = luma + to_whole(-(0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587)
    return torch.cat([red, green, luma + to_whole(1.772 * cb)], 1)


def _halved(chroma: Tensor, differentiable: bool) -> Tensor:
    """Means of 2 x 2 pixels; along a row, ties are rounded down and up by turns."""
    height, width = chroma.shape[-2:]
    # pad to whole blocks at the right, because the smaller plane is not padded there afterwards
    chroma = F.pad(chroma, (0, -width % 16, 0, height % 2), mode="replicate")
    means = F.avg_pool2d(chroma, 2)
    if differentiable:
        return means
    columns = torch.arange(means.shape[-1], device=means.device) % 2
    return (means + (1 + columns) / 4).floor()


def _doubled(chroma: Tensor, differentiable: bool) -> Tensor:
    """Chroma enlarged by the triangle filter, with weights 9, 3, 3, 1 of 16."""
    large = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    if differentiable:
        return large
    columns = torch.arange(large.shape[-1], device=large.device) % 2
    return (large + (8 - columns) / 16).floor()


def _through_blocks(plane: Tensor, table: Tensor, differentiable: bool) -> Tensor:
    """Planes [N, C, H, W] in 0..255 after the DCT of their blocks was quantised.

    :param table: [N, 8, 8].
    :returns: [N, C, H', W'], H' and W' rounded up to multiples of 8.
    """
    height, width = plane.shape[-2:]
    plane = F.pad(plane, (0, -width % 8, 0, -height % 8), mode="replicate")
    n, c, height, width = plane.shape
    blocks = plane.view(n, c, height // 8, 8, width // 8, 8).transpose(3, 4) - 128
    cosines = _cosines(plane)
    steps = table[:, None, None, None]
    with torch.autocast(plane.device.type, enabled=False):
        coefficients = cosines @ blocks @ cosines.mT / steps
        kept = _cubic_round(coefficients) if differentiable else _half_away(coefficients)
        blocks = cosines.mT @ (kept * steps) @ cosines
    if not differentiable:
        blocks = _half_up(blocks)
    plane = (blocks + 128).transpose(3, 4).reshape(n, c, height, width)
    return plane.clamp(0, 255)


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal DCT-II of 8 values, [frequency, position]."""
    k = torch.arange(8, dtype=like.dtype, device=like.device)
    waves = torch.cos(torch.outer(k, 2 * k + 1) * (math.pi / 16)) / 2
    return torch.where(k[:, None] == 0, 8**-0.5, waves)


def _table_scale(quality: Tensor) -> Tensor:
    """The percentage by which libjpeg scales the tables: 100 at quality 50, 0 at 100."""
    quality = quality.clamp(1, 100)
    return torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()


def _table(text: str, scale: Tensor) -> Tensor:
    """The quantisation steps of each image, [N, 8, 8], whole numbers from 1 to 255."""
    key = (text, scale.dtype, scale.device)
    if key not in _TABLES:
        _TABLES[key] = _base_table(*key)
    return ((_TABLES[key] * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)


# Kept for ever, as the matrices of `resize` are: a captured CUDA graph reads a table by its address
_TABLES: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}


@torch.inference_mode(False)  # an inference tensor could not take part in a backward pass
def _base_table(text: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    steps = [float(step) for step in text.split()]
    return torch.tensor(steps, dtype=dtype, device="cpu").view(8, 8).to(device)
