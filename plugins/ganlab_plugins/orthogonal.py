"""Orthogonal regularisation: the filters of a layer should point in different directions."""

import torch
from torch import Tensor, nn

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class Orthogonal(Plugin):
    """Modified orthogonal regularisation of BigGAN (Brock et al. 2018, arXiv:1809.11096).

    Adds `weight / 2 * sum over weights of |W W^T * (1 - I)|^2`, where W is a weight of at least two
    dimensions as a matrix [first dimension, the rest], * multiplies element by element, and |.|^2
    is the sum of squares. Its gradient is `weight * 2 (W W^T * (1 - I)) W`, as added by BigGAN's
    code; the paper writes the loss without the half. The diagonal is not penalised, so the lengths
    of the filters are free.

    Here it applies to the discriminator; the paper used it on the generator. With spectral_norm, W
    is the weight before the norm.
    """

    weight: NonNegativeSchedule = Schedule.constant(1e-4)
    """The paper's beta."""

    @hookimpl
    def penalty(self, discriminator: nn.Module) -> dict[str, Tensor]:
        overlaps = [
            _overlap(weight.flatten(1)) for weight in discriminator.parameters() if weight.dim() > 1
        ]
        if not overlaps:
            raise self.error(f"the discriminator has no weight matrix; remove {self.name}")
        return {f"D/{self.name}": self.weight.value / 2 * torch.stack(overlaps).sum()}


def _overlap(weight: Tensor) -> Tensor:
    products = weight @ weight.T
    return (products - products.diag().diag()).square().sum()
