"""ESPCN: convolutions at LR size, then one pixel shuffle."""

from torch import nn

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (2, 3, 4)


class ESPCN(Plugin):
    """Efficient sub-pixel CNN (Shi et al. 2016, arXiv:1609.05158), for x2, x3 and x4.

    The layers are a 5x5 convolution to 64 channels and a 3x3 convolution to 32, each followed by
    tanh, then a 3x3 convolution to scale^2 values per channel of the image, and the pixel shuffle
    that this paper introduced. At x4 there are 24,752 parameters for one channel and 37,200 for
    RGB.

    The output is not clamped and passes no activation. The initialisation is torch's default.
    Images may have any size.
    """

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        return nn.Sequential(
            nn.Conv2d(condition_shape[0], 64, 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(32, real_shape[0] * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )
