"""Total variation: a content loss that asks for smooth images."""

from torch import Tensor

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class TotalVariation(Plugin):
    """Anisotropic total variation of the generated image (Rudin, Osher and Fatemi 1992).

    Adds `weight * (mean |x[i+1, j] - x[i, j]| + mean |x[i, j+1] - x[i, j]|)` to the generator's
    loss, the means over batch, channels and pixels.
    """

    weight: NonNegativeSchedule = Schedule.constant(0.01)
    """Weight of the term; a number, or a table such as { from = 0.1, to = 0, over = 1000 }."""

    @hookimpl
    def generator_loss(self, fake: Tensor) -> dict[str, Tensor]:
        down = (fake[..., 1:, :] - fake[..., :-1, :]).abs().mean()
        right = (fake[..., :, 1:] - fake[..., :, :-1]).abs().mean()
        return {f"G/{self.name}": self.weight.value * (down + right)}
