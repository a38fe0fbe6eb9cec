"""Compact: the small generator of Real-ESRGAN, a plain chain of convolutions at LR size."""

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (1, 2, 3, 4)


class Compact(Plugin):
    """SRVGGNetCompact of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833), for x1, x2, x3 and x4.

    The layers are a 3x3 convolution and `num_layers` more of `width` channels, each followed by
    PReLU with a slope per channel, then a 3x3 convolution to scale^2 values per channel, and a
    pixel shuffle. The input, enlarged by nearest neighbour, is added. At x4 there are 621,424
    parameters with 16 layers (realesr-animevideov3) and 1,213,296 with 32 (realesr-general-x4v3).

    The parameters are named as in the authors' code, so its checkpoints fit. The initialisation is
    torch's default, as there. The output is not clamped. Images may have any size.
    """

    width: int = Field(64, ge=1)
    """Channels of every hidden layer."""

    num_layers: int = Field(16, ge=1)
    """Convolutions between the first and the last."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        inputs, outputs = condition_shape[0], real_shape[0]
        if inputs != outputs:
            raise self.error(
                f"adds its input to its output, but the input has {inputs} channels and the output "
                f"{outputs}; choose another generator, or an input with {outputs} channels"
            )
        return CompactNet(inputs, scale, self.width, self.num_layers)


class CompactNet(nn.Module):
    """The network of Compact: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    def __init__(self, channels: int, scale: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential()
        for inputs in (channels, *[width] * num_layers):
            self.body.extend([nn.Conv2d(inputs, width, 3, padding=1), nn.PReLU(width)])
        self.body.append(nn.Conv2d(width, channels * scale**2, 3, padding=1))
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, lr: Tensor) -> Tensor:
        detail: Tensor = self.upsampler(self.body(lr))
        return detail + F.interpolate(lr, scale_factor=self.scale, mode="nearest")
