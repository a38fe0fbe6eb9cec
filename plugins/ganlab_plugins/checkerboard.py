"""Checkerboard: does SR repeat with the stride of its generator's upsampling?"""

from pydantic import Field
from torch import Tensor

from ganlab import (
    Plugin,
    Run,
    hookimpl,
    require_held_out,
    stride_power,
)


class Checkerboard(Plugin):
    """Power of SR at the frequencies of the upsampling stride, as a multiple of that of HR.

        ratio = P_SR / P_HR,  P = mean over tiles and over (k, l) != (0, 0) of
                1/12 + |F(v Y)(k / s, l / s)|^2 / sum v^2,  k, l = 0 .. s - 1

    F is the Fourier transform of the luma Y less its mean, in whole tiles of 8 s x 8 s pixels
    under a Hann window v: averaged over tiles, so that a faint pattern shows which spans the image.
    1/12 is the power of rounding to 8 bits. Transposed convolutions whose kernel is no
    multiple of their stride, pixel shuffles and gradients of strided discriminators print such
    patterns (Odena, Dumoulin and Olah 2016, Deconvolution and checkerboard artifacts,
    doi:10.23915/distill.00003). 1 is right; below 1 too smooth, above 1 a pattern of period s, or
    plain sharpness: compare with `hf_ratio`.
    """

    stride: int | None = Field(None, ge=2, le=16)
    """The period s to look for, in pixels; left out, the scale of the run. 2 for a x4 generator
    that doubles twice looks at its last doubling alone."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        if self.stride is None and run.scale == 1:
            raise self.error("the generator does not enlarge; give the stride to look for")
        require_held_out(self, run, 4 * (self.stride or run.scale))

    @hookimpl
    def score_images(self, run: Run, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        stride = self.stride or run.scale
        return {self.name: (stride_power(sr, stride) / stride_power(hr, stride))[0]}
