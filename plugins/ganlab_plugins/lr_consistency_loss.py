"""LR consistency: the generated image, shrunk, should be what the generator was shown."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    hookimpl,
    resize,
)


class LRConsistencyLoss(Plugin):
    """Distance between the condition and the generated image shrunk to its size by bicubic.

        loss = mean |shrink(fake) - condition|   or the mean of its square

    The downscaling loss of PULSE (Menon et al. 2020, arXiv:2003.03808), here of a generator in
    training; `lr_psnr` reports the same on held-out images. The bicubic is `ganlab.resize`, exact
    and differentiable, so the loss fits a recipe that degrades by `bicubic` alone: what blur, noise
    or JPEG did to the condition it would ask of the generated image too. LR of 8 bits is off its
    unrounded self by 1 / 1020 in the mean, so even a perfect image does not reach 0.
    """

    kind: Literal["l1", "mse"] = "l1"
    """The distance."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        condition, real = run.condition_shape, run.real_shape
        if len(condition) != 3 or len(real) != 3 or condition[0] != real[0]:
            raise self.error(
                f"needs a condition that is a smaller image: it is of shape {[*condition]}, real "
                f"samples of {[*real]}"
            )

    @hookimpl
    def generator_loss(self, fake: Tensor, condition: Tensor) -> dict[str, Tensor]:
        height, width = condition.shape[-2:]
        shrunk = resize(fake, (height, width))
        distance = F.l1_loss if self.kind == "l1" else F.mse_loss
        return {f"G/{self.name}": self.weight.value * distance(shrunk, condition.detach())}
