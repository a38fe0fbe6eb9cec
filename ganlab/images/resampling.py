"""Bicubic resampling as MATLAB's imresize does it, and the ways to and from 8 bit."""

import math
from functools import cache

import torch
from torch import Tensor

Size = tuple[int, int]


def resize(images: Tensor, size: Size, antialias: bool = True) -> Tensor:
    """Shrink or enlarge by bicubic interpolation, as two products with constant matrices.

        out = R images C^T,  R [h, H] over the rows (first), C [w, W] over the columns

    The kernel is Keys' cubic with a = -0.5 (IEEE TASSP 29(6), 1981), stretched by H / h when
    shrinking with `antialias`; indices beyond the edge take the edge pixel. That is MATLAB's
    imresize, not `F.interpolate(antialias=True)`, which drops the taps beyond the edge: up to 0.03
    apart in the outermost 2 pixels of the smaller image, equal elsewhere. For the same reason a
    crop shrunk differs at its border from the same crop of the shrunk image.

    Differentiable, neither rounded nor clipped (it overshoots 0..1 at sharp edges). Computed in
    at least float32, also under autocast. The matrices are kept: H h + W w numbers a size.

    :param images: [N, C, H, W], any float dtype, any device.
    :param size: (h, w), each at least 1; the two sides may have different factors.
    :returns: [N, C, h, w], of the images' dtype.
    :raises ValueError: when the images are not floating point or a side is less than 1.
    """
    if not images.is_floating_point():
        raise ValueError(f"resize wants float images, not {images.dtype}: see resize_exact")
    # where TF32 may take a product of float32 matrices: errors of 0.2 grey levels
    coarse = images.is_cuda and torch.get_float32_matmul_precision() != "highest"
    precision = torch.float64 if coarse or images.dtype == torch.float64 else torch.float32
    rows = _weights(images.shape[-2], size[0], antialias, precision, images.device)
    columns = _weights(images.shape[-1], size[1], antialias, precision, images.device)
    with torch.autocast(images.device.type, enabled=False):
        return (rows @ images.to(precision) @ columns.mT).to(images.dtype)


def resize_exact(images: Tensor, size: Size) -> Tensor:
    """Shrink or enlarge 8-bit images as the published LR files were made, bit for bit.

    The bicubic of `resize`, but the result of each of its two passes, rows first, is rounded half
    up and clipped to 0..255. The weights are integers over a common denominator, so ties round as
    they should (exact up to sides of 10 000 pixels). Within 0.02 dB of `resize` rounded once.

    :param images: uint8 [..., H, W].
    :param size: (h, w), each at least 1.
    :returns: uint8 [..., h, w].
    :raises ValueError: when the images are not uint8 or a side is less than 1.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"resize_exact wants uint8 images, not {images.dtype}: see to_uint8")
    if images.device.type == "mps":  # which has no float64
        return resize_exact(images.cpu(), size).to(images.device)
    rows = _taps(images.shape[-2], size[0], True, images.device)
    columns = _taps(images.shape[-1], size[1], True, images.device)
    levels = _round_ratio(rows @ images.to(torch.float64), rows.sum(1)[:, None])
    return _round_ratio(levels @ columns.mT, columns.sum(1)).to(torch.uint8)


def round_to_8_bits(images: Tensor) -> Tensor:
    """Images with the values an 8-bit file can hold: the nearest k / 255, half up, in 0..1.

    The gradient is zero everywhere: not for use between a generator and its loss.

    :param images: float, any shape.
    :returns: the same shape and dtype.
    """
    return _grey_levels(images) / 255


def to_uint8(images: Tensor) -> Tensor:
    """8-bit images from floats in 0..1: rounded half up, clipped."""
    return _grey_levels(images).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Float32 images in 0..1 from 8-bit ones, to the last bit alike on every device."""
    levels = images.to(torch.float32, copy=True)
    # by a number CUDA multiplies with its reciprocal, by a tensor it divides
    return levels.div_(torch.full((), 255.0, device=images.device))


def _grey_levels(images: Tensor) -> Tensor:
    return (images * 255 + 0.5).floor().clamp(0, 255)


def _round_ratio(sums: Tensor, totals: Tensor) -> Tensor:
    """sums / totals, integers in float64, rounded half up and clipped to 0..255."""
    return sums.add_(totals / 2).div_(totals).floor_().clamp_(0, 255)


def _weights(
    old: int, new: int, antialias: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix [new, old] that resamples one axis; each row sums to 1."""
    key = (old, new, antialias, dtype, device)
    if key not in _MATRICES:
        _MATRICES[key] = _new_weights(*key)
    return _MATRICES[key]


# for good: a captured CUDA graph reads a matrix by its address; a plain dict, since torch.compile
# looks through functools.cache and would make the matrix anew at each call
_MATRICES: dict[tuple[int, int, bool, torch.dtype, torch.device], Tensor] = {}


@torch.inference_mode(False)  # an inference tensor could not take part in a backward pass
def _new_weights(
    old: int, new: int, antialias: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    taps = _taps(old, new, antialias, torch.device("cpu"))
    return (taps / taps.sum(1, keepdim=True)).to(dtype).to(device)  # MPS has no float64


@cache
@torch.inference_mode(False)
def _taps(old: int, new: int, antialias: bool, device: torch.device) -> Tensor:
    """The same matrix before division by the sums of its rows: integers, in float64.

    Output pixel i lies at u = (i + 1/2) old / new - 1/2 and weighs the input pixel j by
    cubic((u - j) min(1, new / old)): a cubic polynomial of a fraction whose denominator is known,
    so an integer over a common denominator.
    """
    if min(old, new) < 1:
        raise ValueError(f"cannot resize a side of {old} pixels to {new}: must be at least 1")
    common = math.gcd(old, new)
    p, q = old // common, new // common
    beyond = 2 * math.ceil(max(1, p / q)) + 1
    i = torch.arange(new, dtype=torch.int64, device="cpu")[:, None]
    j = torch.arange(-beyond, old + beyond, dtype=torch.int64, device="cpu")
    taps = _cubic((2 * i + 1) * p - (2 * j + 1) * q, 2 * (max(p, q) if antialias else q))
    left, taps, right = taps.split([beyond, old, beyond], dim=1)
    taps[:, 0] += left.sum(1)
    taps[:, -1] += right.sum(1)
    return taps.to(device, torch.float64)


def _cubic(numerator: Tensor, d: int) -> Tensor:
    """Keys' cubic, a = -0.5, of |numerator / d|, times 2 d^3: an integer."""
    t = numerator.abs().clamp(max=2 * d)  # it is zero from 2 on
    inner = 3 * t**3 - 5 * d * t**2 + 2 * d**3
    outer = -(t**3) + 5 * d * t**2 - 8 * d**2 * t + 4 * d**3
    return torch.where(t < d, inner, outer)
