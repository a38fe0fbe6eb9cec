"""SSIM loss: the local means, contrasts and structures should agree."""

from torch import Tensor

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    hookimpl,
    ssim_maps,
)

WINDOW = 11


class SSIMLoss(Plugin):
    """Structural dissimilarity: 1 - SSIM, with the SSIM that `ssim_rgb` reports, not rounded.

        SSIM = (2 m1 m2 + c1)(2 s12 + c2) / ((m1^2 + m2^2 + c1)(s1 + s2 + c2))

    Means m, variances s and covariance s12 are local: under an 11x11 Gaussian of sigma 1.5,
    wherever it fits into the image. For images in 0..1, c1 = 0.01^2 and c2 = 0.03^2. The mean is
    over images, channels and positions (Wang et al. 2004, doi:10.1109/TIP.2003.819861). Zhao et al.
    2015, arXiv:1511.08861, use it as a loss, find that it shifts colours, and add L1. No border is
    cut.
    """

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term, which lies in 0..2."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        if len(run.real_shape) != 3 or min(run.real_shape[1:]) < WINDOW:
            raise self.error(
                f"needs images of at least {WINDOW} pixels a side, but real samples have shape "
                f"{[*run.real_shape]}; enlarge the crop"
            )

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        luminance, structure = ssim_maps(255 * fake, 255 * real.detach())
        return {f"G/{self.name}": self.weight.value * (1 - (luminance * structure).mean())}
