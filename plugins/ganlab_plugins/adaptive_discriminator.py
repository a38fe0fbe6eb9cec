"""Adaptive discriminator: it rests while the generator is losing ground."""

import math
from collections.abc import Generator
from typing import Any

import torch
from pydantic import Field, PrivateAttr

from ganlab import (
    Losses,
    Plugin,
    Run,
    hookimpl,
)


class AdaptiveDiscriminator(Plugin):
    """Skip updates of the discriminator when it pulls ahead (traiNNer-redux, 2024: `adaptive_d`).

    After every G step `average = decay * average + (1 - decay) * loss`, where loss is the
    generator's adversarial term. When the new average exceeds the old one times `threshold`, the
    discriminator's next update, or the `d_steps` of them, is skipped. Logged as `D/<name>`: 1 when
    it will be.

    The average begins with the first loss; in traiNNer-redux it begins at 0, so that it rises,
    and D rests, for about the first 50 iterations. Since it compares by a ratio, the loss must be
    positive, as that of bce, lsgan and relativistic_average is. Costs one device sync a G step.
    """

    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the average that stays at a G step."""

    threshold: float = Field(1.02, gt=0)
    """How many times the old average the new one may be without a pause. At 1.02 and a decay of
    0.999, a loss 21 times its average pauses D; nearer to 1 it pauses sooner."""

    _average: float = PrivateAttr(math.nan)
    _rests: bool = PrivateAttr(False)

    @hookimpl(wrapper=True)
    def generator_step(self) -> Generator[None, Losses, Losses]:
        losses = yield
        if "G/adversarial" not in losses:  # pretraining
            return losses
        loss = losses["G/adversarial"].item()
        if loss < 0:
            raise self.error(
                f"G/adversarial is {loss:.3g}, and {self.name} compares by a ratio, for which it "
                f"must be positive; use an objective such as bce, or remove {self.name}"
            )
        old = loss if math.isnan(self._average) else self._average
        self._average = self.decay * old + (1 - self.decay) * loss
        self._rests = self._average > old * self.threshold
        rests = torch.full_like(losses["G/adversarial"], self._rests)
        return losses | {f"D/{self.name}": rests}

    @hookimpl(tryfirst=True)
    def discriminator_step(self, run: Run) -> Losses | None:
        return {} if self._rests else None

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "rests": self._rests}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average, self._rests = state["average"], state["rests"]
