"""A probability that follows how far the discriminator overfits."""

from collections.abc import Generator, Sequence
from typing import Any, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from ganlab.plugin import Losses, Plugin, hookimpl
from ganlab.run import Run
from ganlab.speed.device import widest_float


class AdaptiveProbability(Plugin):
    """Base of a plugin whose probability p follows how far D overfits.

    The controller of StyleGAN2-ADA (Karras et al. 2020, arXiv:2006.06676). p begins at 0; after
    every `every` D steps it goes

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    r, over all logits since the last time, is 1 when D knows the training images by heart and 0
    when it guesses. It means something only where the sign of a logit is D's verdict, as with bce
    and hinge; with wasserstein set `fixed_p`. p is logged as `D/<name>_p`; it stands still while D
    does not train.
    """

    target: float = Field(0.6, gt=-1, lt=1)
    """The wanted mean sign of D's logits on real images; a lower one makes p higher."""

    speed: float = Field(500.0, gt=0)
    """Thousands of real images seen while p can move by 1; 100 suits fine-tuning (paper's code)."""

    every: int = Field(4, ge=1)
    """D steps from one change of p to the next."""

    initial_p: float = Field(0.0, ge=0, le=1)
    """Probability to begin with."""

    fixed_p: float | None = Field(None, ge=0, le=1)
    """A probability that stays; the options that move it may then not be set."""

    _p: Tensor = PrivateAttr()
    _signs: Tensor = PrivateAttr()  # of the real logits: the sum of their means, and how many
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
        return ["steers by the sign of D's logits, which is no verdict here; set fixed_p"]

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
        self._signs[0] += real_logits.detach().sign().mean()
        self._signs[1] += 1
        return (yield)

    def steered(self, losses: Losses, batch_size: int) -> Losses:
        """To be called after each D step: p moves when it is due, and is added to what is logged.

        :param losses: what the step returned; when empty, D did not step.
        """
        if self.fixed_p is not None or not losses:
            return losses
        self._num_steps += 1
        if self._num_steps % self.every == 0:
            # the sign of the mean less the target, and 0 when there was no logit to look at
            direction = (self._signs[0] - self.target * self._signs[1]).sign()
            stride = batch_size * self.every / (self.speed * 1000)
            self._p.add_(direction * stride).clamp_(min=0)
            self._signs.zero_()
        return losses | {f"D/{self.name}_p": self._p.clone()}

    def state_dict(self) -> dict[str, Any]:
        return {"p": self._p.clone(), "signs": self._signs.clone(), "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._p.copy_(state["p"])
        self._signs.copy_(state["signs"])
        self._num_steps = state["num_steps"]
