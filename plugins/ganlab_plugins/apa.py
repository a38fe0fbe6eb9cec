"""Adaptive pseudo augmentation: D is told that some of the generator's images are real."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from ganlab import Batch, Plugin, discriminator_losses, hookimpl

if TYPE_CHECKING:
    from ganlab import Run

Losses = dict[str, Tensor]


class APA(Plugin):
    """Adaptive pseudo augmentation (Jiang et al. 2021, arXiv:2111.06849).

    In the D step each real image is replaced, with probability p, by what the generator makes of
    the same condition, and judged as a real one: D is deceived, so that it does not overfit. p
    begins at 0; after every `every` D steps it goes

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    with r over all logits of the real and pseudo-real images since the last time (the controller
    of StyleGAN2-ADA, arXiv:2006.06676). r means something only where the sign of a logit is D's
    verdict, as with bce and hinge; with wasserstein set `fixed_p`. p is logged as `D/<name>_p`.

    The paper's code replaces with the images of the generator's last step, made of other inputs.
    Here condition and image must belong together, for a discriminator may see both. Costs one
    more forward pass of G in every D step. It takes the engine's D step, so no other plugin may.
    Penalties see the pseudo-real images among the real ones, lazy ones (`every` > 1) do not.
    """

    target: float = Field(0.6, gt=-1, lt=1)
    """The wanted mean sign of D's logits on real images; a lower one deceives more."""

    speed: float = Field(500.0, gt=0)
    """Thousands of real images seen while p can move by 1."""

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
    def _fixed_or_moving(self) -> "APA":
        for name in ("target", "speed", "every", "initial_p"):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if self.fixed_p is not None and changed:
                raise ValueError(f"{name} has no effect beside fixed_p; leave one of them out")
        return self

    def model_post_init(self, _: Any) -> None:
        start = self.initial_p if self.fixed_p is None else self.fixed_p
        self._p = torch.tensor(start, dtype=torch.float64)
        self._signs = torch.zeros(2, dtype=torch.float64)

    def doubts(self, others: Sequence[Plugin]) -> list[str]:
        if self.fixed_p is not None or not any(other.wants_bounded_slope for other in others):
            return []
        return ["steers by the sign of D's logits, which is no verdict for a critic; set fixed_p"]

    @hookimpl
    def run_start(self, run: "Run") -> None:
        self._p, self._signs = self._p.to(run.device), self._signs.to(run.device)
        for step in run.hook.discriminator_step.get_hookimpls():
            other = step.plugin
            if (
                isinstance(other, Plugin)
                and other is not self
                and not (step.wrapper or step.tryfirst)
            ):
                raise self.error(
                    f"takes the discriminator's step, and so does {other.name}; remove one of them"
                )

    @hookimpl
    def discriminator_step(self, run: "Run", batch: Batch) -> Losses:
        losses, watched = discriminator_losses(run, self._deceived(run, batch))
        losses = run.descend(run.D_optimizer, losses) | watched
        if self.fixed_p is not None:
            return losses
        self._steer(len(batch.real))
        return losses | {f"D/{self.name}_p": self._p.clone()}

    def _deceived(self, run: "Run", batch: Batch) -> Batch:
        with torch.no_grad(), run.autocast():
            fake = run.G(batch.condition).to(batch.real.dtype)
        p = self._p
        u = torch.rand(len(fake), generator=self.rng, dtype=p.dtype, device=p.device)
        chosen = (u < p).view(-1, *[1] * (fake.dim() - 1))
        return Batch(torch.where(chosen, fake, batch.real), batch.condition)

    @hookimpl(wrapper=True)
    def discriminator_loss(self, real_logits: Tensor) -> Generator[None, Tensor, Tensor]:
        self._signs[0] += real_logits.detach().sign().mean()
        self._signs[1] += 1
        return (yield)

    def _steer(self, batch_size: int) -> None:
        self._num_steps += 1
        if self._num_steps % self.every == 0:
            # the sign of the mean less the target
            direction = (self._signs[0] - self.target * self._signs[1]).sign()
            stride = batch_size * self.every / (self.speed * 1000)
            self._p.add_(direction * stride).clamp_(min=0)
            self._signs.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"p": self._p.clone(), "signs": self._signs.clone(), "num_steps": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._p.copy_(state["p"])
        self._signs.copy_(state["signs"])
        self._num_steps = state["num_steps"]
