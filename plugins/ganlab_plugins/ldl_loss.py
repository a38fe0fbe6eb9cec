"""Locally discriminative loss: an L1 loss with large weights where G makes artifacts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PrivateAttr
from torch import Tensor, nn

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    hookimpl,
)

WINDOW = 7
LEAST = 1e-12  # the fifth root has no finite slope at 0


class LDLLoss(Plugin):
    """Locally discriminative learning (Liang et al. 2022, arXiv:2203.09195): L1 on artifacts.

        loss = mean(w |fake - real|)
        R = sum over channels |fake - real|,   R_average = the same for the averaged generator
        w = var(R)^(1/5) * (variance of R in 7x7 windows), and 0 where R < R_average

    var(R) is over a whole image, both variances are unbiased, and at the edges the windows see a
    mirrored image. Where the averaged generator is worse (R < R_average), the pixel counts as fine
    detail that is still being learnt, not as an artifact. The loss needs a plugin that averages the
    generator, such as `ema`; the averaged generator also runs in every G step, on the same
    condition.
    """

    weight: NonNegativeSchedule = Schedule.constant(1.0)
    """Factor on this term; 1 in the paper."""

    detach_weight: bool = False
    """Treat w as a constant. In the authors' code the gradient passes through it."""

    _average: nn.Module | None = PrivateAttr(None)
    _precision: Callable[[], AbstractContextManager[Any]] | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        # no averaged generator exists yet, so this looks for a plugin that makes one
        if not run.plugins_with("evaluation_generator"):
            raise self.error("it needs an averaged generator, but there is none; add ema")

    @hookimpl
    def run_start(self, run: Run) -> None:
        if len(run.real_shape) != 3 or min(run.real_shape[1:]) <= WINDOW // 2:
            raise self.error(f"it needs images, but real samples have shape {[*run.real_shape]}")

    @hookimpl
    def iteration_start(self, run: Run) -> None:
        self._average = run.hook.evaluation_generator(generator=run.G)
        self._precision = run.autocast
        if self._average is run.G:
            raise self.error("it needs an averaged generator, but there is none; add ema")

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor, condition: Tensor) -> dict[str, Tensor]:
        assert self._average is not None and self._precision is not None
        with torch.no_grad(), self._precision():
            average = self._average(condition).to(real.dtype)
        real = real.detach()
        artifacts = artifact_map(fake, average, real)
        if self.detach_weight:
            artifacts = artifacts.detach()
        loss = (artifacts * (fake - real).abs()).mean()
        return {f"G/{self.name}": self.weight.value * loss}


def artifact_map(fake: Tensor, average: Tensor, real: Tensor) -> Tensor:
    """The weight w of every pixel: [N, 1, H, W], at least 0.

    :param fake, average, real: [N, C, H, W]; `average` is from the averaged generator.
    """
    residual = (fake - real).abs().sum(1, keepdim=True)
    of_average = (average - real).abs().sum(1, keepdim=True)
    whole = residual.var(dim=(1, 2, 3), keepdim=True).clamp(min=LEAST) ** 0.2
    padded = F.pad(residual, [WINDOW // 2] * 4, mode="reflect")
    local = padded.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1).var(dim=(-2, -1))
    return whole * local * (residual >= of_average)
