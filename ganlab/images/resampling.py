"""Bicubic resampling as in MATLAB's imresize, and conversion to and from 8 bits."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}


def resize(images: Tensor, size: Size, antialias: bool = True) -> Tensor:
    """Shrink or enlarge by bicubic interpolation, as two products with constant matrices.

        out = R images C^T,  R [h, H] over the rows (first), C [w, W] over the columns

    The kernel is Keys' cubic with a = -0.5 (IEEE TASSP 29(6), 1981), stretched by H / h when
    shrinking with `antialias`; beyond the edge the edge pixel is repeated. This is MATLAB's
    imresize. `F.interpolate(antialias=True)` drops the taps beyond the edge instead: it differs by
    up to 0.03 in the outermost 2 pixels of the smaller image and is equal elsewhere. For the same
    reason a shrunk crop differs at its border from the same crop of the shrunk image.

    The result is differentiable, and neither rounded nor clipped (it overshoots 0..1 at sharp
    edges). It is computed in at least float32, also under autocast. The matrices stay in memory,
    unless `passing_matrices` is active: H h + W w numbers for each pair of sizes. While
    torch.export reads a network, it is a convolution instead, and enlarges by whole numbers only.

    :param images: [N, C, H, W], any float dtype, any device.
    :param size: (h, w), each at least 1; the two sides may have different factors.
    :returns: [N, C, h, w], of the images' dtype.
    :raises ValueError: when the images are not floating point or a side is less than 1.
    """
    if not images.is_floating_point():
        raise ValueError(f"resize takes float images, not {images.dtype}; use resize_exact")
    if torch.compiler.is_exporting():  # a matrix has one size; the graph must take every size
        return _enlarged(images, size)
    # where torch may compute float32 products in TF32, with errors of 0.2 grey levels
    coarse = images.is_cuda and torch.get_float32_matmul_precision() != "highest"
    precision = torch.float64 if coarse or images.dtype == torch.float64 else torch.float32
    rows = _matrix(images.shape[-2], size[0], antialias, precision, images.device)
    columns = _matrix(images.shape[-1], size[1], antialias, precision, images.device)
    with torch.autocast(images.device.type, enabled=False):
        return (rows @ images.to(precision) @ columns.mT).to(images.dtype)


def _enlarged(images: Tensor, size: Size) -> Tensor:
    """`resize` to a multiple of the size, by a convolution for each place within a pixel.

    It takes the numbers of `resize` in another order: they differ by rounding.

    :raises ValueError: for another size.
    """
    height, width = images.shape[-2:]
    scale = int(size[0] // height)
    if size[0] != height * scale or size[1] != width * scale:
        raise ValueError("only an enlargement by a whole number can be exported")
    # what the middle one of five pixels, and two to each side, give to its part of the result
    taps = _taps(5, 5 * scale, True)[2 * scale : 3 * scale]
    taps = taps / taps.sum(1, keepdim=True)
    kernels = (taps[:, None, :, None] * taps[None, :, None, :]).reshape(scale**2, 1, 5, 5)
    channels = images.shape[-3]
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    phases = F.conv2d(padded, kernels.to(images).repeat(channels, 1, 1, 1), groups=channels)
    return F.pixel_shuffle(phases, scale)


def resize_exact(images: Tensor, size: Size) -> Tensor:
    """Shrink or enlarge 8-bit images; the result equals the published LR files in every bit.

    This is the bicubic interpolation of `resize`, but each of the two passes, rows first, is
    rounded half up and clipped to 0..255. The weights are integers over a common denominator, so
    ties are rounded correctly (exact up to sides of 10 000 pixels). The result is within 0.02 dB of
    `resize` rounded once.

    :param images: uint8 [..., H, W].
    :param size: (h, w), each at least 1.
    :returns: uint8 [..., h, w].
    :raises ValueError: when the images are not uint8 or a side is less than 1.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"resize_exact takes uint8 images, not {images.dtype}; use to_uint8")
    if images.device.type == "mps":  # which has no float64
        return resize_exact(images.cpu(), size).to(images.device)
    rows = _matrix(images.shape[-2], size[0], True, None, images.device)
    columns = _matrix(images.shape[-1], size[1], True, None, images.device)
    levels = _round_ratio(rows @ images.to(torch.float64), rows.sum(1)[:, None])
    return _round_ratio(levels @ columns.mT, columns.sum(1)).to(torch.uint8)


