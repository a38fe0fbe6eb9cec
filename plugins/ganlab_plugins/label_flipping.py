"""Label flipping: now and then the discriminator is told the opposite of the truth."""

from collections.abc import Generator
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor

from ganlab import Plugin, Schedule, hookimpl

Labels = tuple[Tensor, Tensor]


def _probability(schedule: Schedule) -> Schedule:
    if not (0 <= schedule.start <= 1 and 0 <= schedule.end <= 1):
        raise ValueError("must be at least 0 and at most 1")
    return schedule


class LabelFlipping(Plugin):
    """Label flipping (Chintala et al. 2016, "How to train a GAN?", 6: noisy labels).

    Every image, real or generated, takes the other side's label with probability `probability`,
    for the discriminator alone and for all of its patch map at once. In expectation a real
    image's loss is `(1 - p) L(1) + p L(0)`, that of two-sided label smoothing, with noise. The
    labels exchanged are those that the plugins listed before have made. Only for a discriminator
    loss that reads labels, such as bce.
    """

    probability: Annotated[Schedule, AfterValidator(_probability)] = Schedule.constant(0.05)
    """Chance of an image to be flipped, 0 to 1; at 0.5 the labels say nothing."""

    @hookimpl(wrapper=True)
    def labels(self) -> Generator[None, Labels, Labels]:
        real, fake = yield
        return self._flipped(real, fake), self._flipped(fake, real)

    def _flipped(self, labels: Tensor, others: Tensor) -> Tensor:
        one_per_image = [len(labels)] + [1] * (labels.dim() - 1)
        u = torch.rand(one_per_image, generator=self.rng, device=labels.device)
        return torch.where(u < self.probability.value, others, labels)
