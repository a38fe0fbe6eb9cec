"""One iteration looked at loss by loss and plugin by plugin: what is the first that is not finite?

For a value, each answer of a plugin and each output of a network is looked at, in the order in
which they are made. For a gradient, each loss goes backward alone, and each operation on the way is
looked at.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import Diverged
from ganlab.iteration import iterate
from ganlab.monitoring.attribution import gradients, norm
from ganlab.monitoring.calls import Watch, is_finite, watching
from ganlab.plugin import Batch, Losses, Plugin
from ganlab.run import Eager, Run, Terms, Update, discriminators
from ganlab.soundness import networks_of, unsound_part, weights_are_finite

LARGE = 1e4  # trained weights stay within some tens
_ROOT_OR_QUOTIENT = "Sqrt|Rsqrt|Pow|Div|Log|Norm|LinalgVectorNorm"  # names of torch's nodes
_OF_TERMS = ("discriminator_loss", "penalty", "generator_loss")
_OF_STEPS = ("discriminator_step", "generator_step")


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing in an iteration that is not finite."""

    what: str
    """A sentence, or several."""
    step: str = ""
    """The optimizer step in which it arose, such as "step 1 of D"; empty outside of a step."""

    @property
    def tensor(self) -> str:
        """What is not finite, such as "the gradient of D/root on D", without the rest."""
        return re.split(r" (?:is|are) (?:not finite|so large|too large)|,? though|;", self.what)[0]


