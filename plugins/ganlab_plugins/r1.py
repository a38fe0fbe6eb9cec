"""R1: a penalty on the discriminator's slope at the real images."""

from typing import ClassVar

from torch import Tensor, nn

from ganlab import LazyPenalty, NonNegativeSchedule, PatchReduce, Schedule, input_gradient


class R1(LazyPenalty):
    """Zero-centred gradient penalty on real images (Mescheder et al. 2018, arXiv:1801.04406).

    Adds `weight / 2 * mean over images of |g|^2`, where g is the gradient of the discriminator's
    logit at a real image, and |g|^2 sums its squares over C, H and W together. `weight` is the
    paper's gamma, with the paper's factor 1/2. The paper's own code does not have this factor, so
    its 10 is 20 here. StyleGAN2-ADA proposes 0.0002 * H * W / batch size; R3GAN (arXiv:2501.05441)
    lets gamma fall to a tenth. Both use images in -1..1. With images in 0..1, as here, a slope is
    twice as large, so a quarter of their gamma gives the same penalty.

    The logit of an image is the `patch_reduce` of its patch map. The real images are those seen by
    D, after `augment`; StyleGAN2 differentiates with respect to the images before `augment`. D must
    judge every image alone, so it must have no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """The paper's gamma; half of it multiplies the squared slope."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one logit; with `sum` the penalty grows with the square of the map's
    size h * w."""

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        gradient = input_gradient(discriminator, real, self.patch_reduce)
        return self.weight.value / 2 * gradient.square().sum(1).mean()
