"""RRDB: the generator of ESRGAN, residual blocks made of residual dense blocks."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl

UNSHUFFLE = {1: 4, 2: 2, 4: 1}
"""Scale -> factor of the pixel unshuffle before the network, which itself enlarges x4."""

RESIDUAL_SCALE = 0.2


class RRDB(Plugin):
    """RRDB generator of ESRGAN (Wang et al. 2018, arXiv:1809.00219), for x1, x2 and x4.

    A dense block is five 3x3 convolutions with LeakyReLU(0.2) between them. Each sees the input and
    all outputs before it; 0.2 times the last output is added to the input. Three dense blocks with
    a skip, again with a factor of 0.2, are a residual-in-residual dense block. After `num_blocks`
    of these and a long skip come two enlargements by 2 (nearest neighbour), each with a
    convolution, and two more convolutions. There are 16,697,987 parameters for 23 blocks at x4,
    11,662,019 for 16 and 4,467,779 for 6.

    x2 and x1 work as in BasicSR and Real-ESRGAN (arXiv:2107.10833): a pixel unshuffle by 2 or by 4
    comes before the same network (16,703,171 parameters at x2). A side that this factor does not
    divide is extended by reflection, and the result is cut, so images of any size work. There is no
    published x3.

    The parameters are named as in BasicSR, so its checkpoints fit. They are initialised as there:
    dense blocks with 0.1 times He et al. (arXiv:1502.01852) and biases 0, the rest with torch's
    default. The output is not clamped.
    """

    width: int = Field(64, ge=1)
    """Channels between the blocks."""

    growth: int = Field(32, ge=1)
    """Channels that each convolution of a dense block adds."""

    num_blocks: int = Field(23, ge=1)
    """Residual-in-residual blocks, of 15 convolutions each."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, tuple(UNSHUFFLE))
        return RRDBNet(condition_shape[0], real_shape[0], scale, self)


class RRDBNet(nn.Module):
    """The network of RRDB: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    def __init__(self, inputs: int, outputs: int, scale: int, options: RRDB) -> None:
        super().__init__()
        width = options.width
        self.scale, self.unshuffle = scale, UNSHUFFLE[scale]
        self.conv_first = _convolution(inputs * self.unshuffle**2, width)
        self.body = nn.Sequential(
            *(_Block(width, options.growth) for _ in range(options.num_blocks))
        )
        self.conv_body = _convolution(width, width)
        self.conv_up1 = _convolution(width, width)
        self.conv_up2 = _convolution(width, width)
        self.conv_hr = _convolution(width, width)
        self.conv_last = _convolution(width, outputs)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = (side * self.scale for side in lr.shape[-2:])
        if self.unshuffle > 1:
            lr = F.pixel_unshuffle(_reflected(lr, self.unshuffle), self.unshuffle)
        features = self.conv_first(lr)
        features = features + self.conv_body(self.body(features))
        for up in (self.conv_up1, self.conv_up2):
            features = _leaky(up(F.interpolate(features, scale_factor=2, mode="nearest")))
        images: Tensor = self.conv_last(_leaky(self.conv_hr(features)))
        return images[..., :height, :width]


class _Block(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _Dense(width, growth)
        self.rdb2 = _Dense(width, growth)
        self.rdb3 = _Dense(width, growth)

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.rdb3(self.rdb2(self.rdb1(features)))
        return features + RESIDUAL_SCALE * residual


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, growth)
        self.conv2 = _convolution(width + growth, growth)
        self.conv3 = _convolution(width + 2 * growth, growth)
        self.conv4 = _convolution(width + 3 * growth, growth)
        self.conv5 = _convolution(width + 4 * growth, width)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data.mul_(0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        known = [features]
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            known.append(_leaky(layer(torch.cat(known, 1))))
        residual: Tensor = self.conv5(torch.cat(known, 1))
        return features + RESIDUAL_SCALE * residual


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2)


def _reflected(images: Tensor, multiple: int) -> Tensor:
    """Images reflected at the right and lower edge until both sides are multiples of `multiple`."""
    for axis in (-2, -1):
        side = images.shape[axis]
        if side % multiple:
            # F.pad reflects at most side - 1 pixels; this repeats the reflection as often as needed
            period = max(2 * (side - 1), 1)
            place = torch.arange(side + -side % multiple, device=images.device) % period
            images = images.index_select(axis, torch.minimum(place, period - place))
    return images
