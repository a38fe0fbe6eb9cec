"""Random resizing: by a random factor, or to the size of LR, with a random interpolation."""

from collections.abc import Generator
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ganlab import Plugin, degradation, hookimpl

Share = Annotated[float, Field(ge=0, le=1)]


class RandomResize(Plugin):
    """Resizes without antialiasing, by area, bilinear or bicubic with equal probability.

    The factor is U(1, range[1]) for up, U(range[0], 1) for down, and 1 for keep; `probabilities`
    chooses between them. The defaults are those of the first stage of Real-ESRGAN (Wang et al.
    2021, arXiv:2107.10833). Sizes are rounded down, to at least 1 pixel. With `to_scale` the new
    size is that of HR divided by `to_scale`, whatever the size was before. A chain with random
    factors must end with such a resize.

    Factor and mode are drawn once per batch, on the CPU, because the images of a tensor have one
    size. So the plugin cannot be captured in a graph; `pair_pool` mixes the images of several
    batches. Deviation from the published code: positions follow the ratio of the sizes, not the
    factor before rounding, so that LR lies exactly over HR. The result is clipped to 0..1, because
    bicubic overshoots.
    """

    images_only: ClassVar[bool] = True

    range: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=1, le=4)]],
        AfterValidator(degradation.rising),
    ] = (0.15, 1.5)
    """Smallest factor for down and largest factor for up."""

    probabilities: Annotated[
        tuple[Share, Share, Share], AfterValidator(degradation.summing_to_one)
    ] = (0.2, 0.7, 0.1)
    """Probabilities of up, down and keep; they sum to 1."""

    to_scale: int | None = Field(None, ge=1, le=8, examples=[4])
    """Resize to the size of HR divided by this, instead of by a random factor."""

    modes: tuple[degradation.Mode, ...] = Field(degradation.MODES, min_length=1)
    """The ways to resize, each equally likely: area, bilinear, bicubic."""

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> "RandomResize":
        fields = type(self).model_fields
        for name in ("range", "probabilities"):
            if self.to_scale is not None and getattr(self, name) != fields[name].default:
                raise ValueError(f"with to_scale there is no random factor; leave {name} out")
        return self

    @hookimpl(wrapper=True)
    def degrade(self, images: Tensor) -> Generator[None, Tensor, Tensor]:
        degraded = yield
        if self.to_scale is None:
            scale = degradation.random_scale(self.probabilities, self.range, self.host_rng)
            size = degradation.scaled_size(degraded, scale)
        else:
            size = degradation.shrunk_size(images, self.to_scale, self.error, "to_scale")
        mode = degradation.random_mode(self.modes, self.host_rng)
        return degradation.resample(degraded, size, mode).clamp(0, 1)
