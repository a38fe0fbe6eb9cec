"""One-sided label smoothing: real images get a label below 1, fake images keep theirs."""

from collections.abc import Generator
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import NoEffect, Plugin, Schedule, hookimpl

Labels = tuple[Tensor, Tensor]


def _label(schedule: Schedule) -> Schedule:
    if not (0 < schedule.start <= 1 and 0 < schedule.end <= 1):
        raise ValueError("must be above 0 and at most 1")
    return schedule


class LabelSmoothing(Plugin):
    """One-sided label smoothing (Salimans et al. 2016, arXiv:1606.03498, section 3.4).

    Multiplies the label of real images, 1, by `real_label`. The labels of fake images do not
    change, because smoothing them would teach D to take the generator's mistakes for real. The best
    logit for a certainly real image is then finite: log(l / (1 - l)) for the label l, which is
    2.197 for 0.9. TF-GAN smooths towards 0.5 instead, so its 0.25 is 0.875 here. Only for a
    discriminator loss that reads labels, such as bce.
    """

    real_label: Annotated[
        Schedule,
        AfterValidator(_label),
        Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": 1}),
        NoEffect(1),
    ] = Schedule.constant(0.9)
    """The label of real images; 1 means no smoothing."""

    @hookimpl(wrapper=True)
    def labels(self) -> Generator[None, Labels, Labels]:
        real, fake = yield
        return real * self.real_label.value, fake
