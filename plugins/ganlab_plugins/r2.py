"""R2: the discriminator should be flat at the generated images."""

from typing import ClassVar

from torch import Tensor, nn

from ganlab import LazyPenalty, NonNegativeSchedule, PatchReduce, Schedule, input_gradient


class R2(LazyPenalty):
    """Zero-centred gradient penalty on generated images (Mescheder et al. 2018, arXiv:1801.04406).

    Adds `weight / 2 * mean over images of |g|^2`, where g is the gradient of the discriminator's
    score at a generated image, its squares summed over C, H and W together. `weight` is the
    paper's gamma. R3GAN (arXiv:2501.05441) takes it beside r1, with one gamma for both. The
    images are in 0..1: a quarter of the gamma of a code at -1..1 is the same penalty.

    The score of an image is the `patch_reduce` of its patch map. Generated images are those that
    the discriminator was shown, so after `augment`, and no gradient reaches the generator. D must
    judge every image alone: no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """The paper's gamma; a half of it multiplies the squared slope."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one score; with `sum` the penalty grows with the square of the map's
    h * w."""

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        gradient = input_gradient(discriminator, fake, self.patch_reduce)
        return self.weight.value / 2 * gradient.square().sum(1).mean()
