"""MS-SSIM: structural similarity at five sizes of the image."""

import torch.nn.functional as F
from torch import Tensor

from ganlab import (
    Plugin,
    Run,
    hookimpl,
    luma,
    require_held_out,
    ssim_maps,
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST = 11 * 2 ** (len(WEIGHTS) - 1)  # the 11x11 window must fit after four halvings


class MSSSIM(Plugin):
    """Multi-scale structural similarity of each held-out image, on luma.

        MS-SSIM = mean(SSIM_5)^w_5 * product over scales j = 1..4 of mean(cs_j)^w_j
        w = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333

    cs_j is the contrast-structure factor of SSIM. Scale j + 1 is the mean over 2x2 pixels of scale
    j (Wang, Simoncelli and Bovik 2003, Multi-scale structural similarity for image quality
    assessment, doi:10.1109/ACSSC.2003.1292216). Window, constants and luma are those of `ssim_y`;
    `scale` pixels are shaved. 1 is right, higher is better.

    A negative mean of cs_j counts as 0, because the formula has no real value there. Images need at
    least 176 pixels a side after the shave. An image of 512 x 512 takes about 0.2 s.
    """

    @hookimpl
    def run_start(self, run: Run) -> None:
        require_held_out(self, run, SMALLEST + 2 * run.scale)

    @hookimpl
    def score_images(self, run: Run, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        shave, (height, width) = run.scale, sr.shape[-2:]
        if min(height, width) < SMALLEST + 2 * shave:
            raise self.error(
                f"needs images of at least {SMALLEST + 2 * shave} pixels a side, not "
                f"{width} x {height}; leave that image out, or this plugin"
            )
        inside = (..., slice(shave, height - shave), slice(shave, width - shave))
        return {self.name: _ms_ssim(luma(sr[inside]), luma(hr[inside])).mean()}


def _ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of float planes in 0..255: [N, 1, H, W] -> [N]."""
    product = a.new_ones(len(a))
    for scale, weight in enumerate(WEIGHTS, start=1):
        luminance, structure = ssim_maps(a, b)
        factor = luminance * structure if scale == len(WEIGHTS) else structure
        product = product * factor.mean(dim=(1, 2, 3)).clamp(min=0) ** weight
        # the last row or column of an odd side is its own mean, as if it were mirrored
        a, b = (F.avg_pool2d(planes, 2, ceil_mode=True) for planes in (a, b))
    return product
