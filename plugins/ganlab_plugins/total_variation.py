"""Total variation: neighbouring pixels should be similar."""

from typing import Literal

from torch import Tensor

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    hookimpl,
)


class TotalVariation(Plugin):
    """Total variation of the generated image, a prior against noise (Rudin, Osher and Fatemi 1992).

        l1:  mean |x(i + 1, j) - x(i, j)| + mean |x(i, j + 1) - x(i, j)|
        mse: the same with squares

    The means are over images, channels and pairs of neighbours, so the value does not depend on the
    size of the crop (doi:10.1016/0167-2789(92)90242-F). Johnson et al. 2016, arXiv:1603.08155, use
    it as a loss of a network. It is anisotropic: the paper takes the length of the gradient, whose
    slope is not finite where the image is flat. It does not use the real image, so keep it small.
    """

    kind: Literal["l1", "mse"] = "l1"
    """`l1` keeps edges, `mse` blurs them."""

    weight: NonNegativeSchedule = Schedule.constant(0.01)
    """Factor on this term, which is about 0.05 to 0.2 for natural images."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        if len(run.real_shape) != 3 or min(run.real_shape[1:]) < 2:
            raise self.error(f"needs images, but real samples have shape {[*run.real_shape]}")

    @hookimpl
    def generator_loss(self, fake: Tensor) -> dict[str, Tensor]:
        steps = [fake.diff(dim=axis) for axis in (-2, -1)]
        sizes = [step.abs() if self.kind == "l1" else step.square() for step in steps]
        return {f"G/{self.name}": self.weight.value * (sizes[0].mean() + sizes[1].mean())}
