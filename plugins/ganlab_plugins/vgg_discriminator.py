"""VGG-style discriminator: judges an image as a whole."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import Plugin, hookimpl

Layout = Literal["vgg", "srgan"]
Norm = Literal["batch", "instance", "layer", "spectral", "none"]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "layer": partial(nn.GroupNorm, 1),
}


class VGGDiscriminator(Plugin):
    """Discriminator of SRGAN (Ledig et al. 2017, arXiv:1609.04802) and of ESRGAN's code.

    The convolutions, with LeakyReLU(0.2), come in pairs. The second of a pair has stride 2; each
    pair doubles the channels, up to 8 * `width`. Two linear layers to one logit per image, [N, 1],
    follow.

    - `srgan`: 4 pairs of 3x3, as in the paper: 23,563,649 parameters for RGB at 96 x 96.
    - `vgg`: 5 pairs of 3x3 and 4x4, as in BasicSR's VGG-128: 14,499,401 at 128 x 128.

    The linear layers fix the image size: it is that of the crop, after `augment`. They have most of
    the parameters. Batch norm, as published, mixes the images of a batch. With gradient_penalty use
    `norm = "none"`, or `"layer"`, which normalises each image alone, over channels and pixels
    together (arXiv:1607.06450), with a scale and a shift per channel. Before batch and instance
    norm, convolutions have no bias. The initialisation is torch's default.
    """

    images_only: ClassVar[bool] = True

    without_batch_norm: ClassVar[str] = 'norm = "none"'

    layout: Layout = "vgg"
    """Number and kernel size of the convolutions, see above."""

    width: int = Field(64, ge=1)
    """Channels after the first convolution."""

    num_features: int | None = Field(None, ge=1)
    """Width of the hidden linear layer; by default 100 for `vgg` and 1024 for `srgan`."""

    norm: Norm = "batch"
    """Norm after every convolution but the first; `spectral` (arXiv:1802.05957) is on every
    layer."""

    @hookimpl
    def make_discriminator(self, real_shape: tuple[int, ...]) -> nn.Module:
        num_channels, *size = real_shape
        num_pairs = 5 if self.layout == "vgg" else 4
        height, width = (_after(side, num_pairs, self.layout) for side in size)
        # instance norm needs more than one position to compute a deviation
        smallest = 2 if self.norm == "instance" else 1
        if min(height, width) < 1 or height * width < smallest:
            raise self.error(
                f"layout = '{self.layout}' with norm = '{self.norm}' halves an image {num_pairs} "
                f"times, but {size[0]} x {size[1]} pixels are too few for this; use a larger crop",
                "layout",
            )
        convolutions = _convolutions(num_channels, self.width, num_pairs, self.layout, self.norm)
        hidden = self.num_features or (100 if self.layout == "vgg" else 1024)
        first: nn.Module = nn.Linear(self.width * 8 * height * width, hidden)
        last: nn.Module = nn.Linear(hidden, 1)
        if self.norm == "spectral":
            first, last = spectral_norm(first), spectral_norm(last)
        return nn.Sequential(*convolutions, nn.Flatten(), first, nn.LeakyReLU(0.2), last)


def _after(side: int, num_pairs: int, layout: Layout) -> int:
    # stride 2 rounds down with a 4x4 kernel, up with a 3x3
    for _ in range(num_pairs):
        side = side // 2 if layout == "vgg" else (side + 1) // 2
    return side


def _convolutions(
    num_channels: int, width: int, num_pairs: int, layout: Layout, norm: Norm
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = num_channels
    for i in range(num_pairs):
        wider = width * min(2**i, 8)
        for inputs, kernel, stride in [(channels, 3, 1), (wider, 4 if layout == "vgg" else 3, 2)]:
            normalised = norm in NORMS and len(layers) > 0
            bias = not normalised or norm == "layer"  # the other norms would remove it
            conv = nn.Conv2d(inputs, wider, kernel, stride, padding=1, bias=bias)
            layers.append(spectral_norm(conv) if norm == "spectral" else conv)
            if normalised:
                layers.append(NORMS[norm](wider))
            layers.append(nn.LeakyReLU(0.2))
        channels = wider
    return layers
