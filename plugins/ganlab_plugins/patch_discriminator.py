"""Patch discriminator: judges every patch of an image, not the image as a whole."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import Plugin, hookimpl

Norm = Literal["none", "batch", "instance", "layer", "spectral"]


class PatchDiscriminator(Plugin):
    """PatchGAN discriminator (pix2pix; Isola et al. 2017, arXiv:1611.07004).

    The layers are 4x4 convolutions with LeakyReLU(0.2): `num_layers` of stride 2, which double the
    channels up to 8 * `width`, one of stride 1, and one to a single channel. They turn [N, C, H, W]
    into a map of logits [N, 1, h, w], each of which sees one patch: 70 x 70 pixels for 3 layers.
    Images may have any sides of at least 3 * 2^num_layers pixels.

    3 layers of width 64 have 2,764,737 parameters for RGB, as many as the "PatchGAN-70" of KAIR and
    pix2pix. Before batch and instance norm the convolutions have no bias, because the norm would
    remove it (pix2pix keeps 896 such unused numbers before instance norm). Instance norm has no
    scale and shift, as in pix2pix. `layer` normalises each image alone, over channels and pixels
    together, with a scale and a shift per channel, as WGAN-GP (arXiv:1704.00028) asks. `spectral`
    is spectral norm (arXiv:1802.05957) on every convolution. The initialisation is torch's default.
    Batch norm mixes the images of a batch, so do not use it with gradient_penalty.

    Several instances with `downsample` 1, 2 and 4 are the multi-scale discriminator of pix2pixHD
    (arXiv:1711.11585).
    """

    without_batch_norm: ClassVar[str] = 'norm = "none"'

    images_only: ClassVar[bool] = True

    width: int = Field(64, ge=1)
    """Channels after the first convolution."""

    num_layers: int = Field(3, ge=1, le=32)
    """Convolutions of stride 2; a patch is 16, 34, 70, 142 pixels wide for 1, 2, 3, 4 of them."""

    norm: Norm = "none"
    """Normalisation of the layers between the first and the last; `spectral` includes these two."""

    downsample: int = Field(1, ge=1)
    """Factor by which images are shrunk before they are judged, a power of 2. Each halving takes
    means over 3 x 3 pixels."""

    @field_validator("downsample")
    @classmethod
    def _downsample_is_a_power_of_2(cls, value: int) -> int:
        """A power of 2."""
        if value.bit_count() != 1:
            raise ValueError(f"{value} is not a power of 2; use 1, 2, 4 or 8")
        return value

    @hookimpl
    def make_discriminator(self, real_shape: tuple[int, ...]) -> nn.Module:
        num_channels, *size = real_shape
        # 4x4 with padding 1: stride 2 halves a side (rounding down), each stride 1 removes 1 pixel
        smallest = 3 * 2**self.num_layers
        # a mean at every second pixel, from the first on: halves a side (rounding up)
        seen = [-(-side // self.downsample) for side in size]
        if min(seen) < smallest:
            reason, remedy = "", "use fewer layers or a larger crop"
            if self.downsample > 1:
                reason = f" after downsample = {self.downsample}"
                remedy = "use fewer layers, a larger crop or less downsampling"
            raise self.error(
                f"num_layers = {self.num_layers} needs images of at least {smallest} x {smallest} "
                f"pixels but gets {seen[0]} x {seen[1]}{reason}; {remedy}",
                "num_layers",
            )
        layers = patch_discriminator(num_channels, self.width, self.num_layers, self.norm)
        halvings = self.downsample.bit_length() - 1
        return nn.Sequential(*(_halving() for _ in range(halvings)), *layers)


def patch_discriminator(
    num_channels: int, width: int, num_layers: int, norm: Norm
) -> list[nn.Module]:
    """The layers of PatchDiscriminator's network."""

    def conv(inputs: int, outputs: int, stride: int, bias: bool = True) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=bias)
        return spectral_norm(layer) if norm == "spectral" else layer

    layers: list[nn.Module] = [conv(num_channels, width, 2), nn.LeakyReLU(0.2)]
    channels = width
    for i in range(1, num_layers + 1):
        wider = width * min(2**i, 8)
        stride = 2 if i < num_layers else 1
        layers.append(conv(channels, wider, stride, bias=norm not in ("batch", "instance")))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(wider))
        elif norm == "instance":
            layers.append(nn.InstanceNorm2d(wider))
        elif norm == "layer":
            layers.append(nn.GroupNorm(1, wider))
        layers.append(nn.LeakyReLU(0.2))
        channels = wider
    return [*layers, conv(channels, 1, 1)]


def _halving() -> nn.Module:
    # pixels beyond the border are left out of the mean, as in pix2pixHD
    return nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
