"""Checkerboard: does SR repeat with the stride of its generator's upsampling?"""

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from ganlab import History, Plugin, Verdict, hookimpl, luma, require_held_out

if TYPE_CHECKING:
    from ganlab import Run

TILE = 8  # periods in a tile, enough to tell a period from the picture
PRINTED = 4.0  # times the power of HR at which a pattern is plain to see
ROUNDING = 1 / 12  # variance of rounding to whole grey levels: the floor of any 8-bit spectrum


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
    def run_start(self, run: "Run") -> None:
        if self.stride is None and run.scale == 1:
            raise self.error("the generator does not enlarge; give the stride to look for")
        require_held_out(self, run, 4 * (self.stride or run.scale))

    @hookimpl
    def score_images(self, run: "Run", sr: Tensor, hr: Tensor) -> dict[str, float]:
        stride = self.stride or run.scale
        return {self.name: (_stride_power(sr, stride) / _stride_power(hr, stride)).item()}

    @hookimpl
    def verdicts(self, history: History) -> list[Verdict]:
        sharpness = dict(history.of("evaluation/hf_ratio"))
        tail = history.lasting(f"evaluation/{self.name}", lambda power: power > PRINTED, 2)
        # a sharp picture has more power everywhere, a pattern at its stride alone
        tail = [(at, power) for at, power in tail if power > PRINTED * sharpness.get(at, 1)]
        if len(tail) < 2:
            return []
        since, power = tail[0][0], tail[-1][1]
        sentence = (
            f"G prints a checkerboard from iteration {since:,}: {power:.1f} times the power of the "
            "original images at the stride of its upsampling"
        )
        return [Verdict("checkerboard", since, sentence)]


def _stride_power(image: Tensor, stride: int) -> Tensor:
    """Mean power at the multiples of 1 / stride, of an image uint8 [1, C, H, W]: 0-d float64."""
    planes = luma(image)[0, 0]
    side = stride * min(TILE, min(planes.shape) // stride)
    tiles = planes.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)
    hann = torch.hann_window(side, periodic=True, dtype=torch.float64, device=planes.device)
    window = hann[:, None] * hann
    centred = tiles - tiles.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.fft2(centred * window).abs().square() / window.square().sum()
    step = side // stride
    at_stride = power[:, ::step, ::step].mean(0).flatten()[1:]  # without the mean
    return ROUNDING + at_stride.mean()
