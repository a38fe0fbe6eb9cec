"""Blur by a random kernel for each image: Gaussian, generalized Gaussian or plateau."""

from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ganlab import NoEffect, Plugin, degradation, hookimpl

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(degradation.rising)]
Size = Annotated[int, Field(ge=1, le=63)]
Shares = tuple[Share, Share, Share, Share, Share, Share]


class GaussianBlur(Plugin):
    """Blurs each image with a random kernel (Real-ESRGAN; Wang et al. 2021, arXiv:2107.10833).

        gaussian     k(d) ~ exp(-q / 2),  q = d^T S^-1 d,  S = U diag(sigma_x^2, sigma_y^2) U^T
        generalized  k(d) ~ exp(-q^beta / 2)
        plateau      k(d) ~ 1 / (1 + q^beta)

    A kernel is isotropic (sigma_y = sigma_x), or anisotropic with a uniform direction U. The
    defaults are Real-ESRGAN's published training options. Each kernel has sum 1; the border of the
    image is reflected. beta is below or above 1 with equal probability, and uniform on either side.
    Everything is drawn once per image. For classical blind SR with isotropic blur, set
    `probabilities = [1, 0, 0, 0, 0, 0]` and list `bicubic` after this plugin.
    """

    images_only: ClassVar[bool] = True

    probability: Annotated[Share, NoEffect(0)] = 1.0
    """Share of the images that are blurred."""

    probabilities: Annotated[Shares, AfterValidator(degradation.summing_to_one)] = (
        0.45, 0.25, 0.12, 0.03, 0.12, 0.03,
    )  # fmt: skip
    """Probabilities of the kinds: Gaussian isotropic, anisotropic; generalized isotropic,
    anisotropic; plateau isotropic, anisotropic. They sum to 1."""

    sigma: Range = (0.2, 3.0)
    """Range of the standard deviations, in pixels of the image at this place in the recipe."""

    generalized_beta: Range = (0.5, 4.0)
    """Range of the exponent of generalized kernels. It must contain 1, which gives the Gaussian."""

    plateau_beta: Range = (1.0, 2.0)
    """Range of the exponent of plateau kernels. It must contain 1, and may start at 1."""

    kernel_sizes: Annotated[tuple[Size, Size], AfterValidator(degradation.rising)] = (7, 21)
    """Smallest and largest side of the kernels in pixels, odd. Each odd side is equally likely."""

    @model_validator(mode="after")
    def _drawable(self) -> "GaussianBlur":
        if not all(size % 2 for size in self.kernel_sizes):
            raise ValueError("kernel_sizes must be odd, such as [7, 21]")
        for name in ("generalized_beta", "plateau_beta"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{name} must be a range that contains 1, such as [0.5, 4]")
        return self

    @hookimpl(wrapper=True)
    def degrade(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        kernels = degradation.random_gaussian_kernels(
            images,
            self.probabilities,
            self.sigma,
            self.generalized_beta,
            self.plateau_beta,
            self.kernel_sizes,
            self.rng,
        )
        happens = degradation.chance(self.probability, images, self.rng)
        return torch.where(happens, degradation.filter_images(images, kernels), images)
