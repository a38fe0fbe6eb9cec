"""R2: a penalty on the discriminator's slope at the generated images."""

from typing import ClassVar

from torch import Tensor, nn

from ganlab import LazyPenalty, NonNegativeSchedule, PatchReduce, Schedule, input_gradient


class R2(LazyPenalty):
    """Zero-centred gradient penalty on generated images (Mescheder et al. 2018, arXiv:1801.04406).

    Adds `weight / 2 * mean over images of |g|^2`, where g is the gradient of the discriminator's
    logit at a generated image, and |g|^2 sums its squares over C, H and W together. `weight` is the
    paper's gamma. R3GAN (arXiv:2501.05441) uses it together with r1, with one gamma for both. The
    images are in 0..1: a quarter of the gamma of a code for images in -1..1 gives the same penalty.

    The logit of an image is the `patch_reduce` of its patch map. The generated images are those
    seen by D, after `augment`. No gradient reaches the generator. D must judge every image alone,
    so it must have no batch norm.
    """

    per_sample: ClassVar[bool] = True
    bounds_slope: ClassVar[bool] = True

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """The paper's gamma; half of it multiplies the squared slope."""

    patch_reduce: PatchReduce = "mean"
    """How a patch map becomes one logit; with `sum` the penalty grows with the square of the map's
    size h * w."""

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        gradient = input_gradient(discriminator, fake, self.patch_reduce)
        return self.weight.value / 2 * gradient.square().sum(1).mean()
