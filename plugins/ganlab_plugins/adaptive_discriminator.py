"""Adaptive discriminator: its updates are skipped while the generator's loss rises."""

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
    """Skips updates of D while the generator's loss rises (traiNNer-redux, 2024: `adaptive_d`).

    After every G step `average = decay * average + (1 - decay) * loss`, where loss is the
    generator's adversarial term. When the new average exceeds the old one times `threshold`, the
    discriminator's next update, or all `d_steps` of them, is skipped. `D/<name>` is logged: 1 when
    it will be skipped.

    The average begins at the first loss. In traiNNer-redux it begins at 0, so it rises, and D is
    skipped, for about the first 50 iterations. The comparison is a ratio, so the loss must be
    positive, as with bce, lsgan and relativistic_average. It costs one device sync per G step.
    """

    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the old average that is kept at each G step."""

    threshold: float = Field(1.02, gt=0)
    """D pauses when the new average exceeds the old one times this number. At 1.02 and a decay of
    0.999, a loss 21 times its average pauses D; nearer to 1, D pauses sooner."""

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
                f"G/adversarial is {loss:.3g}, but {self.name} compares by a ratio, so it "
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
