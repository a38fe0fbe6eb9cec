"""EDSR: residual blocks without normalisation."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (2, 3, 4)

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K's training images."""


class EDSR(Plugin):
    """Enhanced deep residual network (Lim et al. 2017, arXiv:1707.02921), for x2, x3 and x4.

    The layers are a 3x3 convolution, `num_blocks` residual blocks
    `x + residual_scale * conv(relu(conv(x)))` and a convolution with a skip connection around them,
    pixel shuffles by 2 (one by 3 for x3), and a convolution to the image. Inside the network, an
    RGB image is `img_range * (x - mean of DIV2K)`; the output is scaled and shifted back. Images
    that are not RGB are scaled, but not shifted.

    The defaults are the baseline, with 1,369,859, 1,554,499 and 1,517,571 parameters at x2, x3 and
    x4. The paper's EDSR has width = 256, num_blocks = 32, residual_scale = 0.1, and 43,089,923
    parameters at x4.

    The parameters are named as in BasicSR. The initialisation is torch's default, as in the
    authors' code. The output is not clamped. Images may have any size.
    """

    width: int = Field(64, ge=1)
    """Channels of every hidden layer."""

    num_blocks: int = Field(16, ge=1)
    """Residual blocks."""

    residual_scale: float = Field(1.0, gt=0, le=1)
    """Factor on the residuals; 0.1 keeps wide networks from diverging."""

    img_range: float = Field(255.0, gt=0)
    """The value of white inside the network."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        return EDSRNet(condition_shape[0], real_shape[0], scale, self)


class EDSRNet(nn.Module):
    """The network of EDSR: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    mean: Tensor

    def __init__(self, inputs: int, outputs: int, scale: int, options: EDSR) -> None:
        super().__init__()
        width, self.img_range = options.width, options.img_range
        mean = RGB_MEAN if inputs == outputs == 3 else (0.0,)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(inputs, width, 3, padding=1)
        self.body = nn.Sequential(
            *(_Residual(width, options.residual_scale) for _ in range(options.num_blocks))
        )
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = nn.Sequential()
        for step in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            wide = nn.Conv2d(width, width * step**2, 3, padding=1)
            self.upsample.extend([wide, nn.PixelShuffle(step)])
        self.conv_last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        features = self.conv_first((lr - self.mean) * self.img_range)
        features = features + self.conv_after_body(self.body(features))
        images: Tensor = self.conv_last(self.upsample(features))
        return images / self.img_range + self.mean


class _Residual(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.conv2(self.conv1(features).relu())
        return features + self.scale * residual
