"""Gradient difference: a content loss that compares the edges of the two images."""

from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class GradientDifference(Plugin):
    """Image gradient difference loss (Mathieu et al. 2015, arXiv:1511.05440), with exponent 1.

    Adds `weight * mean ||dx| - |dy||` to the generator's loss. dx and dy are the differences of
    neighbouring pixels in the generated and in the real image, down and to the right. The means
    are over batch, channels and pixels.
    """

    weight: NonNegativeSchedule = Schedule.constant(0.1)
    """Weight of the term; a number, or a table such as { from = 0.1, to = 0, over = 1000 }."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        down, right = (
            (fake.diff(dim=axis).abs() - real.diff(dim=axis).abs()).abs().mean()
            for axis in (-2, -1)
        )
        return {f"G/{self.name}": self.weight.value * (down + right)}
