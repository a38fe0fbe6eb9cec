"""SRCNN: three convolutions on the bicubic enlargement."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl, resize

SUPPORTED_SCALES = (2, 3, 4)


class SRCNN(Plugin):
    """Super-resolution CNN (Dong et al. 2014, arXiv:1501.00092), for x2, x3 and x4.

    The input is enlarged by bicubic interpolation. Convolutions to 64 and to 32 channels with ReLU
    follow, and one to the image. With one channel there are 8,129, 24,513 and 57,281 parameters for
    the kernels 9-1-5, 9-3-5 and 9-5-5 (the paper counts the weights alone: 8,032, 24,416, 57,184);
    with RGB there are 20,099 for 9-1-5.

    The paper trains without padding and loses the border. Here the enlarged image is extended by
    copies of its border pixels instead, so the output has the full size and no zeros enter it. The
    output is not clamped. Images may have any size. The initialisation is torch's default; the
    paper's, a Gaussian of deviation 0.001, was made for plain SGD with a learning rate per layer.
    """

    kernels: Literal["9-1-5", "9-3-5", "9-5-5"] = "9-5-5"
    """Sides of the three kernels; larger ones are slower and better."""

    @hookimpl
    def make_generator(
        self, condition_shape: tuple[int, ...], real_shape: tuple[int, ...]
    ) -> nn.Module:
        scale = self.scale_of(condition_shape, real_shape, SUPPORTED_SCALES)
        kernels = [int(side) for side in self.kernels.split("-")]
        return SRCNNNet(condition_shape[0], real_shape[0], scale, kernels)


class SRCNNNet(nn.Module):
    """The network of SRCNN: [N, C, h, w] to [N, C, scale * h, scale * w]."""

    def __init__(self, inputs: int, outputs: int, scale: int, kernels: list[int]) -> None:
        super().__init__()
        self.scale = scale
        self.margin = sum(side // 2 for side in kernels)
        first, second, last = kernels
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, 64, first),
            nn.ReLU(),
            nn.Conv2d(64, 32, second),
            nn.ReLU(),
            nn.Conv2d(32, outputs, last),
        )

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        enlarged = resize(lr, (height * self.scale, width * self.scale))
        images: Tensor = self.layers(F.pad(enlarged, (self.margin,) * 4, mode="replicate"))
        return images
