"""The gradient audit: on one real batch, which loss reaches which network, and how hard."""

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
    """One loss in a step of its network: its value, and the norm of its gradient on both."""

    loss: str
    role: str
    """The network that the step moves, "G" or "D"."""
    value: float
    on_own: float
    on_other: float
    frozen: bool
    """Whether the other network takes no gradient in this step, whatever a loss would give it."""


@dataclass(slots=True)
class Audit:
    """An observer of `Run.descend` that notes every loss of the steps it sees, and refuses some.

    Refused, as RecipeError: a loss without a gradient on its network, or with one on the other; one
    that is no number, or not finite, or whose gradient is not.
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
        # before the backward pass, which would fail in words of torch's own
        self._judge([reach for reach in self.found if reach.role == role])
        if not any(loss.requires_grad for loss in losses.values()):
            raise RecipeError(
                f"{self.run.recipe.file}: none of the losses in the step of {role} "
                f"({', '.join(losses)}) depends on {role}, which would learn nothing"
            )
        yield {}

    def unseen(self, logged: Losses) -> Iterator[str]:
        """Networks that were trained, as the log tells, by steps that nobody could look at."""
        for role in ("D", "G"):
            names = [name for name in logged if name.startswith(f"{role}/")]
            if names and role not in {reach.role for reach in self.found}:
                yield (
                    f"the step of {role} does not go through run.descend, so that its losses "
                    f"({', '.join(names)}) were not audited"
                )

    def _require_scalar(self, name: str, loss: object) -> None:
        if not isinstance(loss, Tensor):
            raise self._error(
                name,
                f"{name} is {type(loss).__name__} {loss!r}, and a loss must be a tensor with its "
                "gradient; leave out .item() and float()",
            )
        if loss.dim():
            raise self._error(
                name, f"{name} is of shape {[*loss.shape]}, and must be one number; take the mean"
            )

    def _judge(self, reaches: list[Reach]) -> None:
        """Refuse what cannot be meant; a loss that is 0 here (a weight scheduled to 0) can be."""
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
                    "constant to the network, which would not learn from it. Compute it from the "
                    "tensors of the hook, without torch.no_grad(), .detach(), .item() or rounding",
                )
            if reach.on_other > 0 and not self._couples():
                raise self._error(
                    reach.loss,
                    f"{reach.loss} has a gradient on {other} in the step of {mine} (norm "
                    f"{reach.on_other:.3g}), which is not its to move. Detach what comes from "
                    f"{other}, or freeze {other} in a step of your own",
                )

    def _couples(self) -> bool:
        return any(plugin.couples_players for plugin in self.run.recipe.plugins.values())

    def _error(self, loss: str, fault: str) -> RecipeError:
        """Blame the plugin after which the loss is named, if there is one."""
        plugin = self.run.recipe.plugins.get(loss.partition("/")[2])
        return plugin.error(fault) if plugin else RecipeError(f"{self.run.recipe.file}: {fault}")


def _on(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    return norm(gradients(loss, parameters)).item()


def table(found: list[Reach]) -> Iterator[str]:
    """The audit as lines of text: a loss each, its value, and its gradient's norm on G and on D."""
    if not found:
        return
    width = max(len(reach.loss) for reach in found)
    yield f"  {'loss':<{width}}  {'value':>10}  {'on G':>10}  {'on D':>10}"
    for reach in found:
        other = "frozen" if reach.frozen else f"{reach.on_other:.3g}"
        on_g, on_d = (f"{reach.on_own:.3g}", other)[:: 1 if reach.role == "G" else -1]
        idle = "" if reach.on_own else "  0 here: pulls at nothing"
        yield f"  {reach.loss:<{width}}  {reach.value:>10.4g}  {on_g:>10}  {on_d:>10}{idle}"
