"""A probability that rises while the discriminator overfits and falls while it does not."""

from collections.abc import Generator, Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from ganlab.option import Begins, NoEffect
from ganlab.plugin import Losses, Plugin, hookimpl
from ganlab.run import Run
from ganlab.speed.device import widest_float


class AdaptiveProbability(Plugin):
    """Base of a plugin whose probability p rises while D overfits and falls while it does not.

    The controller of StyleGAN2-ADA (Karras et al. 2020, arXiv:2006.06676). p begins at 0 and is
    updated after every `every` D steps:

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    r is the mean over all logits since the last update: 1 when D knows the training images by
    heart, 0 when it guesses. It is meaningful only where the sign of a logit is D's decision, as
    with bce and hinge; with wasserstein set `fixed_p`. p is logged as `D/<name>_p`. It does not
    change while D does not train.
    """

    target: float = Field(0.6, gt=-1, lt=1)
    """The wanted mean sign of D's logits on real images; a lower target makes p higher."""

    speed: float = Field(500.0, gt=0)
    """Thousands of real images in which p can move by 1; 100 suits fine-tuning (paper's code)."""

    every: Annotated[int, Begins("D steps")] = Field(4, ge=1, examples=[1])
    """D steps from one update of p to the next."""

    initial_p: float = Field(0.0, ge=0, le=1)
    """Probability at the beginning."""

    fixed_p: Annotated[float | None, NoEffect(0)] = Field(None, ge=0, le=1)
    """A constant probability; the options that change p may then not be set."""

    _p: Tensor = PrivateAttr()
    _signs: Tensor = PrivateAttr()  # of the real logits: sum of the mean signs, number of means
    _num_steps: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _fixed_or_moving(self) -> Self:
        for name in ("target", "speed", "every", "initial_p"):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if self.fixed_p is not None and changed:
                raise ValueError(f"{name} has no effect beside fixed_p; leave one of them out")
        return self

    def model_post_init(self, _: Any) -> None:
        start = self.initial_p if self.fixed_p is None else self.fixed_p
        self._p = torch.tensor(start, dtype=torch.float64)
        self._signs = torch.zeros(2, dtype=torch.float64)

    def warnings(self, others: Sequence[Plugin]) -> list[str]:
        if self.fixed_p is not None or any(other.judges_by_sign for other in others):
            return []
        return ["follows the sign of D's logits, which is not D's decision here; set fixed_p"]

    @property
    def p(self) -> Tensor:
        """The probability, 0-d, float64, on the run's device."""
        return self._p

    @hookimpl
    def run_start(self, run: Run) -> None:
        exact = widest_float(run.device)
        self._p, self._signs = (t.to(exact).to(run.device) for t in (self._p, self._signs))

    @hookimpl(wrapper=True)
    def discriminator_loss(self, real_logits: Tensor) -> Generator[None, Tensor, Tensor]:
        self._signs[0] += self.world.mean(real_logits.detach().sign().mean())
        self._signs[1] += 1
        return (yield)

    def steered(self, losses: Losses, batch_size: int) -> Losses:
        """Update p when an update is due, and add p to the logged losses; call after each D step.

        :param losses: what the step returned; when empty, D did not step.
        :param batch_size: samples of the step in this process.
        """
        if self.fixed_p is not None or not losses:
            return losses
        self._num_steps += 1
        if self._num_steps % self.every == 0:
            # the sign of (mean - target), or 0 when there were no logits since the last update
            direction = (self._signs[0] - self.target * self._signs[1]).sign()
            stride = batch_size * self.world.size * self.every / (self.speed * 1000)
            self._p.add_(direction * stride).clamp_(min=0)
            self._signs.zero_()
        return losses | {f"D/{self.name}_p": self._p.clone()}

    def state_dict(self) -> dict[str, Any]:
        return {"p": self._p.clone(), "signs": self._signs.clone(), "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._p.copy_(state["p"])
        self._signs.copy_(state["signs"])
        self._num_steps = state["num_steps"]
