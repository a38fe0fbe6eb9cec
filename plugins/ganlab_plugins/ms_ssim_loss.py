"""MS-SSIM loss: structural similarity at several sizes of the image."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    hookimpl,
    ssim_maps,
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11
LEAST = 1e-6  # not 0: the other factors of the product would get no gradient


class MSSSIMLoss(Plugin):
    """Multi-scale structural dissimilarity: 1 - MS-SSIM.

        MS-SSIM = mean(SSIM_M)^w_M * product over scales j < M of mean(cs_j)^w_j
        w = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333

    cs is the contrast-structure factor of SSIM. Scale j + 1 is the mean over 2x2 pixels of scale j
    (Wang, Simoncelli and Bovik 2003, doi:10.1109/ACSSC.2003.1292216). Zhao et al. 2015,
    arXiv:1511.08861, use it as a loss and add L1. The mean in each factor is over the channels and
    positions of an image; the loss is the mean over images.

    A mean below 1e-6 counts as 1e-6 and gives no gradient: for a negative mean the formula has no
    real value. With fewer `scales` than the paper's five, the first weights w are divided by their
    sum.
    """

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term, which lies in 0..1."""

    scales: int = Field(5, ge=2, le=5, examples=[3])
    """Number of sizes at which images are compared. Crops need 11 * 2^(scales - 1) pixels a side:
    176 for the paper's 5, 88 for 4, 44 for 3."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        smallest = WINDOW * 2 ** (self.scales - 1)
        if len(run.real_shape) != 3 or min(run.real_shape[1:]) < smallest:
            raise self.error(
                f"needs images of at least {smallest} pixels a side for {self.scales} scales, but "
                f"real samples have shape {[*run.real_shape]}; enlarge the crop or use fewer "
                "scales",
                "scales",
            )

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        a, b = 255 * fake, 255 * real.detach()
        weights = WEIGHTS[: self.scales]
        similarity = fake.new_ones(len(fake))
        for scale, weight in enumerate(weights, start=1):
            luminance, structure = ssim_maps(a, b)
            factor = luminance * structure if scale == self.scales else structure
            mean = factor.mean(dim=(1, 2, 3)).clamp(min=LEAST)
            similarity = similarity * mean ** (weight / sum(weights))
            # the last row or column of an odd side is its own mean, as if it were mirrored
            a, b = (F.avg_pool2d(images, 2, ceil_mode=True) for images in (a, b))
        return {f"G/{self.name}": self.weight.value * (1 - similarity.mean())}
