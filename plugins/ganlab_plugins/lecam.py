"""LeCam regularisation: D's logits of real and fake stay near each other's running means."""

from collections.abc import Generator
from typing import Annotated, Any

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ganlab import (
    Begins,
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    discriminators,
    hookimpl,
)


class Lecam(Plugin):
    """LeCam regularisation for little data (Tseng et al. 2021, arXiv:2104.03310).

    Adds `weight * (mean(max(0, r - F)^2) + mean(max(0, R - f)^2))`, where r and f are the logits of
    real and fake images, and R and F are the running means of r and f, updated just before:
    `R = decay * R + (1 - decay) * mean(r)`. No gradient flows through R and F. Each discriminator
    has its own R and F.

    Before D has made `start` steps, the term is 0, and R and F are the means of the last batch.
    R and F begin with the means of the first batch. In the authors' CIFAR code they begin at 1000,
    which still has an effect for a hundred steps if start is 0.
    """

    weight: NonNegativeSchedule = Schedule.constant(0.3)
    """The paper's lambda; 0.3 is its CIFAR setting, and 0.01 or far less is used at 256 x 256."""

    decay: float = Field(0.99, ge=0, lt=1)
    """Share of a running mean that is kept in each D step."""

    start: Annotated[int, Begins("D steps")] = Field(1000, ge=0, examples=[1])
    """Steps of D after which the term begins; D makes no steps during pretraining."""

    _means: dict[nn.Module, Tensor] = PrivateAttr(default_factory=dict)
    _num_steps: int = PrivateAttr(0)
    _active: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(()))

    @hookimpl
    def run_start(self, run: Run) -> None:
        unknown = torch.full((2,), torch.nan, device=run.device, dtype=run.dtype)
        self._means = {D: unknown.clone() for D in discriminators(run)}
        self._active = torch.zeros((), device=run.device, dtype=run.dtype)
        self._active.fill_(self.start == 0)

    @hookimpl(wrapper=True)
    def discriminator_step(self) -> Generator[None, dict[str, Tensor], dict[str, Tensor]]:
        losses = yield
        self._num_steps += bool(losses)  # without losses D did not step
        self._active.fill_(self._num_steps >= self.start)
        return losses

    @hookimpl
    def penalty(
        self, discriminator: nn.Module, real_logits: Tensor, fake_logits: Tensor
    ) -> dict[str, Tensor]:
        means = self._means[discriminator]
        with torch.no_grad():
            now = self.world.mean(torch.stack([real_logits.mean(), fake_logits.mean()]))
            later = torch.lerp(means, now, 1 - self.decay * self._active)
            means.copy_(torch.where(means.isnan(), now, later))
        real, fake = means
        gap = (real_logits - fake).relu().square().mean()
        gap = gap + (real - fake_logits).relu().square().mean()
        return {f"D/{self.name}": self.weight.value * self._active * gap}

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self._means.values()), "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_steps = state["num_steps"]
        self._active.fill_(self._num_steps >= self.start)
        for mean, saved in zip(self._means.values(), state["means"], strict=True):
            mean.copy_(saved)
