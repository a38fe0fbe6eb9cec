"""The complete degradation of BSRGAN: blurs, resizing, noise and JPEG in a random order."""

import math
from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import Plugin, degradation, hookimpl, resize

Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, Share, Share], AfterValidator(degradation.summing_to_one)]
Level = Annotated[int, Field(ge=0, le=255)]
Quality = Annotated[int, Field(ge=1, le=100)]
Size = tuple[int, int]

_SIZES = (7, 25)  # smallest and largest side of the kernels


class BSRGANDegradation(Plugin):
    """The shuffled degradation of BSRGAN (Zhang et al. 2021, arXiv:2103.14006).

    These come in a random order: two blurs, shrinking by a random factor, shrinking to LR (always
    after the other shrinking), Gaussian noise, and JPEG with a probability. JPEG follows once more
    at the end. At x4, HR is sometimes halved first, and the rest is made for x2. s is the scale
    that remains:

        blur         half anisotropic, variances U(0, 4 + s), angle U(0, pi);
                     half isotropic, sigma U(0, 2 + 0.2 s); sides 7 to 25
        first shrink by U(1, 2 s); or a Gaussian of side 25, sigma U(0.1, 0.6 s), and then every
                     s-th pixel
        noise        colour, grey, or correlated between the channels
        JPEG         quality a whole number

    Kernels, noise and quality are drawn for each image. Order and resizing are drawn once per
    batch, on the CPU, because the images of a tensor have one size. So the plugin cannot be
    captured in a graph; `pair_pool` mixes the images of several batches. Use no other degradation
    with it. LR has 8 bits.

    Deviations from the published code: there is no camera pipeline (there it is an option, with a
    model of its own); the Gaussian of the first shrink is evaluated at its shifted place, not
    interpolated; `area` gives equal weights to all pixels that it touches.
    """

    images_only: ClassVar[bool] = True

    scale: int = Field(4, ge=2, le=8)
    """How many times smaller the LR image is, along each side."""
    halving_probability: Share = 0.25
    """Share of the batches that are halved first; at scale 4 only."""
    anisotropic_probability: Share = 0.5
    """Share of the blurs that have a direction."""
    free_resize_probability: Share = 0.75
    """Share of the batches whose first shrinking is by a random factor, without the Gaussian."""
    noise_sigma: Annotated[tuple[Level, Level], AfterValidator(degradation.rising)] = (2, 25)
    """Range of the standard deviation of colour and grey noise, in whole grey levels of 255."""
    noise_probabilities: Shares = (0.4, 0.4, 0.2)
    """Probabilities of colour, grey and correlated noise; they sum to 1."""
    jpeg_probability: Share = 0.9
    """Share of the images that get a JPEG compression before the last one."""
    jpeg_quality: Annotated[tuple[Quality, Quality], AfterValidator(degradation.rising)] = (30, 95)
    """Range of the JPEG quality, in whole numbers."""

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        size = degradation.shrunk_size(images, self.scale, self.error)
        scale = self.scale
        if scale == 4 and self._happens(self.halving_probability):
            images, scale = self._halved(images), 2
        for operation in order(self.host_rng):
            match operation:
                case "blur":
                    images = self._blurred(images, scale)
                case "shrink freely":
                    images = self._shrunk_freely(images, scale)
                case "shrink to LR":
                    images = self._resized(images, size)
                case "noise":
                    images = self._noisy(images)
                case "jpeg":
                    happens = degradation.chance(self.jpeg_probability, images, self.rng)
                    images = torch.where(happens, self._compressed(images), images)
        return self._compressed(images)

    def _happens(self, probability: float) -> bool:
        return degradation.host_choice((probability, 1 - probability), self.host_rng) == 0

    def _halved(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size = height // 2, width // 2
        if self._happens(0.5):
            return self._resized(images, size)
        return resize(images, size).clamp(0, 1)

    def _resized(self, images: Tensor, size: Size) -> Tensor:
        mode = degradation.random_mode(degradation.MODES, self.host_rng)
        return degradation.resample(images, size, mode).clamp(0, 1)

    def _blurred(self, images: Tensor, scale: int) -> Tensor:
        rng = self.rng
        variances = [degradation.uniform((0.0, 4.0 + scale), images, rng) for _ in range(2)]
        angle = degradation.uniform((0.0, math.pi), images, rng)
        width = degradation.uniform((0.0, 2.0 + 0.2 * scale), images, rng)
        aniso = degradation.chance(self.anisotropic_probability, images, rng)[:, 0, 0, 0]
        sigma_x, sigma_y = (torch.where(aniso, v.sqrt(), width) for v in variances)
        support = degradation.random_sizes(images, _SIZES, rng)
        kernels = degradation.gaussian_kernels(_SIZES[1], sigma_x, sigma_y, angle, support)
        return degradation.filter_images(images, kernels)

    def _shrunk_freely(self, images: Tensor, scale: int) -> Tensor:
        if self._happens(self.free_resize_probability):
            factor = degradation.host_uniform((1.0, 2.0 * scale), self.host_rng)
            return self._resized(images, degradation.scaled_size(images, 1 / factor))
        sigma = degradation.uniform((0.1, 0.6 * scale), images, self.rng)
        # each pixel that is kept is the upper left one of the block that it represents
        kernels = degradation.gaussian_kernels(_SIZES[1], sigma, offset=(scale - 1) / 2)
        return degradation.filter_images(images, kernels)[..., ::scale, ::scale].clamp(0, 1)

    def _noisy(self, images: Tensor) -> Tensor:
        kind = degradation.choice(self.noise_probabilities, images, self.rng)[:, None, None, None]
        sigma = degradation.uniform_whole(self.noise_sigma, images, self.rng)
        plain = degradation.add_gaussian_noise(images, sigma, kind == 1, self.rng)
        covariance = random_covariance(images, self.noise_sigma[1] / 255, self.host_rng)
        correlated = degradation.add_correlated_noise(images, covariance, self.rng)
        return torch.where(kind == 2, correlated, plain)

    def _compressed(self, images: Tensor) -> Tensor:
        quality = degradation.uniform_whole(self.jpeg_quality, images, self.rng)
        return degradation.jpeg(images, quality)


def order(generator: torch.Generator | None) -> list[str]:
    """The operations in a random order; shrinking to LR comes after the free shrinking."""
    names = ["blur", "blur", "shrink freely", "shrink to LR", "noise", "jpeg"]
    places = degradation.host_order(len(names), generator)
    shuffled = [names[place] for place in places]
    first, second = sorted((shuffled.index("shrink freely"), shuffled.index("shrink to LR")))
    shuffled[first], shuffled[second] = "shrink freely", "shrink to LR"
    return shuffled


def random_covariance(images: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    """Random covariances of the channels, [N, C, C]: `level^2 |U^T D U|`, each element absolute.

    D is diagonal with entries drawn from U(0, 1). The columns of U are the left singular vectors
    of a matrix with entries drawn from U(0, 1).
    """
    n, c = images.shape[:2]
    numbers = torch.rand(n, c, c + 1, generator=generator, dtype=torch.float64, device="cpu")
    matrix, diagonal = numbers.split([c, 1], dim=2)
    u = torch.linalg.svd(matrix)[0]
    return level**2 * (u.mT @ (diagonal * u)).abs()
