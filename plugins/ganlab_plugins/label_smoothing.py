"""One-sided label smoothing: the discriminator is never asked to be certain of a real image."""

from collections.abc import Generator
from typing import Annotated

from pydantic import AfterValidator
from torch import Tensor

from ganlab import Plugin, Schedule, hookimpl

Labels = tuple[Tensor, Tensor]


def _label(schedule: Schedule) -> Schedule:
    if not (0 < schedule.start <= 1 and 0 < schedule.end <= 1):
        raise ValueError("must be above 0 and at most 1")
    return schedule


class LabelSmoothing(Plugin):
    """One-sided label smoothing (Salimans et al. 2016, arXiv:1606.03498, section 3.4).

    Multiplies the label of real images, 1, by `real_label`; labels of fake images stay, since
    smoothing these would teach D to find the generator's mistakes real. The best answer to a surely
    real image is then a finite logit, log(l / (1 - l)) for the label l: 2.197 for 0.9. TF-GAN
    smooths towards 0.5 instead, so that its 0.25 is 0.875 here. Only for a discriminator loss that
    reads labels, such as bce.
    """

    real_label: Annotated[Schedule, AfterValidator(_label)] = Schedule.constant(0.9)
    """The label of real images, above 0 and at most 1; 1 is no smoothing."""

    @hookimpl(wrapper=True)
    def labels(self) -> Generator[None, Labels, Labels]:
        real, fake = yield
        return real * self.real_label.value, fake
