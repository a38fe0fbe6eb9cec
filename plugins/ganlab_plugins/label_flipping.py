"""Label flipping: the discriminator gets the wrong label for some random images."""

from collections.abc import Generator
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlab import NoEffect, Plugin, Schedule, hookimpl

Labels = tuple[Tensor, Tensor]


def _probability(schedule: Schedule) -> Schedule:
    if not (0 <= schedule.start <= 1 and 0 <= schedule.end <= 1):
        raise ValueError("must be at least 0 and at most 1")
    return schedule


class LabelFlipping(Plugin):
    """Label flipping (Chintala et al. 2016, "How to train a GAN?", 6: noisy labels).

    In the discriminator's loss, every image gets the label of the other kind, real or fake, with
    probability p = `probability`, for its whole patch map at once. The generator's loss does not
    change. In expectation a real image's loss is `(1 - p) L(1) + p L(0)`, that of two-sided label
    smoothing; flipping adds noise to it. The labels that are exchanged are those that the plugins
    listed before have made. Only for a discriminator loss that reads labels, such as bce.
    """

    probability: Annotated[
        Schedule,
        AfterValidator(_probability),
        Field(json_schema_extra={"minimum": 0, "maximum": 1}),
        NoEffect(0),
    ] = Schedule.constant(0.05)
    """Probability that an image's label is flipped; at 0.5 the labels say nothing."""

    @hookimpl(wrapper=True)
    def labels(self) -> Generator[None, Labels, Labels]:
        real, fake = yield
        return self._flipped(real, fake), self._flipped(fake, real)

    def _flipped(self, labels: Tensor, others: Tensor) -> Tensor:
        one_per_image = [len(labels)] + [1] * (labels.dim() - 1)
        u = torch.rand(one_per_image, generator=self.rng, device=labels.device)
        return torch.where(u < self.probability.value, others, labels)
