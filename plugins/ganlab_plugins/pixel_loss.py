"""Pixel loss: how far the generated image is from the real one, pixel by pixel."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import NonNegativeSchedule, Plugin, Schedule, hookimpl

CHARBONNIER_EPSILON = 1e-3
"""In the unit of the images; where the Charbonnier loss turns from square to absolute."""


class PixelLoss(Plugin):
    """Distance between the generated and the real image, the mean over all pixels and channels.

    With `d = fake - real`: `l1` is `mean(|d|)`, `mse` is `mean(d^2)`, and `charbonnier` is
    `mean(sqrt(d^2 + eps^2))` with eps = 1e-3 (LapSRN, arXiv:1704.03915). Some codes put 1e-12 or
    1e-6 inside the root instead; here eps itself is squared. Logged as `G/<name>`, times `weight`.
    """

    kind: Literal["l1", "mse", "charbonnier"] = "l1"
    """The distance; `mse` maximises PSNR, `l1` trains faster and ends close to it."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term; beside an adversarial loss often 0.01."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        if self.kind == "l1":
            loss = F.l1_loss(fake, real)
        elif self.kind == "mse":
            loss = F.mse_loss(fake, real)
        else:
            loss = torch.sqrt((fake - real).square() + CHARBONNIER_EPSILON**2).mean()
        return {f"G/{self.name}": self.weight.value * loss}
