"""Approximate R1: r1 from two values of the discriminator, without a second derivative."""

from torch import Tensor, nn

from ganlab import FiniteDifferencePenalty


class ApproximateR1(FiniteDifferencePenalty):
    """Approximated R1 of Seaweed-APT (Lin et al. 2025, arXiv:2501.08316), on real images.

    Adds `weight * mean over images of (D(x) - D(x + sigma n))^2`, where n ~ N(0, 1) for every value
    and D(x) is the score of an image, the `patch_reduce` of its patch map. For a small sigma that
    is, in expectation, `weight sigma^2 |g|^2`: r1 with a gamma of 2 weight sigma^2, which is 0.02
    here. One first derivative instead of a second, for a forward pass through twice the images;
    and the only form for a D that cannot be differentiated twice.

    Both values come from one call of D in full precision: with spectral norm two calls see two D's,
    and in bfloat16 a difference so small is noise. Images are those that the discriminator was
    shown, so after `augment`. D must judge every image alone: no batch norm.
    """

    def term(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return self.at(discriminator, real)
