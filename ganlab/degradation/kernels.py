"""Blur kernels, one per image: [N, side, side], each with sum 1."""

import math

import torch
from torch import Tensor


def gaussian_kernels(
    side: int,
    sigma_x: Tensor,
    sigma_y: Tensor | None = None,
    angle: Tensor | None = None,
    support: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """Gaussian kernels, isotropic or stretched along a direction.

        k(d) ~ exp(-q / 2),  q = d^T S^-1 d,  S = U diag(sigma_x^2, sigma_y^2) U^T

    with d = (column, row) counted from the middle and U the rotation by `angle`.

    :param side: of the kernels, odd.
    :param sigma_x: [N], in pixels; smaller values count as 0.001, which blurs nothing.
    :param sigma_y: [N], at right angles to it; default: `sigma_x`, so the kernel is isotropic.
    :param angle: [N], of the axis of `sigma_x`, in radians from the columns towards the rows.
    :param support: [N], odd sides outside of which each kernel is 0; default: `side`.
    :param offset: of the centre from the middle, in pixels along both axes.
    :returns: [N, side, side].
    """
    q = _quadratic_form(side, sigma_x, sigma_y, angle, offset)
    return _normalised(torch.exp(-q / 2), support)


def generalized_gaussian_kernels(
    side: int,
    beta: Tensor,
    sigma_x: Tensor,
    sigma_y: Tensor | None = None,
    angle: Tensor | None = None,
    support: Tensor | None = None,
) -> Tensor:
    """Generalized Gaussian kernels: `k(d) ~ exp(-q^beta / 2)`, q as in `gaussian_kernels`.

    beta = 1 is the Gaussian. Below 1 the peak is sharper and the tail longer; above 1 it is flatter
    (Pascal et al. 2013, arXiv:1302.6498; in Real-ESRGAN, arXiv:2107.10833).

    :param beta: [N], above 0.
    """
    q = _quadratic_form(side, sigma_x, sigma_y, angle)
    return _normalised(torch.exp(-(q ** beta[:, None, None]) / 2), support)


def plateau_kernels(
    side: int,
    beta: Tensor,
    sigma_x: Tensor,
    sigma_y: Tensor | None = None,
    angle: Tensor | None = None,
    support: Tensor | None = None,
) -> Tensor:
    """Plateau-shaped kernels: `k(d) ~ 1 / (1 + q^beta)`, q as in `gaussian_kernels`.

    Flat on top, with a tail that falls as a power (Real-ESRGAN, arXiv:2107.10833).

    :param beta: [N], above 0; the larger it is, the steeper is the edge of the plateau.
    """
    q = _quadratic_form(side, sigma_x, sigma_y, angle)
    return _normalised(1 / (1 + q ** beta[:, None, None]), support)


def sinc_kernels(side: int, cutoff: Tensor, support: Tensor | None = None) -> Tensor:
    """Ideal low-pass kernels cut to a window; they cause ringing, as sharpening and JPEG do.

        k(d) ~ c J1(c |d|) / (2 pi |d|),  k(0) ~ c^2 / (4 pi)

    J1 is the Bessel function of the first kind (Real-ESRGAN, arXiv:2107.10833). Values may
    be negative.

    :param side: of the kernels, odd.
    :param cutoff: [N], c, in radians per pixel; pi is the highest frequency along an axis.
    :param support: [N], odd sides outside of which each kernel is 0; default: `side`.
    :returns: [N, side, side].
    """
    x, y = _grid(side, cutoff)
    distance = torch.hypot(x, y)
    c = cutoff[:, None, None]
    # the middle is replaced afterwards; its distance only must not be 0
    away = distance.clamp(min=0.5)
    values = c * torch.special.bessel_j1(c * away) / (2 * math.pi * away)
    return _normalised(torch.where(distance > 0, values, c**2 / (4 * math.pi)), support)


def identity_kernels(side: int, like: Tensor) -> Tensor:
    """Kernels that change nothing, [N, side, side], for as many images as `like` has."""
    x, y = _grid(side, like)
    return ((x == 0) & (y == 0)).to(like.dtype).expand(len(like), side, side)


def _quadratic_form(
    side: int,
    sigma_x: Tensor,
    sigma_y: Tensor | None = None,
    angle: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """q = d^T S^-1 d at every pixel, [N, side, side]: a squared distance in units of sigma."""
    x, y = (axis - offset for axis in _grid(side, sigma_x))
    if angle is not None:
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        x, y = cos * x + sin * y, cos * y - sin * x
    sigma_y = sigma_x if sigma_y is None else sigma_y
    sigma_x, sigma_y = (s.clamp(min=1e-3)[:, None, None] for s in (sigma_x, sigma_y))
    return (x / sigma_x) ** 2 + (y / sigma_y) ** 2


def _grid(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [1, side] and rows [side, 1], counted from the middle."""
    if side % 2 == 0 or side < 1:
        raise ValueError(f"a kernel of side {side} has no middle: the side must be odd")
    axis = torch.arange(side, dtype=like.dtype, device=like.device) - side // 2
    return axis[None, :], axis[:, None]


def _normalised(values: Tensor, support: Tensor | None) -> Tensor:
    """Kernels cut to their supports, with sum 1."""
    if support is not None:
        x, y = _grid(values.shape[-1], values)
        inside = torch.maximum(x.abs(), y.abs()) <= (support // 2)[:, None, None]
        values = torch.where(inside, values, 0)
    return values / values.sum((1, 2), keepdim=True)
