"""Inputs whose losses are known in closed form."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LinearCritic(nn.Module):
    """D(x) = slope * x[0] + bias for each image, whatever its shape, in float64.

    The norm of its gradient at every image is |slope|. So the gradient penalty of WGAN-GP
    (arXiv:1704.00028) of weight 10 is 10 (|slope| - 1)^2, and R1 (arXiv:1801.04406) of weight w is
    w / 2 slope^2.

    :param slope: derivative of the logit with respect to the first number of an image.
    """

    def __init__(self, slope: float, bias: float = 0.3) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        """:returns: logits [N, 1]."""
        return self.slope * images.flatten(1)[:, :1] + self.bias


class GoldenLogits(NamedTuple):
    """Logits of four real and four fake images, [4, 1], float64.

    They are those of TF-GAN's tests (losses_impl_test.py), so the published values of its losses
    are values of yours too: the hinge loss of D is 6.75 and that of G -3.125; least squares with
    halves give 41.73375 and 17.69625.
    """

    real: Tensor = torch.tensor([[-5.0], [1.4], [12.5], [2.7]], dtype=torch.float64)
    fake: Tensor = torch.tensor([[10.0], [4.4], [-5.5], [3.6]], dtype=torch.float64)
