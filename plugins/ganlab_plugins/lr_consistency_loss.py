"""LR consistency: the fake image, shrunk to the size of the condition, should equal it."""

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
    """Distance between the condition and the fake image, shrunk to the same size by bicubic.

        loss = mean |shrink(fake) - condition|   or the mean of its square

    This is the downscaling loss of PULSE (Menon et al. 2020, arXiv:2003.03808), here for a
    generator in training; `lr_psnr` reports the same on held-out images. The bicubic is
    `ganlab.resize`, exact and differentiable. So the loss fits recipes that degrade only by
    `bicubic`: if the condition has blur, noise or JPEG artifacts, the loss asks for them in the
    fake image too. An LR image of 8 bits differs from the unrounded one by 1 / 1020 on average, so
    even a perfect image does not reach 0.
    """

    kind: Literal["l1", "mse"] = "l1"
    """The distance: mean absolute or mean squared difference."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        condition, real = run.condition_shape, run.real_shape
        if len(condition) != 3 or len(real) != 3 or condition[0] != real[0]:
            raise self.error(
                "it needs a condition that is a smaller image, but conditions have shape "
                f"{[*condition]} and real samples have shape {[*real]}"
            )

    @hookimpl
    def generator_loss(self, fake: Tensor, condition: Tensor) -> dict[str, Tensor]:
        height, width = condition.shape[-2:]
        shrunk = resize(fake, (height, width))
        distance = F.l1_loss if self.kind == "l1" else F.mse_loss
        return {f"G/{self.name}": self.weight.value * distance(shrunk, condition.detach())}
