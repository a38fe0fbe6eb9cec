"""The gradient audit: on one real batch, the gradient norm of each loss on each network."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ganlab.errors import RecipeError
from ganlab.monitoring.attribution import gradients, norm
from ganlab.plugin import Losses
from ganlab.run import Run, discriminators


@dataclass(frozen=True, slots=True)
class Reach:
    """One loss in a step of its network: its value, and its gradient norm on both networks."""

    loss: str
    role: str
    """The network that the step updates, "G" or "D"."""
    value: float
    on_own: float
    on_other: float
    frozen: bool
    """Whether the other network is frozen in this step: none of its parameters takes a gradient."""


@dataclass(slots=True)
class Audit:
    """An observer of `Run.descend` that records every loss of a step, and refuses faulty losses.

    It raises RecipeError for a loss that has no gradient on its own network, or has one on the
    other network; that is not one number; or that is not finite or has a gradient that is not.
    """

    run: Run
    found: list[Reach] = field(default_factory=list)

    @contextmanager
    def __call__(self, role: str, module: nn.Module, losses: Losses) -> Iterator[Losses]:
        others = [self.run.G] if role == "D" else discriminators(self.run)
        other = [p for network in others for p in network.parameters()]
        own = list(module.parameters())
        frozen = not any(p.requires_grad for p in other)
        for name, loss in losses.items():
            self._require_scalar(name, loss)
            if name not in {reach.loss for reach in self.found}:  # one D step of several is enough
                norms = (_on(loss, own), _on(loss, other))
                self.found.append(Reach(name, role, loss.item(), *norms, frozen))
        # before the backward pass, which would fail with a message of torch's own
        self._check([reach for reach in self.found if reach.role == role])
        if not any(loss.requires_grad for loss in losses.values()):
            raise RecipeError(
                f"{self.run.recipe.file}: none of the losses in the step of {role} "
                f"({', '.join(losses)}) depends on {role}, so it would learn nothing"
            )
        yield {}

    def unseen(self, logged: Losses) -> Iterator[str]:
        """Notes on networks that the log shows as trained, but in steps that were not audited."""
        for role in ("D", "G"):
            names = [name for name in logged if name.startswith(f"{role}/")]
            if names and role not in {reach.role for reach in self.found}:
                yield (
                    f"the step of {role} does not go through run.descend, so its losses "
                    f"({', '.join(names)}) were not audited"
                )

    def _require_scalar(self, name: str, loss: object) -> None:
        if not isinstance(loss, Tensor):
            raise self._error(
                name,
                f"{name} has type {type(loss).__name__} ({loss!r}), but a loss must be a tensor "
                "with a gradient; leave out .item() and float()",
            )
        if loss.dim():
            raise self._error(
                name,
                f"{name} has shape {[*loss.shape]}, but must be one number; take the mean",
            )

    def _check(self, reaches: list[Reach]) -> None:
        """Refuse losses that must be a mistake; a loss may be 0 here (a weight scheduled to 0)."""
        for reach in reaches:
            mine, other = ("G", "D") if reach.role == "G" else ("D", "G")
            if not math.isfinite(reach.value):
                raise self._error(reach.loss, f"{reach.loss} is {reach.value} at the first step")
            if not math.isfinite(reach.on_own + reach.on_other):
                raise self._error(
                    reach.loss,
                    f"the gradient of {reach.loss} is not finite; a root or a quotient at 0 has "
                    "such a gradient even where its value is finite",
                )
            if reach.on_own == 0 and reach.value != 0:
                raise self._error(
                    reach.loss,
                    f"{reach.loss} has no gradient on {mine}: its value {reach.value:.4g} is a "
                    "constant for the network, which would not learn from it. Compute it from the "
                    "tensors of the hook, without torch.no_grad(), .detach(), .item() or rounding, "
                    "and with create_graph=True in torch.autograd.grad()",
                )
            if reach.on_other > 0 and not self._couples():
                raise self._error(
                    reach.loss,
                    f"{reach.loss} has a gradient on {other} in the step of {mine} (norm "
                    f"{reach.on_other:.3g}), but a step may update only its own network. Detach "
                    f"the tensors that come from {other}, or freeze {other} in a step of your own",
                )

    def _couples(self) -> bool:
        return any(plugin.couples_players for plugin in self.run.recipe.plugins.values())

    def _error(self, loss: str, fault: str) -> RecipeError:
        """An error that names the plugin with the name of the loss, or else the recipe."""
        plugin = self.run.recipe.plugins.get(loss.partition("/")[2])
        return plugin.error(fault) if plugin else RecipeError(f"{self.run.recipe.file}: {fault}")


def _on(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    return norm(gradients(loss, parameters)).item()


def table(found: list[Reach]) -> Iterator[str]:
    """The audit as lines of text: each loss with its value and its gradient norm on G and D."""
    if not found:
        return
    width = max(len(reach.loss) for reach in found)
    yield f"  {'loss':<{width}}  {'value':>10}  {'on G':>10}  {'on D':>10}"
    for reach in found:
        other = "frozen" if reach.frozen else f"{reach.on_other:.3g}"
        on_g, on_d = (f"{reach.on_own:.3g}", other)[:: 1 if reach.role == "G" else -1]
        idle = "" if reach.on_own else "  0 here: no gradient on its network"
        yield f"  {reach.loss:<{width}}  {reach.value:>10.4g}  {on_g:>10}  {on_d:>10}{idle}"
