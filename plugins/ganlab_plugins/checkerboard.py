"""Checkerboard: does SR show a pattern with the period of its generator's upsampling?"""

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
    """Checkerboard artifacts (Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003).

    The power of SR at the frequencies of the upsampling stride s, divided by that of HR:

        ratio = P_SR / P_HR,  P = mean over tiles and over (k, l) != (0, 0) of
                1/12 + |F(v Y)(k / s, l / s)|^2 / sum v^2,  k, l = 0 .. s - 1

    F is the Fourier transform of the luma Y minus its mean, in whole tiles of 8 s x 8 s pixels
    under a Hann window v. The mean over tiles makes a faint pattern visible that spans the image.
    1/12 is the power of rounding to 8 bits. Such patterns come from transposed convolutions whose
    kernel is not a multiple of their stride, from pixel shuffles and from gradients of strided
    discriminators (Deconvolution and checkerboard artifacts). 1 is right. Below 1, SR is too
    smooth; above 1, it has a pattern of period s or is only sharper: compare with `hf_ratio`.
    """

    stride: int | None = Field(None, ge=2, le=16)
    """The period s to look for, in pixels; by default the scale of the run. For a x4 generator
    that doubles twice, 2 measures its last doubling alone."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        if self.stride is None and run.scale == 1:
            raise self.error("the generator does not enlarge, so stride has no default; set stride")
        require_held_out(self, run, 4 * (self.stride or run.scale))

    @hookimpl
    def score_images(self, run: Run, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        stride = self.stride or run.scale
        return {self.name: (stride_power(sr, stride) / stride_power(hr, stride))[0]}
