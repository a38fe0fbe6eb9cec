"""Random blur kernels, one per image: the mixtures of Real-ESRGAN (arXiv:2107.10833)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ganlab.degradation.draws import Range, chance, choice, uniform, uniform_whole
from ganlab.degradation.kernels import (
    gaussian_kernels,
    generalized_gaussian_kernels,
    plateau_kernels,
    sinc_kernels,
)

KINDS = (
    "iso",
    "aniso",
    "generalized_iso",
    "generalized_aniso",
    "plateau_iso",
    "plateau_aniso",
)
"""The kinds of `random_gaussian_kernels`, in the order of their probabilities."""

Sizes = tuple[int, int]


def random_gaussian_kernels(
    images: Tensor,
    probabilities: Sequence[float],
    sigma: Range,
    generalized_beta: Range,
    plateau_beta: Range,
    sizes: Sizes,
    generator: torch.Generator | None,
) -> Tensor:
    """Kernels of a random kind, width, direction and size for each image.

    sigma_x, sigma_y ~ U(sigma), angle ~ U(-pi, pi). beta is below 1 and above 1 with equal
    probability, uniform in each part (so if the range begins at 1, beta is 1 half of the time).
    Sizes are uniform over the odd numbers of the range.

    :param probabilities: of the `KINDS`, in their order.
    :param sizes: smallest and largest side, odd; kernels are padded to the largest with zeros.
    :returns: [N, sizes[1], sizes[1]], each with sum 1.
    """
    kind = choice(probabilities, images, generator)
    sigma_x, sigma_y = uniform(sigma, images, generator), uniform(sigma, images, generator)
    angle = uniform((-math.pi, math.pi), images, generator)
    betas = [_beta(bounds, images, generator) for bounds in (generalized_beta, plateau_beta)]
    support = random_sizes(images, sizes, generator)

    sigma_y = torch.where(kind % 2 == 0, sigma_x, sigma_y)
    form = (sigma_x, sigma_y, angle, support)
    # all three shapes for all images: 21 x 21 numbers each, so no branch depends on a value
    family = (kind // 2)[:, None, None]
    kernels = gaussian_kernels(sizes[1], *form)
    kernels = torch.where(
        family == 1, generalized_gaussian_kernels(sizes[1], betas[0], *form), kernels
    )
    return torch.where(family == 2, plateau_kernels(sizes[1], betas[1], *form), kernels)


def random_sinc_kernels(
    images: Tensor,
    cutoff: Range,
    sizes: Sizes,
    generator: torch.Generator | None,
    large_cutoff: Range | None = None,
) -> Tensor:
    """Sinc kernels of a random cut-off and size for each image.

    :param cutoff: range of the cut-off in radians per pixel, drawn uniformly.
    :param large_cutoff: range for kernels of side 13 and more; default: `cutoff`.
    :returns: [N, sizes[1], sizes[1]], each with sum 1.
    """
    support = random_sizes(images, sizes, generator)
    u = uniform((0.0, 1.0), images, generator)
    (low, high), (large_low, large_high) = cutoff, large_cutoff or cutoff
    small, large = low + (high - low) * u, large_low + (large_high - large_low) * u
    return sinc_kernels(sizes[1], torch.where(support < 13, small, large), support)


def random_kernels(
    images: Tensor,
    probabilities: Sequence[float],
    sinc_probability: float,
    sigma: Range,
    generalized_beta: Range,
    plateau_beta: Range,
    sizes: Sizes,
    generator: torch.Generator | None,
) -> Tensor:
    """The blur of a stage of Real-ESRGAN: a Gaussian-like kernel or, sometimes, a sinc.

    The sinc's cut-off is U(pi/3, pi); for kernels of side 13 and more it is U(pi/5, pi).

    :returns: [N, sizes[1], sizes[1]], each with sum 1.
    """
    gaussians = random_gaussian_kernels(
        images, probabilities, sigma, generalized_beta, plateau_beta, sizes, generator
    )
    sincs = random_sinc_kernels(
        images, (math.pi / 3, math.pi), sizes, generator, (math.pi / 5, math.pi)
    )
    return torch.where(chance(sinc_probability, images, generator)[:, 0], sincs, gaussians)


def random_sizes(images: Tensor, sizes: Sizes, generator: torch.Generator | None) -> Tensor:
    """An odd side for each image, uniform from the smallest to the largest: [N]."""
    smallest, largest = sizes
    if smallest % 2 == 0 or largest % 2 == 0:
        raise ValueError(f"sides of kernels must be odd, not {smallest} to {largest}")
    return 2 * uniform_whole((smallest // 2, largest // 2), images, generator) + 1


def _beta(bounds: Range, images: Tensor, generator: torch.Generator | None) -> Tensor:
    low, high = bounds
    below = chance(0.5, images, generator)[:, 0, 0, 0]
    u = uniform((0.0, 1.0), images, generator)
    return torch.where(below, low + (1 - low) * u, 1 + (high - 1) * u)
