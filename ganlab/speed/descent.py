"""One optimizer step down the losses of a batch, as it is; `fast.py` has the quicker ways."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganlab.plugin import Batch
from ganlab.steps import Losses, Terms, mean

if TYPE_CHECKING:
    from ganlab.engine import Run

LossesOf = Callable[["Run", Batch], Terms]


@dataclass(frozen=True, slots=True)
class Update:
    """What moves one network: a function from a batch to its losses. Called, it takes the step."""

    role: Literal["G", "D"]
    losses: LossesOf

    def module(self, run: "Run") -> nn.Module:
        module = run.G if self.role == "G" else run.D
        assert module is not None
        return module

    def optimizer(self, run: "Run") -> Optimizer:
        optimizer = run.G_optimizer if self.role == "G" else run.D_optimizer
        assert optimizer is not None
        return optimizer

    def parameters(self, run: "Run") -> list[Tensor]:
        return [p for p in self.module(run).parameters() if p.requires_grad]

    def __call__(self, run: "Run", batch: Batch) -> Losses:
        """Losses, backward and step, in the recipe's `accumulate` parts of the batch.

        :returns: the losses, detached, what else is to be logged, and what the observer of a
            watched step saw; means over the parts.
        """
        module, optimizer, parameters = self.module(run), self.optimizer(run), self.parameters(run)
        parts = batch.parts(run.recipe.accumulate)
        found: list[Losses] = []
        seen: Losses = {}
        optimizer.zero_grad(set_to_none=True)
        with ExitStack() as observing:
            for part in parts:
                terms = self.losses(run, part)
                if run.observer and not found:  # of several parts the first is enough
                    seen = observing.enter_context(run.observer(self.role, module, terms.losses))
                _backward(terms, parameters, len(parts), run.fast.keeps_graphs)
                found.append({n: v.detach() for n, v in (terms.losses | terms.logged).items()})
            optimizer.step()
            # not kept for the other network's step: less memory at its peak
            optimizer.zero_grad(set_to_none=True)
        return mean(found) | seen


def _backward(terms: Terms, parameters: list[Tensor], parts: int, keep: bool) -> None:
    """Add the gradient of the sum of the losses, over the number of parts."""
    total = torch.stack(list(terms.losses.values())).sum()
    total = total / parts if parts > 1 else total
    if terms.cut is None:
        total.backward(inputs=parameters, retain_graph=keep)
        return
    made, fake = terms.cut
    # D's part of the graph is kept for D's step, and G's part goes now
    total.backward(inputs=[fake, *parameters], retain_graph=True)
    made.backward(fake.grad, inputs=parameters)
