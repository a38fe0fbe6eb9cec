"""Optimizer steps with networks compiled by torch.compile."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from ganlab.plugin import Batch, Losses
from ganlab.run import Eager, Run, Update
from ganlab.speed.device import release_memory
from ganlab.speed.trial import InTheWayError, Measure, Snapshot, share_apart, tried

# shares of their length by which gradients and losses of a compiled step may differ
OF_GRADIENTS = {"float64": 1e-6, "float32": 0.02, "bfloat16": 0.02}  # bfloat16: and its rounding
OF_LOSSES = {"float64": 1e-6, "float32": 0.02, "bfloat16": 0.1}


class Compiled(Eager):
    """Networks compiled by torch.compile; losses, penalties and optimizers are not compiled.

    A penalty that differentiates D twice uses the uncompiled network, because torch cannot compile
    this. So does a step in which a plugin has hooks on the network's layers.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._compiled: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        self._active = False
        self._refused: set[Update] = set()
        self._tried: set[Update] = set()

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        if not self._active or any(part._forward_hooks for part in module.modules()):
            return module
        if module not in self._compiled:
            self._compiled[module] = torch.compile(module, backend=self._backend, dynamic=False)
        return self._compiled[module]

    @contextmanager
    def running(self) -> Iterator[None]:
        import torch._dynamo.config as dynamo  # seconds to import, and only needed here
        import torch._functorch.config as functorch

        with (
            # one compilation for each kind of call: frozen or not, with gradient or without
            dynamo.patch(recompile_limit=64),
            # else the backward pass would overwrite tensors that D's step goes through again
            functorch.patch(donated_buffer=False),
        ):
            yield

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        if run.step.as_written or update in self._refused:
            return update(run, batch)
        if update in self._tried:
            return self._quick(run, update, batch)
        self._tried.add(update)
        self.slow_steps += 1
        self.keeps_graphs = True  # the backward pass goes through a shared pass of D twice
        try:
            return self._trial(run, update, batch)
        except InTheWayError as error:
            reason = str(error)
        finally:
            self.keeps_graphs = False
        self._refused.add(update)
        run.notes.append(f"the networks run uncompiled in {update.role}'s step: {reason}")
        release_memory(run.device)
        return update(run, batch)

    def _trial(self, run: Run, update: Update, batch: Batch) -> Losses:
        told: list[Losses] = []

        def plain() -> Losses:
            exact = _exact(run, update, batch, gradients)
            told.append(update(run, batch))
            gradients.allow(exact)
            return told[0]

        def quick() -> Losses:
            losses = self._quick(run, update, batch)
            values = [list(some.values()) for some in (losses, told[0])]
            apart = share_apart(*values)
            if not apart <= OF_LOSSES[run.recipe.precision]:
                raise InTheWayError(f"the losses would differ, by {apart:.2g} of their length")
            return losses

        with Gradients(run, update) as gradients:
            return tried(run, update, plain, quick, gradients)

    def _quick(self, run: Run, update: Update, batch: Batch) -> Losses:
        self._active = True
        try:
            return update(run, batch)
        finally:
            self._active = False


def _exact(run: Run, update: Update, batch: Batch, gradients: "Gradients") -> list[Tensor]:
    """The gradients without bfloat16; empty where it is not used. The state stays as it is."""
    if run.recipe.precision != "bfloat16":
        return []
    before, run.step.full_precision = Snapshot(run), True
    try:
        update(run, batch)
    finally:
        run.step.full_precision = False
        before.restore()
    return gradients.read()


class Gradients(Measure, AbstractContextManager["Gradients"]):
    """The gradients with which an update steps; zeros before the first step.

    Adam's first step is about the sign of each gradient, and rounding decides the sign of a small
    one. So the weights say little: in bfloat16, a right compilation moved them by 0.24 of a step
    differently, from gradients that were 0.07 of their length apart (a small game, on a CPU).
    """

    fault = "the gradients would differ, by {} of their length"

    def __init__(self, run: Run, update: Update) -> None:
        self.tolerance = OF_GRADIENTS[run.recipe.precision]
        self._optimizer, self._parameters = update.optimizer(run), update.parameters(run)
        self._found = [torch.zeros_like(p) for p in self._parameters]

    def __enter__(self) -> "Gradients":
        self._handle = self._optimizer.register_step_pre_hook(lambda *_: self._keep())
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def allow(self, exact: list[Tensor]) -> None:
        """Allow a compiled step to be twice as far from the exact gradients as these ones are.

        So it may be three times as far from these. torch's own tests of its compiler measure by
        exact values too (`torch._dynamo.utils.same`). Networks with batch norm lose much to
        bfloat16.
        """
        if exact:
            self.tolerance += 3 * share_apart(exact, self._found)

    def _keep(self) -> None:
        gradients = [p.grad for p in self._parameters]
        self._found = [
            torch.zeros_like(p) if gradient is None else gradient.detach().clone()
            for p, gradient in zip(self._parameters, gradients, strict=True)
        ]

    def read(self) -> list[Tensor]:
        return self._found