@contextmanager
def passing_matrices() -> Iterator[Callable[[int], None]]:
    """Context for images of many sizes: the matrices that are made in it are dropped at its end.

    Matrices made outside stay for good, because a captured CUDA graph reads them by address. So no
    step of training may be captured in this context.

    :yields: a function that drops them earlier, when they take more than this number of bytes.
    """
    lasting = set(_MATRICES)

    def drop(most: int) -> None:
        # a list, since another thread may make matrices meanwhile
        made = {key: matrix for key, matrix in list(_MATRICES.items()) if key not in lasting}
        if sum(matrix.nbytes for matrix in made.values()) > most:
            for key in made:
                _MATRICES.pop(key, None)

    try:
        yield drop
    finally:
        drop(0)


def round_to_8_bits(images: Tensor) -> Tensor:
    """Round images to the values of an 8-bit file: the nearest k / 255, half up, in 0..1.

    The gradient is zero everywhere, so do not use it between a generator and its loss.

    :param images: float, any shape.
    :returns: the same shape and dtype.
    """
    return (images * 255 + 0.5).floor().clamp(0, 255) / 255


def to_uint8(images: Tensor) -> Tensor:
    """8-bit images from floats in 0..1: rounded half up, clipped."""
    return images.mul(255).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def to_uint16(images: Tensor) -> Tensor:
    """16-bit images from floats in 0..1: rounded half up, clipped."""
    levels = (images.double() * WHITE[torch.uint16] + 0.5).floor()
    return levels.clamp(0, WHITE[torch.uint16]).to(torch.uint16)


def to_float(images: Tensor) -> Tensor:
    """Float32 images in 0..1 from 8- or 16-bit images, with the same bits on every device."""
    levels = images.to(torch.float32, copy=True)
    # CUDA divides by a tensor, but for a plain number it multiplies by the reciprocal
    return levels.div_(torch.full((), WHITE.get(images.dtype, 255.0), device=images.device))


def _round_ratio(sums: Tensor, totals: Tensor) -> Tensor:
    """sums / totals, integers in float64, rounded half up and clipped to 0..255."""
    return sums.add_(totals / 2).div_(totals).floor_().clamp_(0, 255)


Key = tuple[int, int, bool, torch.dtype | None, torch.device]

# A plain dict: torch.compile ignores functools.cache and would make the matrix again at each call.
_MATRICES: dict[Key, Tensor] = {}


def _matrix(
    old: int, new: int, antialias: bool, dtype: torch.dtype | None, device: torch.device
) -> Tensor:
    """The matrix [new, old] that resamples one axis; each row sums to 1.

    :param dtype: None gives the integers of `_taps` instead, in float64.
    """
    key = (old, new, antialias, dtype, device)
    matrix = _MATRICES.get(key)
    if matrix is None:
        matrix = _MATRICES[key] = _new_matrix(*key)
    return matrix


@torch.inference_mode(False)  # an inference tensor could not take part in a backward pass
def _new_matrix(
    old: int, new: int, antialias: bool, dtype: torch.dtype | None, device: torch.device
) -> Tensor:
    taps = _taps(old, new, antialias)
    if dtype:
        taps = (taps / taps.sum(1, keepdim=True)).to(dtype)
    return taps.to(device)  # converted before, since MPS has no float64


def _taps(old: int, new: int, antialias: bool) -> Tensor:
    """The matrix of `resize` before division by the sums of its rows: integers, in float64.

    Output pixel i lies at u = (i + 1/2) old / new - 1/2, and input pixel j has the weight
    cubic((u - j) min(1, new / old)). This is a cubic polynomial of a fraction with a known
    denominator, so it is an integer over a common denominator.
    """
    if min(old, new) < 1:
        raise ValueError(f"cannot resize a side of {old} pixels to {new}: both must be at least 1")
    common = math.gcd(old, new)
    p, q = old // common, new // common
    beyond = 2 * math.ceil(max(1, p / q)) + 1
    i = torch.arange(new, dtype=torch.int64, device="cpu")[:, None]
    j = torch.arange(-beyond, old + beyond, dtype=torch.int64, device="cpu")
    taps = _cubic((2 * i + 1) * p - (2 * j + 1) * q, 2 * (max(p, q) if antialias else q))
    left, taps, right = taps.split([beyond, old, beyond], dim=1)
    taps[:, 0] += left.sum(1)
    taps[:, -1] += right.sum(1)
    return taps.to(torch.float64)


def _cubic(numerator: Tensor, d: int) -> Tensor:
    """Keys' cubic with a = -0.5 at |numerator / d|, times 2 d^3, which is an integer."""
    t = numerator.abs().clamp(max=2 * d)  # it is zero from 2 on
    inner = 3 * t**3 - 5 * d * t**2 + 2 * d**3
    outer = -(t**3) + 5 * d * t**2 - 8 * d**2 * t + 4 * d**3
    return torch.where(t < d, inner, outer)
