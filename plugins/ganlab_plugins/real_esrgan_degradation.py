"""The complete degradation of Real-ESRGAN: blur, resize, noise and JPEG, twice, and ringing."""

import math
from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ganlab import Plugin, degradation, hookimpl, round_to_8_bits

Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[
    tuple[Share, Share, Share, Share, Share, Share],
    AfterValidator(degradation.summing_to_one),
]
UpDownKeep = Annotated[tuple[Share, Share, Share], AfterValidator(degradation.summing_to_one)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(degradation.rising)]
Factors = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=1, le=4)]]
Around1 = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=1)]]
Level = Annotated[float, Field(ge=0, le=255)]
Levels = Annotated[tuple[Level, Level], AfterValidator(degradation.rising)]
Quality = Annotated[float, Field(ge=1, le=100)]
Qualities = Annotated[tuple[Quality, Quality], AfterValidator(degradation.rising)]
Size = Annotated[int, Field(ge=3, le=63)]

_KINDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


class RealESRGANDegradation(Plugin):
    """The second-order degradation of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833).

    The sharpened HR goes twice through blur (Gaussian, generalized, plateau or sinc), random
    resizing, noise (Gaussian or Poisson, colour or grey) and JPEG. In the second round, resizing to
    LR with a sinc filter comes before or after JPEG, with equal probability. LR has 8 bits. The
    defaults are those of RealESRGAN_x4plus. Options without `second_` are for the first round.

    Kernels, noise and quality are drawn for each image. Resizing and the last order are drawn once
    per batch, on the CPU, because the images of a tensor have one size. So the plugin cannot be
    captured in a graph; `pair_pool` mixes the images of several batches. Use no other degradation
    with it.

    Deviations from the published code: the kind of noise and the second blur are drawn for each
    image, not for each batch; each image of a batch has grey noise of its own; positions follow the
    ratio of sizes, so that LR lies exactly over HR; JPEG is libjpeg's, not an approximation; HR is
    not cut from 400 to 256 pixels afterwards, so LR includes the effects at the borders. In the
    published code, the pixel and perceptual losses compare with the sharpened HR.
    """

    images_only: ClassVar[bool] = True

    scale: int = Field(4, ge=1, le=8)
    """How many times smaller the LR image is, along each side."""
    sharpen: bool = True
    """Degrade HR after unsharp masking (weight 0.5, side 51, threshold 10), as published."""
    kernel_sizes: Annotated[tuple[Size, Size], AfterValidator(degradation.rising)] = (7, 21)
    """Smallest and largest side of all kernels in pixels, odd."""

    blur_probability: Share = 1.0
    """Share of the images that are blurred."""
    kernel_probabilities: Shares = _KINDS
    """Probabilities of the kernels: Gaussian isotropic, anisotropic; generalized isotropic,
    anisotropic; plateau isotropic, anisotropic. They sum to 1."""
    sinc_probability: Share = 0.1
    """Share of the kernels that are a sinc instead. The cut-off is U(pi/3, pi), and U(pi/5, pi) for
    kernels of side 13 and more."""
    sigma: Range = (0.2, 3.0)
    """Range of the kernels' standard deviations, in pixels."""
    generalized_beta: Around1 = (0.5, 4.0)
    """Range of the exponent of generalized kernels; half of them are below 1."""
    plateau_beta: Around1 = (1.0, 2.0)
    """Range of the exponent of plateau kernels; half of them are below or equal to 1."""
    resize_probabilities: UpDownKeep = (0.2, 0.7, 0.1)
    """Probabilities of resizing up, down, and not at all."""
    resize_range: Factors = (0.15, 1.5)
    """Smallest factor for down and largest factor for up."""
    gaussian_noise_probability: Share = 0.5
    """Share of the images with Gaussian noise; the others get Poisson noise."""
    noise_sigma: Levels = (1.0, 30.0)
    """Range of the standard deviation of Gaussian noise, in grey levels of 255."""
    poisson_scale: Range = (0.05, 3.0)
    """Range of the factor on Poisson noise."""
    grey_noise_probability: Share = 0.4
    """Share of the images whose noise is grey."""
    jpeg_quality: Qualities = (30.0, 95.0)
    """Range of the JPEG quality."""

    second_blur_probability: Share = 0.8
    """Share of the images that are blurred again."""
    second_kernel_probabilities: Shares = _KINDS
    """Probabilities of the kernels, in the same order as in the first round."""
    second_sinc_probability: Share = 0.1
    """Share of the kernels that are a sinc instead."""
    second_sigma: Range = (0.2, 1.5)
    """Range of the kernels' standard deviations, in pixels."""
    second_generalized_beta: Around1 = (0.5, 4.0)
    """Range of the exponent of generalized kernels."""
    second_plateau_beta: Around1 = (1.0, 2.0)
    """Range of the exponent of plateau kernels."""
    second_resize_probabilities: UpDownKeep = (0.3, 0.4, 0.3)
    """Probabilities of resizing up, down, and not at all, relative to the size of LR."""
    second_resize_range: Factors = (0.3, 1.2)
    """Smallest factor for down and largest factor for up, relative to the size of LR."""
    second_gaussian_noise_probability: Share = 0.5
    """Share of the images with Gaussian noise; the others get Poisson noise."""
    second_noise_sigma: Levels = (1.0, 25.0)
    """Range of the standard deviation of Gaussian noise, in grey levels of 255."""
    second_poisson_scale: Range = (0.05, 2.5)
    """Range of the factor on Poisson noise."""
    second_grey_noise_probability: Share = 0.4
    """Share of the images whose noise is grey."""
    second_jpeg_quality: Qualities = (30.0, 95.0)
    """Range of the JPEG quality."""

    final_sinc_probability: Share = 0.8
    """Share of the images that get the last sinc filter, with cut-off U(pi/3, pi)."""

    @model_validator(mode="after")
    def _odd(self) -> "RealESRGANDegradation":
        if not all(size % 2 for size in self.kernel_sizes):
            raise ValueError("kernel_sizes must be odd, such as [7, 21]")
        return self

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        size = degradation.shrunk_size(images, self.scale, self.error)
        out = degradation.sharpen(images) if self.sharpen else images

        out = self._blurred(out, "")
        factor = self._factor("")
        out = self._resized(out, degradation.scaled_size(out, factor))
        out = self._compressed(self._noisy(out, ""), "")

        out = self._blurred(out, "second_")
        factor = self._factor("second_")
        out = self._resized(out, (max(1, int(size[0] * factor)), max(1, int(size[1] * factor))))
        out = self._noisy(out, "second_")

        if degradation.host_choice((0.5, 0.5), self.host_rng) == 0:
            out = self._compressed(self._ringing(self._resized(out, size)), "second_")
        else:
            out = self._ringing(self._resized(self._compressed(out, "second_"), size))
        return round_to_8_bits(out)

    def _blurred(self, images: Tensor, round_: str) -> Tensor:
        kernels = degradation.random_kernels(
            images,
            getattr(self, round_ + "kernel_probabilities"),
            getattr(self, round_ + "sinc_probability"),
            getattr(self, round_ + "sigma"),
            getattr(self, round_ + "generalized_beta"),
            getattr(self, round_ + "plateau_beta"),
            self.kernel_sizes,
            self.rng,
        )
        return self._filtered(images, kernels, getattr(self, round_ + "blur_probability"))

    def _ringing(self, images: Tensor) -> Tensor:
        cutoff = (math.pi / 3, math.pi)
        kernels = degradation.random_sinc_kernels(images, cutoff, self.kernel_sizes, self.rng)
        return self._filtered(images, kernels, self.final_sinc_probability)

    def _filtered(self, images: Tensor, kernels: Tensor, probability: float) -> Tensor:
        happens = degradation.chance(probability, images, self.rng)
        return torch.where(happens, degradation.filter_images(images, kernels), images)

    def _factor(self, round_: str) -> float:
        return degradation.random_scale(
            getattr(self, round_ + "resize_probabilities"),
            getattr(self, round_ + "resize_range"),
            self.host_rng,
        )

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        mode = degradation.random_mode(degradation.MODES, self.host_rng)
        return degradation.resample(images, size, mode)

    def _noisy(self, images: Tensor, round_: str) -> Tensor:
        """The images with Gaussian or Poisson noise, clipped to 0..1."""
        grey = getattr(self, round_ + "grey_noise_probability")
        sigma, scale = (getattr(self, round_ + name) for name in ("noise_sigma", "poisson_scale"))
        gaussian = degradation.chance(
            getattr(self, round_ + "gaussian_noise_probability"), images, self.rng
        )
        return torch.where(
            gaussian,
            degradation.random_gaussian_noise(images, sigma, grey, self.rng),
            degradation.random_poisson_noise(images, scale, grey, self.rng),
        )

    def _compressed(self, images: Tensor, round_: str) -> Tensor:
        quality = degradation.uniform(getattr(self, round_ + "jpeg_quality"), images, self.rng)
        return degradation.jpeg(images, quality)
