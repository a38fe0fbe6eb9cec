"""Noise: Gaussian, Poisson, speckle, and noise with correlated channels."""

import torch
from torch import Tensor

from ganlab.degradation.draws import Range, chance, uniform
from ganlab.images.resampling import round_to_8_bits, to_uint8
from ganlab.speed.device import sent

LUMA = (0.299, 0.587, 0.114)  # BT.601


def add_gaussian_noise(
    images: Tensor, sigma: Tensor, grey: Tensor, generator: torch.Generator | None
) -> Tensor:
    """`clip(I + sigma / 255 n, 0, 1)` with n ~ N(0, 1) for every value.

    :param images: [N, C, H, W] in 0..1.
    :param sigma: [N], in grey levels of 255.
    :param grey: bool [N, 1, 1, 1], the images whose channels share one n.
    """
    return (images + _normal(images, grey, generator) * _each(sigma) / 255).clamp(0, 1)


def add_speckle_noise(
    images: Tensor, sigma: Tensor, grey: Tensor, generator: torch.Generator | None
) -> Tensor:
    """`clip(I (1 + sigma / 255 n), 0, 1)`: noise proportional to the image.

    Parameters as in `add_gaussian_noise`.
    """
    return (images * (1 + _normal(images, grey, generator) * _each(sigma) / 255)).clamp(0, 1)


def add_correlated_noise(
    images: Tensor, covariance: Tensor, generator: torch.Generator | None
) -> Tensor:
    """`clip(I + n, 0, 1)`, n normal with this covariance between the channels of a pixel.

    If a covariance is not positive semidefinite, its absolute eigenvalues are taken, as numpy's
    multivariate_normal does.

    :param covariance: symmetric, [N, C, C], on the CPU; its eigenvectors are computed there.
    """
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    root = sent((vectors * values.abs().sqrt()[:, None]).to(images.dtype), images.device)
    n = torch.randn(
        images.shape, generator=generator, device=images.device, dtype=images.dtype
    ).flatten(2)
    # a sum of products, because a matrix product may be computed in TF32
    noise = (root[..., None] * n[:, None]).sum(2)
    return (images + noise.view_as(images)).clamp(0, 1)


def add_poisson_noise(
    images: Tensor, scale: Tensor, grey: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Shot noise as in Real-ESRGAN (arXiv:2107.10833).

        out = clip(I + scale (P / v - J), 0, 1),  P ~ Poisson(v J)

    J is I rounded to 8 bits and v its `num_photons`; so at scale 1 the variance is J / v. For grey
    noise J is the rounded luma, and its noise is added to all channels. The rate of every image is
    counted on the device, so the CPU does not wait for a GPU. No gradient passes through the noise.

    :param images: [N, C, H, W] in 0..1.
    :param scale: [N].
    :param grey: bool [N, 1, 1, 1], the images that get grey noise.
    """
    noise = torch.where(grey, _shot_noise(luma(images), generator), _shot_noise(images, generator))
    return (images + noise * _each(scale)).clamp(0, 1)


def num_photons(images: Tensor) -> Tensor:
    """Real-ESRGAN's Poisson rate of full intensity: 2^ceil(log2(number of 8-bit levels present)).

    :param images: [N, C, H, W] in 0..1; levels are counted over all channels together.
    :returns: [N, 1, 1, 1], 1 to 256.
    """
    levels = to_uint8(images).flatten(1).long()
    present = torch.zeros(len(images), 256, dtype=torch.int64, device=images.device)
    number = present.scatter_(1, levels, 1).sum(1)
    # ceil(log2(n)) is the number of powers of two below n; this needs no rounded logarithm
    powers = 2 ** torch.arange(8, device=images.device)
    exponent = (number[:, None] > powers).sum(1)
    return _each((2**exponent).to(images.dtype))


def random_gaussian_noise(
    images: Tensor, sigma: Range, grey_probability: float, generator: torch.Generator | None
) -> Tensor:
    """Gaussian noise with sigma ~ U(range) grey levels per image, grey with a given probability."""
    sigmas, grey = _drawn(images, sigma, grey_probability, generator)
    return add_gaussian_noise(images, sigmas, grey, generator)


def random_poisson_noise(
    images: Tensor, scale: Range, grey_probability: float, generator: torch.Generator | None
) -> Tensor:
    """Poisson noise with scale ~ U(range) per image, grey with a given probability."""
    scales, grey = _drawn(images, scale, grey_probability, generator)
    return add_poisson_noise(images, scales, grey, generator)


def luma(images: Tensor) -> Tensor:
    """BT.601 luma in 0..1, [N, 1, H, W]; if there are not three channels, their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _drawn(
    images: Tensor, bounds: Range, grey_probability: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    return uniform(bounds, images, generator), chance(grey_probability, images, generator)


def _shot_noise(images: Tensor, generator: torch.Generator | None) -> Tensor:
    images = round_to_8_bits(images)
    rate = num_photons(images)
    return torch.poisson(images * rate, generator=generator) / rate - images


def _normal(images: Tensor, grey: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) noise in the images' shape, the same in all channels where `grey` is true."""

    def draw(like: Tensor) -> Tensor:
        return torch.randn(
            like.shape, generator=generator, device=images.device, dtype=images.dtype
        )

    return torch.where(grey, draw(images[:, :1]), draw(images))


def _each(values: Tensor) -> Tensor:
    """One number per image, shaped to multiply images."""
    return values[:, None, None, None]
