"""U-Net discriminator: judges every pixel in the context of the image."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import Plugin, hookimpl

PUBLISHED_NAMES = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}
"""Name in torch's older spectral norm, which Real-ESRGAN used -> name of the same tensor here."""


class UnetDiscriminator(Plugin):
    """U-Net discriminator of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833).

    On the way down, a 3x3 convolution is followed by three 4x4 of stride 2 that double the
    channels. On the way up, there are three bilinear enlargements by 2, each followed by a 3x3
    convolution that halves the channels; then the features of the same size on the way down are
    added (`skips`). Two 3x3 convolutions and one to the logits, [N, 1, H, W], follow. The
    activation is LeakyReLU(0.2). All convolutions but the first and the last have spectral norm
    (arXiv:1802.05957) and no bias. The design follows U-Net GAN (arXiv:2002.12655). There are
    4,376,897 parameters for RGB.

    Sides must be multiples of 8. D judges each image alone. Published checkpoints can be loaded.
    The initialisation is torch's default.
    """

    images_only: ClassVar[bool] = True

    width: int = Field(64, ge=1)
    """Channels after the first convolution."""

    skips: bool = True
    """Add the features on the way down to those of the same size on the way up."""

    @hookimpl
    def make_discriminator(self, real_shape: tuple[int, ...]) -> nn.Module:
        num_channels, height, width = real_shape
        if height % 8 or width % 8:
            raise self.error(
                f"halves its images three times, but those of {height} x {width} pixels have a "
                "side that is not a multiple of 8; use a crop whose sides are"
            )
        return UnetDiscriminatorNet(num_channels, self.width, self.skips)


class UnetDiscriminatorNet(nn.Module):
    """The network of UnetDiscriminator: [N, C, H, W] to [N, 1, H, W], H and W multiples of 8."""

    def __init__(self, num_channels: int, width: int, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.conv0 = nn.Conv2d(num_channels, width, 3, padding=1)
        self.conv1 = _halving(width, 2 * width)
        self.conv2 = _halving(2 * width, 4 * width)
        self.conv3 = _halving(4 * width, 8 * width)
        self.conv4 = _convolution(8 * width, 4 * width)
        self.conv5 = _convolution(4 * width, 2 * width)
        self.conv6 = _convolution(2 * width, width)
        self.conv7 = _convolution(width, width)
        self.conv8 = _convolution(width, width)
        self.conv9 = nn.Conv2d(width, 1, 3, padding=1)
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, images: Tensor) -> Tensor:
        down = [_leaky(self.conv0(images))]
        for halve in (self.conv1, self.conv2, self.conv3):
            down.append(_leaky(halve(down[-1])))
        features = down.pop()
        for convolve in (self.conv4, self.conv5, self.conv6):
            larger = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = _leaky(convolve(larger))
            same_size = down.pop()
            if self.skips:
                features = features + same_size
        logits: Tensor = self.conv9(_leaky(self.conv8(_leaky(self.conv7(features)))))
        return logits


def _halving(inputs: int, outputs: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, padding=1, bias=False))


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))


def _leaky(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2)


def _rename(network: nn.Module, state: dict[str, Any], *others: Any) -> None:
    for key in list(state):
        layer, _, tensor = key.rpartition(".")
        if tensor in PUBLISHED_NAMES:
            state[f"{layer}.{PUBLISHED_NAMES[tensor]}"] = state.pop(key)
