"""FSRCNN: the fast SRCNN, which works at LR size and enlarges at the end."""

from pydantic import Field
from torch import Tensor, nn

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (2, 3, 4)


class FSRCNN(Plugin):
    """Fast super-resolution CNN (Dong et al. 2016, arXiv:1608.00367), for x2, x3 and x4.

    With d = `width`, s = `shrunk_width`, m = `num_mappings`, the layers are a 5x5 convolution to d
    channels, a 1x1 convolution to s, m 3x3 convolutions at s, and a 1x1 convolution back to d, each
    followed by PReLU, then a 9x9 transposed convolution to the image. There are 12,809 parameters
    for one channel (12,464 weights, as the paper counts) and 24,683 for RGB, at any scale.
    FSRCNN-s has d = 32, s = 5, m = 1, and 4,086 parameters (3,937 weights).

    The initialisation is that of the paper: He et al. (arXiv:1502.01852) for the convolutions, a
    Gaussian of deviation 0.001 for the transposed convolution. So training starts at a nearly black
    image. The output is not clamped. Images may have any size.
    """

    width: int = Field(56, ge=1)
    """The paper's d: channels of the first and the last features."""

    shrunk_width: int = Field(12, ge=1)
    """The paper's s: channels of the mapping layers."""

    num_mappings: int = Field(4, ge=1)
    """The paper's m: 3x3 convolutions between shrinking and expanding."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        d, s = self.width, self.shrunk_width
        layers = [
            *_convolution(condition_shape[0], d, 5),
            *_convolution(d, s, 1),
            *(layer for _ in range(self.num_mappings) for layer in _convolution(s, s, 3)),
            *_convolution(s, d, 1),
            _enlargement(d, real_shape[0], scale),
        ]
        return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, side: int) -> tuple[nn.Module, nn.Module]:
    layer, activation = nn.Conv2d(inputs, outputs, side, padding="same"), nn.PReLU(outputs)
    nn.init.kaiming_normal_(layer.weight, a=0.25)  # the initial slope of PReLU
    _zero(layer.bias)
    return layer, activation


def _enlargement(inputs: int, outputs: int, scale: int) -> nn.Module:
    layer = nn.ConvTranspose2d(inputs, outputs, 9, scale, padding=4, output_padding=scale - 1)
    nn.init.normal_(layer.weight, std=0.001)
    _zero(layer.bias)
    return layer


def _zero(bias: Tensor | None) -> None:
    assert bias is not None
    nn.init.zeros_(bias)
