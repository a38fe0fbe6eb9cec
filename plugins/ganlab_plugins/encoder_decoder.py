"""Encoder-decoder generator: down by max pooling, up by transposed convolutions."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl, resize

GlobalSkip = Literal["none", "nearest", "bicubic"]


class EncoderDecoder(Plugin):
    """Convolutional encoder-decoder for super-resolution by 1, 2, 4, 8, ...

    The encoder halves the LR image `depth` times (convolutions, then 2x2 max pooling), doubling the
    channels each time; the decoder doubles the size up to HR by transposed convolutions, halving
    the channels. Their kernel of 4 is a multiple of their stride of 2, so every output pixel
    gets as many terms and there is no checkerboard pattern (Odena et al. 2016,
    doi:10.23915/distill.00003). LeakyReLU(0.2) between, no norm, nothing clamps the output.

    Most work is done at LR size and below; the HR end is a few channels wide. An LR side that
    2^depth does not divide is extended by copies of its last pixels, and the result cut, so any
    size works. The convolutions pad with zeros: transposed ones know nothing else, and another
    padding would cost one more copy of every layer.

    Initialised after He et al. (arXiv:1502.01852). With a `global_skip` the last layer begins at
    zero, and training starts at the resized input.
    """

    width: int = Field(64, ge=1)
    """Channels at LR size: twice as many a level down, half as many a level up (at least 16)."""

    depth: int = Field(1, ge=1)
    """How often the LR image is halved by pooling."""

    num_blocks: int = Field(2, ge=1)
    """Convolutions per level, in the encoder and again in the decoder up to LR size."""

    skips: bool = False
    """Add the encoder's features to the decoder's where their sizes agree (as in U-Net,
    arXiv:1505.04597, but by a sum, which adds no parameters). Without, all detail must pass the
    pooling."""

    global_skip: GlobalSkip = "bicubic"
    """The resized input to which the network adds its answer; with `none` it draws the whole
    image."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        (inputs, height, width), (outputs, *size) = condition_shape, real_shape
        scale = size[0] // height
        if size != [height * scale, width * scale] or scale.bit_count() != 1:
            raise self.error(
                f"makes images 1, 2, 4, 8, ... times as large, not {size[0]} x {size[1]} from "
                f"{height} x {width}; choose another scale or generator"
            )
        if self.global_skip != "none" and inputs != outputs:
            raise self.error(
                f"the input has {inputs} channels and the output {outputs}, so they cannot be "
                "added; use global_skip = 'none'",
                "global_skip",
            )
        return EncoderDecoderNet(
            inputs,
            outputs,
            scale,
            self.width,
            self.depth,
            self.num_blocks,
            self.skips,
            self.global_skip,
        )


class EncoderDecoderNet(nn.Module):
    """The network of EncoderDecoder: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        scale: int,
        width: int,
        depth: int,
        num_blocks: int,
        skips: bool,
        global_skip: GlobalSkip,
    ) -> None:
        super().__init__()
        self.scale, self.depth, self.skips, self.global_skip = scale, depth, skips, global_skip
        channels = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            _convolutions(before, after, num_blocks)
            for before, after in zip([inputs, *channels], channels, strict=False)
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(depth)):
            self.up.append(_doubling(channels[level + 1], channels[level]))
            self.decoder.append(_convolutions(channels[level], channels[level], num_blocks))
        self.to_hr = nn.Sequential()
        for _ in range(scale.bit_length() - 1):
            narrower = max(width // 2, 16)
            self.to_hr.extend([_doubling(width, narrower), nn.LeakyReLU(0.2)])
            width = narrower
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                # a pixel of a doubled image gets 2x2 of the 4x4 taps of every input channel
                fan_in = layer.in_channels * (4 if isinstance(layer, nn.ConvTranspose2d) else 9)
                gain = nn.init.calculate_gain("leaky_relu", 0.2)
                nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        if self.global_skip != "none":
            nn.init.zeros_(self.last.weight)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        step = 2**self.depth
        features = lr
        if height % step or width % step:
            features = F.pad(lr, (0, -width % step, 0, -height % step), mode="replicate")

        encoded = []
        for level, block in enumerate(self.encoder):
            features = block(F.max_pool2d(features, 2) if level else features)
            encoded.append(features)
        for up, block in zip(self.up, self.decoder, strict=True):
            features = up(features)
            encoded.pop()
            features = block(features + encoded[-1] if self.skips else features)
        size = (height * self.scale, width * self.scale)
        images: Tensor = self.last(self.to_hr(features))[..., : size[0], : size[1]]

        if self.global_skip == "bicubic":
            return images + resize(lr, size)
        if self.global_skip == "nearest":
            return images + F.interpolate(lr, size=size, mode="nearest-exact")
        return images


def _convolutions(inputs: int, outputs: int, num: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(num):
        layers += [nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def _doubling(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
