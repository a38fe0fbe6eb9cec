"""Encoder-decoder generator: max pooling shrinks, transposed convolutions enlarge."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl, resize

LEAKY_GAIN = nn.init.calculate_gain("leaky_relu", 0.2)
"""Gain that keeps the magnitude of features through a convolution and LeakyReLU(0.2)."""

SKIP_OUTPUT_SCALE = 0.1
"""Factor on the network's output before it is added to the resized input."""


class EncoderDecoder(Plugin):
    """Convolutional encoder-decoder for super-resolution by 1, 2, 4, 8, ...

    The encoder halves the LR image `depth` times by 2x2 max pooling, doubling the channels each
    time; the decoder doubles the size up to HR by transposed convolutions, halving the channels.
    Their kernel of 4 is a multiple of their stride of 2, so every output pixel is a sum of equally
    many terms, and there is no checkerboard pattern (Odena et al. 2016,
    doi:10.23915/distill.00003). Residual blocks (arXiv:1512.03385) work at LR size and below; the
    layers at HR size have few channels. There is no normalisation. The activation is
    LeakyReLU(0.2). The output is not clamped.

    An LR side that is not a multiple of 2^depth is extended by copies of its last pixels, and the
    result is cut, so any size works. The convolutions pad with zeros, because transposed
    convolutions support nothing else, and another padding would cost one more copy of every layer.

    The initialisation follows He et al. (arXiv:1502.01852); residual blocks begin as identities
    (Fixup, arXiv:1901.09321). With a `global_skip` the last layer begins at zero, so training
    starts at the resized input, and the layer's output is scaled by 0.1.
    """

    images_only: ClassVar[bool] = True

    width: int = Field(64, ge=1)
    """Channels at LR size. Each halving of the size doubles them; each doubling of the size halves
    them, to at least 16."""

    depth: int = Field(1, ge=1, le=32)
    """How often pooling halves the LR image; with 2 or more, it hardly learns without `skips`."""

    num_blocks: int = Field(2, ge=0)
    """Residual blocks of two convolutions per level, in the encoder and again in the decoder up to
    LR size."""

    skips: bool = False
    """Add the encoder's features to the decoder's where their sizes agree (as in U-Net,
    arXiv:1505.04597, but by a sum, which adds no parameters). Without skips, all detail must pass
    the pooling."""

    global_skip: Literal["none", "nearest", "bicubic"] = "bicubic"
    """How the input is resized before the network's output is added; with `none`, the output is
    the whole image."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        (inputs, height, width), (outputs, *size) = condition_shape, real_shape
        scale = size[0] // height
        if size != [height * scale, width * scale] or scale.bit_count() != 1:
            raise self.error(
                f"makes images 1, 2, 4, 8, ... times as large, but not {size[0]} x {size[1]} from "
                f"{height} x {width}; choose another scale or generator"
            )
        if self.global_skip != "none" and inputs != outputs:
            raise self.error(
                f"the input has {inputs} channels and the output {outputs}, so they cannot be "
                "added; use global_skip = 'none'",
                "global_skip",
            )
        return EncoderDecoderNet(inputs, outputs, scale, self)


class EncoderDecoderNet(nn.Module):
    """The network of EncoderDecoder: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    def __init__(self, inputs: int, outputs: int, scale: int, options: EncoderDecoder) -> None:
        super().__init__()
        self.scale, self.depth = scale, options.depth
        self.skips, self.global_skip = options.skips, options.global_skip
        num_blocks, width = options.num_blocks, options.width
        channels = [width * 2**level for level in range(self.depth + 1)]
        self.encoder = nn.ModuleList(
            nn.Sequential(_convolution(before, after), *_blocks(after, num_blocks))
            for before, after in zip([inputs, *channels], channels, strict=False)
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(self.depth)):
            self.up.append(_doubling(channels[level + 1], channels[level]))
            self.decoder.append(nn.Sequential(*_blocks(channels[level], num_blocks)))
        self.to_hr = nn.Sequential()
        for _ in range(scale.bit_length() - 1):
            narrower = max(width // 2, 16)
            self.to_hr.extend([_doubling(width, narrower, LEAKY_GAIN), nn.LeakyReLU(0.2)])
            width = narrower
        self.last = _convolution(width, outputs, 1.0 if self.global_skip == "none" else 0.0)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        step = 2**self.depth
        # centred on 0: the skip already has the brightness, and it would dominate the features
        features = lr - 0.5
        if height % step or width % step:
            features = F.pad(features, (0, -width % step, 0, -height % step), mode="replicate")

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

        if self.global_skip == "none":
            return images + 0.5
        # the size of Adam's first steps does not depend on the gradient: without the scale, they
        # overshoot the small difference from the resized input, and the features vanish as a result
        images = SKIP_OUTPUT_SCALE * images
        if self.global_skip == "nearest":
            return images + F.interpolate(lr, size=size, mode="nearest-exact")
        return images + resize(lr, size)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(channels, channels, LEAKY_GAIN),
            nn.LeakyReLU(0.2),
            _convolution(channels, channels, 0.0),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.layers(features)
        return result


def _blocks(channels: int, num: int) -> list[nn.Module]:
    return [_Residual(channels) for _ in range(num)]


def _convolution(inputs: int, outputs: int, gain: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    _initialise(layer, gain, fan_in=9 * inputs)
    return layer


def _doubling(inputs: int, outputs: int, gain: float = 1.0) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    # a pixel of the doubled image gets only 2x2 of the 4x4 taps of every input channel
    _initialise(layer, gain, fan_in=4 * inputs)
    return layer


def _initialise(layer: nn.Conv2d | nn.ConvTranspose2d, gain: float, fan_in: int) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
