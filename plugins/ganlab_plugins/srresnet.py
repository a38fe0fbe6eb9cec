"""SRResNet: the generator of SRGAN, a residual network that works at LR size."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ganlab import Plugin, hookimpl

SUPPORTED_SCALES = (1, 2, 3, 4, 8)


class SRResNet(Plugin):
    """Residual generator of SRGAN (Ledig et al. 2017, arXiv:1609.04802), for x2, x3, x4 and x8.

    The layers are a 9x9 convolution, `num_blocks` residual blocks (3x3 convolution, batch norm,
    PReLU, 3x3 convolution, batch norm) with a skip over all of them, pixel shuffles by 2 (one by 3
    for x3), and a 9x9 convolution to the image. There are 1,547,350 parameters for RGB at x4 and
    1,399,637 at x2.

    The output is neither clamped nor squashed: a clamp has no gradient outside 0..1. The
    initialisation is torch's default. Images may have any size.
    """

    width: int = Field(64, ge=1)
    """Channels of every hidden layer."""

    num_blocks: int = Field(16, ge=1)
    """Residual blocks."""

    norm: Literal["batch", "none"] = "batch"
    """`none` leaves batch norm out of the blocks (EDSR, arXiv:1707.02921, found this better)."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        inputs, outputs = condition_shape[0], real_shape[0]
        return SRResNetNet(inputs, outputs, scale, self.width, self.num_blocks, self.norm)


class SRResNetNet(nn.Module):
    """The network of SRResNet: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    def __init__(
        self, inputs: int, outputs: int, scale: int, width: int, num_blocks: int, norm: str
    ) -> None:
        super().__init__()
        bias = norm == "none"  # batch norm would remove it
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(_Residual(width, norm) for _ in range(num_blocks)))
        self.last_of_blocks = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=bias), _norm(width, norm)
        )
        self.to_hr = nn.Sequential()
        for step in {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]:
            wide = nn.Conv2d(width, width * step**2, 3, padding=1)
            self.to_hr.extend([wide, nn.PixelShuffle(step), nn.PReLU()])
        self.last = nn.Conv2d(width, outputs, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        features = self.first(lr)
        features = features + self.last_of_blocks(self.blocks(features))
        images: Tensor = self.last(self.to_hr(features))
        return images


class _Residual(nn.Module):
    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=bias),
            _norm(width, norm),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=bias),
            _norm(width, norm),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.layers(features)
        return result


def _norm(width: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
