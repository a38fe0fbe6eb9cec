"""SPAN: a fast generator whose attention has no parameters."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (1, 2, 3, 4)

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K's training images."""

IMG_RANGE = 255.0
"""Value of white in the network's own unit."""


class SPAN(Plugin):
    """Swift parameter-free attention network (Wan et al. 2023, arXiv:2311.12770), for x1 to x4.

    There are six blocks of three 3x3 convolutions with SiLU between them. A block with input `x`
    and output `o` of its third convolution gives `(o + x) * (sigmoid(o) - 0.5)`: o attends to
    itself. A 1x1 convolution joins the first features, the last ones, those of block 1 and those
    within block 6. A 3x3 convolution and a pixel shuffle follow. An RGB image enters the network as
    `255 * (image - mean of DIV2K)`; the output is not shifted or scaled back.

    A 3x3 convolution is learnt as the sum of a 1x1 convolution and a chain 1x1, 3x3, 1x1 of twice
    the channels. The sum is linear, so it equals one 3x3 convolution. The authors run the sum in
    training and the single convolution in evaluation. Here, in both modes, the single convolution
    is computed from the sum at every call, with its gradient: the same function at a fraction of
    the cost. At x4, 426,288 parameters are in use with 48 channels and 498,208 with 52; 1,840,488
    and 2,157,136 are learnt. The state dict holds both kinds: 2,236,728 and 2,621,964 numbers.

    The parameters are named as in the authors' code, so its checkpoints fit. `eval_conv` is written
    to checkpoints, and ignored when one is loaded. The initialisation is torch's default. The
    output is not clamped. Images may have any size.
    """

    width: int = Field(48, ge=1)
    """Channels of every hidden layer; 48 and 52 are published."""

    input_norm: bool = True
    """Shift and scale an RGB input as above. If false, as in `no_norm` checkpoints, the network
    gets images in 0..1."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        return SPANNet(condition_shape[0], real_shape[0], scale, self.width, self.input_norm)


class SPANNet(nn.Module):
    """The network of SPAN: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    mean: Tensor

    def __init__(self, inputs: int, outputs: int, scale: int, width: int, input_norm: bool) -> None:
        super().__init__()
        self.range = IMG_RANGE if input_norm else 1.0
        mean = RGB_MEAN if input_norm and inputs == 3 else (0.0,)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        if not input_norm:
            self.register_buffer("no_norm", torch.zeros(1))  # its name marks such checkpoints
        self.conv_1 = _Convolution(inputs, width)
        self.block_1 = _Block(width)
        self.block_2 = _Block(width)
        self.block_3 = _Block(width)
        self.block_4 = _Block(width)
        self.block_5 = _Block(width)
        self.block_6 = _Block(width)
        self.conv_cat = nn.Conv2d(4 * width, width, 1)
        self.conv_2 = _Convolution(width, width)
        wide = nn.Conv2d(width, outputs * scale**2, 3, padding=1)
        self.upsampler = nn.Sequential(wide, nn.PixelShuffle(scale))

    def forward(self, lr: Tensor) -> Tensor:
        first = self.conv_1((lr - self.mean) * self.range)
        features = block_1, _ = self.block_1(first)
        for block in (self.block_2, self.block_3, self.block_4, self.block_5, self.block_6):
            features = block(features[0])
        last, within = features
        joined = torch.cat([first, self.conv_2(last), block_1, within], 1)
        images: Tensor = self.upsampler(self.conv_cat(joined))
        return images


class _Block(nn.Module):
    """A block: [N, C, h, w] to the attended features, and to those after its first SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r = _Convolution(width, width)
        self.c2_r = _Convolution(width, width)
        self.c3_r = _Convolution(width, width)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        # the features after SiLU, not before it: the authors' SiLU overwrites its input
        within = F.silu(self.c1_r(features))
        answer = self.c3_r(F.silu(self.c2_r(within)))
        return (answer + features) * (answer.sigmoid() - 0.5), within


class _Convolution(nn.Module):
    """A 3x3 convolution, learnt as the sum of a 1x1 convolution and a chain 1x1, 3x3, 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, 2 * inputs, 1),
            nn.Conv2d(2 * inputs, 2 * outputs, 3),
            nn.Conv2d(2 * outputs, outputs, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, *self.deployed(), padding=1)

    def deployed(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the single 3x3 convolution that equals this sum."""
        (before, b0), (middle, b1), (after, b2) = map(_learnt, self.conv)
        skip, b3 = _learnt(self.sk)
        before, after = before[..., 0, 0], after[..., 0, 0]
        # bfloat16 would round every factor of the product
        with torch.autocast(middle.device.type, enabled=False):
            weight = torch.einsum("om,mnhw,ni->oihw", after, middle, before)
            bias = after @ (middle.sum((2, 3)) @ b0 + b1) + b2
        return weight + F.pad(skip, (1, 1, 1, 1)), bias + b3

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight, bias = self.deployed()
        destination[f"{prefix}eval_conv.weight"] = weight.detach()
        destination[f"{prefix}eval_conv.bias"] = bias.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        state_dict.pop(f"{prefix}eval_conv.weight", None)
        state_dict.pop(f"{prefix}eval_conv.bias", None)
        super()._load_from_state_dict(state_dict, prefix, *others)


def _learnt(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    return layer.weight, layer.bias
