"""Optimizer steps with networks compiled by torch.compile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ganlab.plugin import Batch, Losses
from ganlab.run import Eager, Run, Update
from ganlab.speed.trial import InTheWayError, free_memory, tried


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
            return tried(
                run, update, lambda: update(run, batch), lambda: self._quick(run, update, batch)
            )
        except InTheWayError as error:
            reason = str(error)
        finally:
            self.keeps_graphs = False
        self._refused.add(update)
        run.notes.append(f"the networks run uncompiled in {update.role}'s step: {reason}")
        free_memory(run.device)
        return update(run, batch)

    def _quick(self, run: Run, update: Update, batch: Batch) -> Losses:
        self._active = True
        try:
            return update(run, batch)
        finally:
            self._active = False
