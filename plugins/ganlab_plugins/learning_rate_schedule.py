"""Learning rates that change over the run."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import Optimizer

from ganlab import (
    Begins,
    MayChange,
    NoEffect,
    Plugin,
    Run,
    Schedule,
    hookimpl,
)

# the options that each kind needs, and the other options that it reads
_NEEDS = {"constant": {"warmup"}, "linear": {"over"}, "cosine": {"over"}, "step": {"milestones"}}
_READS = {
    "constant": set[str](),
    "linear": {"after", "end"},
    "cosine": {"after", "end", "cycles"},
    "step": {"factor", "factors"},
}


class LearningRateSchedule(Plugin):
    """Multiplies every learning rate of both optimizers by a factor that depends on the iteration.

    With `p = clamp((iteration - after) / over, 0, 1)`, the factor of `linear` is
    `1 + (end - 1) p`; that of `cosine` is `end + (1 - end) (1 + cos(pi p)) / 2`, repeated `cycles`
    times (SGDR, arXiv:1608.03983); that of `step` is `factor ^ (milestones reached)`, or the
    product of the `factors` reached. In the first `warmup` iterations, it is also multiplied by
    `(iteration + 1) / warmup`. Iterations count from 0. The base rates are those that the
    optimizers were made with. They are saved with the optimizers (`initial_lr`), so a resumed run
    continues exactly.
    """

    kind: Annotated[Literal["constant", "linear", "cosine", "step"], MayChange()] = Field(
        examples=["cosine"]
    )
    """The form of the decay; `constant` has only the warm-up."""

    over: Annotated[int | None, MayChange()] = Field(None, ge=1, examples=[10])
    """Iterations that `linear` and `cosine` take to fall to `end`."""

    after: Annotated[int, Begins("iterations"), MayChange()] = Field(0, ge=0)
    """Iterations at the full rate before `linear` or `cosine` begins."""

    end: Annotated[float, NoEffect(1), MayChange()] = Field(0.0, ge=0, le=1)
    """Share of the base rate at which `linear` and `cosine` end; it stays there."""

    cycles: Annotated[int, MayChange()] = Field(1, ge=1)
    """How often `cosine` falls from the full rate, each time in `over` iterations."""

    milestones: Annotated[tuple[int, ...], Begins("iterations"), MayChange()] = ()
    """Iterations at which `step` multiplies the rate by `factor`."""

    factor: Annotated[float, NoEffect(1), MayChange()] = Field(0.5, gt=0, le=1)
    """Factor by which `step` multiplies the rate at each milestone."""

    factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], MayChange()] = ()
    """Instead of `factor`, one factor per milestone; above 1 where a new phase begins."""

    warmup: Annotated[int, NoEffect(1), MayChange()] = Field(0, ge=0)
    """Iterations over which the rate rises linearly to its full value; 0 means no warm-up."""

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> "LearningRateSchedule":
        needs, reads = _NEEDS[self.kind], _READS[self.kind]
        missing = [name for name in needs if not getattr(self, name)]
        if missing:
            raise ValueError(f"kind = '{self.kind}' needs {missing[0]}")
        fields = type(self).model_fields
        changed = {n for n in fields if getattr(self, n) != fields[n].get_default()}
        idle = changed - needs - reads - {"kind", "warmup"}
        if idle:
            raise ValueError(
                f"kind = '{self.kind}' does not read {', '.join(sorted(idle))}; leave it out"
            )
        if self.factors and len(self.factors) != len(self.milestones):
            raise ValueError(
                f"there are {len(self.milestones)} milestones and {len(self.factors)} factors; "
                "give one factor for each milestone"
            )
        if self.factors and "factor" in changed:
            raise ValueError(
                "factor and factors are both set, but only one can be used; leave one out"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must rise")
        return self

    def factor_at(self, iteration: int) -> float:
        """The factor on the base learning rates at an iteration, counted from 0."""
        warm = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "step":
            reached = sum(m <= iteration for m in self.milestones)
            return warm * math.prod((self.factors or (self.factor,) * reached)[:reached])
        if self.kind == "constant" or self.over is None:
            return warm
        if self.after + self.over <= iteration < self.after + self.over * self.cycles:
            iteration = self.after + (iteration - self.after) % self.over
        decay = Schedule.model_validate(
            {
                "from": 1.0,
                "to": self.end,
                "over": self.over,
                "after": self.after,
                "shape": self.kind,
            }
        )
        return warm * decay.at(iteration)

    @hookimpl
    def run_start(self, run: Run) -> None:
        for optimizer in _optimizers(run):
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", float(group["lr"]))

    @hookimpl
    def iteration_start(self, run: Run) -> None:
        factor = self.factor_at(run.iteration)
        for optimizer in _optimizers(run):
            for group in optimizer.param_groups:
                learning_rate = group["initial_lr"] * factor
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(learning_rate)  # a captured graph reads this very tensor
                else:
                    group["lr"] = learning_rate


def _optimizers(run: Run) -> list[Optimizer]:
    return [optimizer for optimizer in (run.G_optimizer, run.D_optimizer) if optimizer is not None]
