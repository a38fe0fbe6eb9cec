"""Pixel loss: how far the generated image is from the real one, pixel by pixel."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ganlab import NonNegativeSchedule, Plugin, Schedule, degradation, hookimpl

CHARBONNIER_EPSILON = 1e-3
"""Difference at which Charbonnier turns from square to absolute, in the unit of the images."""


class PixelLoss(Plugin):
    """Distance between the generated and the real image, the mean over all pixels and channels.

    With `d = fake - real`: `l1` is `mean(|d|)`, `mse` is `mean(d^2)`, and `charbonnier` is
    `mean(sqrt(d^2 + eps^2))` with eps = 1e-3 (LapSRN, arXiv:1704.03915). BasicSR puts
    1e-12 in place of eps^2. `huber` is the mean of `d^2 / 2` where
    `|d| <= delta` and of `delta (|d| - delta / 2)` elsewhere (Huber 1964,
    doi:10.1214/aoms/1177703732). It is logged as `G/<name>`, times `weight`.
    """

    kind: Literal["l1", "mse", "charbonnier", "huber"] = "l1"
    """The distance; `mse` maximises PSNR, `l1` trains faster and ends close to it."""

    delta: float = Field(0.1, gt=0)
    """Difference at which `huber` turns from square to absolute, in the unit of the images. At 1
    (torch's default) or more, the loss is half of `mse`."""

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term; with an adversarial loss often 0.01."""

    sharpen: bool = False
    """Compare with the real image after unsharp masking, as Real-ESRGAN does (arXiv:2107.10833).
    The real images seen by D are not sharpened."""

    @model_validator(mode="after")
    def _delta_belongs_to_huber(self) -> "PixelLoss":
        if self.kind != "huber" and self.delta != type(self).model_fields["delta"].default:
            raise ValueError(f"delta changes nothing with kind = '{self.kind}'; leave it out")
        return self

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        real = degradation.sharpen(real) if self.sharpen else real
        if self.kind == "l1":
            loss = F.l1_loss(fake, real)
        elif self.kind == "mse":
            loss = F.mse_loss(fake, real)
        elif self.kind == "huber":
            loss = F.huber_loss(fake, real, delta=self.delta)
        else:
            loss = torch.sqrt((fake - real).square() + CHARBONNIER_EPSILON**2).mean()
        return {f"G/{self.name}": self.weight.value * loss}