@dataclass(slots=True)
class Examination(Eager):
    """An execution of steps that looks at each loss, and at each answer that it is made of."""

    run: Run
    fault: Fault | None = None
    overflow: Fault | None = None
    """A gradient whose numbers are finite, but not its norm."""
    origin: str = ""
    """Where the first tensor that is not finite came from."""
    owners: dict[str, str] = field(default_factory=dict)
    """The plugin and the hook that each loss comes from."""
    stepping: list[str] = field(default_factory=list)
    """The plugins whose step hooks run now, the innermost last."""
    kept: dict[str, nn.Module] = field(default_factory=dict)
    """The networks whose weights are looked at, by name."""
    taken: Counter[str] = field(default_factory=Counter)
    """The number of optimizer steps of each network so far."""
    seen: list[str] = field(default_factory=list)
    """All that is not finite, in the order in which it arises, each once."""
    samples: list[str] = field(default_factory=list)
    """What the data plugins say about the batch of the step with the first fault."""

    def of_an_iteration(self) -> Fault | None:
        """Take one iteration; returns its first fault, or None when all is finite."""
        run = self.run
        run.execution = self
        self.kept = networks_of(run)
        with ExitStack() as watched:
            watched.enter_context(watching(run.manager, lambda *call: _Watch(self, *call)))
            watched.enter_context(_lines_noted())
            for name, network in self._networks():
                handle = network.register_forward_hook(
                    lambda _, given, made, name=name: self.made(made, f"the output of {name}")
                )
                watched.callback(handle.remove)
            try:
                losses = iterate(run)
            except Diverged as refused:  # by the guard of a step
                return self.fault or self.overflow or Fault(refused.what, refused.step)
        bad = [name for name, value in losses.items() if not is_finite(value)]
        if bad and not self.fault:  # only logged: no step descends it
            self.fault = self._of_values(bad)
        part = "" if self.fault or self.overflow else unsound_part(run)
        return self.fault or self.overflow or (Fault(f"{part} not finite") if part else None)

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        """Take a step as written, and look at each of its losses before the step is taken."""
        self.taken[update.role] += 1
        if is_finite(batch):
            self.origin = ""
        self.made(batch, "the batch")
        if not (self.fault or self.overflow):
            self.samples = [one for some in run.hook.samples_drawn() for one in some]
        largest = [0.0]

        def examined(run: Run, part: Batch) -> Terms:
            terms = update.losses(run, part)
            largest.append(self._look_at(update, terms.losses))
            return terms

        losses = Update(update.role, examined)(run, batch)
        if not self.fault and update.role in networks_that_fail(self.kept):
            optimizer = type(update.optimizer(run)).__name__
            self.fault = Fault(
                f"every loss and its gradient is finite, but after the step of {optimizer} the "
                f"weights of {update.role} are not. No single loss is the cause: the learning rate "
                f"or the gradient (norm {max(largest):.2g}) is too large",
                self._step(update.role),
            )
        return losses

    def made(self, answer: Any, maker: str) -> None:
        """Note who made a tensor that is not finite; `origin` is the first."""
        if is_finite(answer):
            return
        self.origin = self.origin or maker
        self._note(maker)

    def _note(self, line: str) -> None:
        if line not in self.seen:
            self.seen.append(line)

    def changed(self, maker: str) -> None:
        """Note a plugin after whose change the gradients before a step are not finite."""
        for name, network in self._networks():
            left = [p.grad for p in network.parameters() if p.grad is not None]
            if not self.fault and not is_finite(left):
                what = f"the gradient of {name} is not finite after {maker}"
                self.fault = Fault(what, self._step(name))

    def _look_at(self, update: Update, losses: Losses) -> float:
        """Look at the values and the gradients of losses; returns the largest gradient norm."""
        parameters = list(update.module(self.run).parameters())
        step = self._step(update.role)
        bad = [name for name, loss in losses.items() if not is_finite(loss)]
        if bad and not self.fault:
            self.fault = self._of_values(bad, step)
        norms = [0.0]
        for name, loss in losses.items():
            pull = gradients(loss, parameters)
            norms.append(norm(pull).item())
            told = f"the gradient of {name} on {update.role}"
            if not is_finite(loss):
                self._note(f"the loss {name}")
            if wrong := sum(not is_finite(one) for one in pull):
                self._note(f"{told}, in {wrong} of {len(pull)} tensors")
            if not self.fault and not is_finite(pull):
                rest = self._owner(name) + self._reach() + self._operation(loss, parameters)
                told += f" is not finite, though its value {loss.item():.4g} is"
                self.fault = Fault(told + rest, step)
            elif not self.overflow and not math.isfinite(norms[-1]):
                told += " is so large that its norm overflows"
                self.overflow = Fault(told + self._owner(name) + self._reach(), step)
        return max(norms)

    def _of_values(self, losses: list[str], step: str = "") -> Fault:
        source = f"; it comes from {self.origin}" if self.origin else self._owner(losses[0])
        return Fault(f"{', '.join(losses)} is not finite{source}{self._reach()}", step)

    def _step(self, role: str) -> str:
        return f"step {self.taken[role]} of {role}"

    def _owner(self, loss: str) -> str:
        """The plugin that a loss is of, or else the plugin whose step is running."""
        named = self.run.recipe.plugins.get(loss.partition("/")[2])
        steps = [f"the step of {plugin}" for plugin in self.stepping if plugin != "engine"]
        source = self.owners.get(loss) or (named.name if named else "") or "".join(steps[-1:])
        return f"; the loss is of {source}" if source else ""

    def _reach(self) -> str:
        """The largest weight of each network, where it is so large that the numbers overflow."""
        found = [(name, _largest(network)) for name, network in self._networks()]
        told = [f"the weights of {name} reach {size:.2g}" for name, size in found if size > LARGE]
        return f" ({', '.join(told)})" if told else ""

    def _operation(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> str:
        """The operation whose backward pass makes the gradient not finite, and its line."""
        node = _culprit(loss, parameters)
        if node is None:
            return ""
        where = f". It arises in {node.name()}"
        files = {
            file: name
            for name, plugin in self.run.recipe.plugins.items()
            for file in _files_of(plugin)
        }
        for frame in reversed(node.metadata.get("traceback_", [])):
            found = re.search(r'File "(.+)", line (\d+), in (\w+)\n\s*(.*)', frame)
            if found and found[1] in files:
                name = files[found[1]]
                where += f", in {name}, {found[3]}, line {found[2]}: {found[4]}"
                break
        if re.match(_ROOT_OR_QUOTIENT, node.name()):
            where += ". A root or a quotient has no finite gradient at 0: add a small number in it"
        return where

    def _networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield "G", self.run.G
        for D in discriminators(self.run):
            yield "D", D


class _Watch(Watch):
    """Watches one call of a hook for an `Examination`."""

    def __init__(self, examination: Examination, hook: str, plugin: str, wraps: bool) -> None:
        self._examination, self._hook, self._plugin = examination, hook, plugin

    def __enter__(self) -> None:
        if self._hook in _OF_STEPS:
            self._examination.stepping.append(self._plugin)

    def __exit__(self, *error: object) -> None:
        if self._hook in _OF_STEPS:
            self._examination.stepping.pop()

    def answered(self, answer: Any) -> None:
        examination = self._examination
        maker = f"{self._plugin} (hook {self._hook})"
        examination.made(answer, maker)
        if self._hook in _OF_TERMS:
            names = answer if isinstance(answer, dict) else ["D/adversarial"]
            examination.owners |= dict.fromkeys(names, maker)
        if self._hook == "gradients":
            examination.changed(maker)
        # when an answer was not finite before, that has reached buffers, such as batch norm's
        known = examination.fault or examination.origin
        if not known and (failed := networks_that_fail(examination.kept)):
            examination.fault = Fault(f"the weights of {failed[0]} are not finite after {maker}")


@contextmanager
def _lines_noted() -> Iterator[None]:
    """Context in which autograd notes at which line each operation was called."""
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        yield


def _files_of(plugin: Plugin) -> set[str]:
    """The files of a plugin's own methods, as they stand in tracebacks."""
    return {
        function.__code__.co_filename
        for function in vars(type(plugin)).values()
        if isinstance(function, FunctionType)
    }


def _culprit(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Any:
    """The first node of a backward pass that gets finite gradients and gives others; or None."""
    found: list[Any] = []

    def hook_of(node: Any) -> Callable[[Any, Any], None]:
        def note(given: Any, got: Any) -> None:
            if not found and is_finite(got) and not is_finite(given):
                found.append(node)

        return note

    handles = [node.register_hook(hook_of(node)) for node in _nodes(loss)]
    gradients(loss, parameters)
    for handle in handles:
        handle.remove()
    return found[0] if found else None


def _nodes(loss: Tensor) -> set[Any]:
    """Every node of a loss's graph, without the leaves."""
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen and not hasattr(node, "variable"):
            seen.add(node)
            waiting += [other for other, _ in node.next_functions]
    return seen


def networks_that_fail(networks: dict[str, nn.Module]) -> list[str]:
    """The names of the networks with a weight that is not finite."""
    return [name for name, network in networks.items() if not weights_are_finite(network)]


def _largest(network: nn.Module) -> float:
    return max((p.detach().abs().max().item() for p in network.parameters()), default=0.0)
