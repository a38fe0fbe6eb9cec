"""Consistency: a shifted or mirrored image should get the same score of D as the image."""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl


class Consistency(Plugin):
    """Consistency regularisation (Zhang et al. 2019, arXiv:1910.12027), optionally balanced.

    Adds `real * mean((D(x) - D(T(x)))^2) + fake * mean((D(y) - D(T(y)))^2)`, with means over the
    real images x and the generated images y. D(x) is the score of an image, the mean of its patch
    map (T moves what a position sees). T is drawn for every image: it mirrors left to right with
    probability 1/2, and shifts by whole pixels, up to `shift` of either side, with reflection at
    the border. With `fake` above 0 this is bCR (Zhao et al. 2020, arXiv:2002.04724).

    Gradients flow through both scores of D, and none flows to G. The images are those seen by D,
    after `augment`. D(x) and D(T(x)) come from one more call of D, on twice the images in full
    precision: with spectral norm, two calls would use two different D's.
    """

    images_only: ClassVar[bool] = True

    real: NonNegativeSchedule = Schedule.constant(10.0)
    """Weight of the term of real images, the papers' lambda."""

    fake: NonNegativeSchedule = Schedule.constant(0.0)
    """Weight of the term of generated images; bCR has 10 for both."""

    shift: float = Field(0.125, ge=0, lt=1)
    """Largest shift, as a share of height and width, rounded down to pixels."""

    @model_validator(mode="after")
    def _has_a_side(self) -> "Consistency":
        if not (_is_on(self.real) or _is_on(self.fake)):
            raise ValueError("real and fake are both 0, so it does nothing; raise one of them")
        return self

    @hookimpl
    def penalty(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        sides = [(self.real, real), (self.fake, fake)]
        terms = [
            weight.value * self._gap(discriminator, images.detach())
            for weight, images in sides
            if _is_on(weight)
        ]
        return {f"D/{self.name}": torch.stack(terms).sum()}

    def _gap(self, discriminator: nn.Module, images: Tensor) -> Tensor:
        both = torch.cat([images, self.moved(images)])
        plain, moved = discriminator(both).flatten(1).mean(1).chunk(2)
        return (plain - moved).square().mean()

    def moved(self, images: Tensor) -> Tensor:
        """T: every image [C, H, W] mirrored or not, and shifted."""
        n, _, height, width = images.shape
        device = images.device
        rows, columns = (self._reflected(n, side, device) for side in (height, width))
        mirror = torch.rand(n, 1, generator=self.rng, device=device) < 0.5
        columns = torch.where(mirror, width - 1 - columns, columns)
        every = torch.arange(n, device=device)[:, None, None]
        # indices on both sides of a slice move the channels to the end
        return images[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _reflected(self, n: int, side: int, device: torch.device) -> Tensor:
        """For each image, from which row (or column) each of its rows comes: [n, side]."""
        most = int(side * self.shift)
        by = torch.randint(-most, most + 1, (n, 1), generator=self.rng, device=device)
        index = (torch.arange(side, device=device) + by).abs()
        return side - 1 - (side - 1 - index).abs()


def _is_on(weight: Schedule) -> bool:
    return weight.moves or weight.start > 0
