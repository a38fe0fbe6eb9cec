"""Approximate R2: the penalty r2 from two values of D, without a second derivative."""

from torch import Tensor, nn

from ganlab import FiniteDifferencePenalty


class ApproximateR2(FiniteDifferencePenalty):
    """Approximated R2 of Seaweed-APT (Lin et al. 2025, arXiv:2501.08316), on generated images.

    Adds `weight * mean over images of (D(x) - D(x + sigma n))^2`, where n ~ N(0, 1) for every value
    and D(x) is the score of an image, the `patch_reduce` of its patch map. For a small sigma its
    expectation is `weight sigma^2 |g|^2`, where g is the gradient of D(x): the penalty of r2 with
    a gamma of 2 weight sigma^2, by default 0.02. It needs a first derivative instead of a second,
    but a forward pass through twice the images. It is the only form for a D that cannot be
    differentiated twice.

    Both values come from one call of D in full precision: with spectral norm, two calls would use
    two different D's, and in bfloat16 a difference this small is noise. The images are those seen
    by D, after `augment`. D must judge every image alone: no batch norm.
    """

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return self.at(discriminator, fake)
