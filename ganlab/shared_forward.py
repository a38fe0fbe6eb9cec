"""One pass of D over G's images for both steps: the recipe's `share_forward`.

With `first = "generator"` both steps train on one batch, and D does not change between them. So
the logits that the G step computed serve the D step too. The graph is cut at G's images: the G step
goes backward through both parts and frees G's part, the D step goes backward through D's part.

Without sharing, D's passes come in the same order, and batch norm's statistics see G's images once.
Gradients are summed in that order, so sharing changes no bit of the result.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganlab.plugin import Batch, Plugin
from ganlab.recipe.model import Recipe


class Cut(NamedTuple):
    """Where the graph of a G step is cut in two."""

    made: Tensor
    """G's images, with the graph to G's weights."""
    leaf: Tensor
    """The same values as a leaf: what D and the content losses are computed from."""

    @classmethod
    def at(cls, made: Tensor) -> "Cut":
        return cls(made, made.detach().requires_grad_())

    def backward(self, loss: Tensor, parameters: list[Tensor]) -> None:
        """Add the gradient of the loss to G's parameters; keep D's part of the graph."""
        loss.backward(inputs=[self.leaf, *parameters], retain_graph=True)
        self.made.backward(self.leaf.grad, inputs=parameters)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a G step leaves for the D step of the same batch."""

    condition: Tensor
    fake: Tensor
    """G's images, without gradient."""
    logits: list[Tensor]
    """One for each discriminator, with the graph to its weights; empty when D judges again."""
    recorded: "list[Pass]" = field(default_factory=list)
    """The same pass in captured graphs, when the G step was replayed too, for comparison."""

    def is_of(self, batch: Batch) -> bool:
        """Whether it was made from this batch, or from the same part of it."""
        return self.condition.is_set_to(batch.condition)

    def unjudged(self) -> "Pass":
        """The same images without D's logits: D judges them again."""
        return Pass(self.condition, self.fake, [])

    def fake_logits(
        self, number: int, judge: Callable[[nn.Module, Tensor], Tensor], D: nn.Module, fake: Tensor
    ) -> Tensor:
        """The logits of G's images for the D step: those of the G step, or computed again.

        :param number: of the discriminator D.
        :param fake: G's images as D sees them in its own step.
        """
        if self.logits:
            return self.logits[number]
        with _statistics_kept(D):  # the G step has counted these images already
            return judge(D, fake)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Context in which batch norm computes as in training but keeps its running statistics."""
    norms: list[Any] = [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def hindrance_to_sharing(
    recipe: Recipe,
    augmenting: Collection[Plugin],
    discriminators: Sequence[nn.Module],
    images: Tensor,
) -> str:
    """Why one pass of D cannot serve both steps; "" when it can.

    Both steps must give D the same images, and D must give the same answer a second time: it must
    not draw random numbers (dropout) or change a buffer (spectral norm). The statistics of batch
    norm may change. D's behaviour is measured on a copy.

    :param augmenting: the plugins that implement `augment`.
    :param images: at least two images that D accepts.
    """
    if recipe.accumulate > 1:
        return f"accumulate = {recipe.accumulate} would keep the passes of all parts in memory"
    for plugin in recipe.plugins.values():
        if plugin.share_forward is False:
            return f"{plugin.name} forbids it"
        if plugin in augmenting and not plugin.share_forward:
            return f"{plugin.name} augments the images again in each step"
    return next((fault for D in discriminators if (fault := _change_left_by(D, images))), "")


def _change_left_by(discriminator: nn.Module, images: Tensor) -> str:
    """What a pass of D in training mode changes for the next pass; "" when nothing."""
    probe = copy.deepcopy(discriminator).train()
    norms = [module for module in probe.modules() if isinstance(module, _BatchNorm)]
    statistics = {id(buffer) for norm in norms for buffer in norm.buffers()}
    others = {n: b.clone() for n, b in probe.named_buffers() if id(b) not in statistics}
    before = _random_state(images.device)
    with torch.no_grad():
        probe(images)
    if not torch.equal(before, _random_state(images.device)):
        return "the discriminator draws random numbers"
    changed = dict(probe.named_buffers())
    for name, buffer in others.items():
        if not torch.equal(buffer, changed[name]):
            return f"each pass of the discriminator changes its {name}"
    return ""


def _random_state(device: torch.device) -> Tensor:
    """State of the generator from which torch's own layers draw on this device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
