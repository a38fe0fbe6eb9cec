"""Feature matching: the layers of the discriminator should answer SR as they answer HR."""

from collections.abc import Generator
from fnmatch import fnmatchcase
from typing import Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ganlab import (
    NonNegativeSchedule,
    Plugin,
    Run,
    Schedule,
    discriminators,
    hookimpl,
)

Features = list[Tensor]


class FeatureMatching(Plugin):
    """Feature matching loss of pix2pixHD (Wang et al. 2017, arXiv:1711.11585), for the generator.

    With D_k the answer of layer k of the discriminator, real x and fake y of one condition:

    - `paired`: `weight * sum over k of mean |D_k(x) - D_k(y)|`, as in pix2pixHD.
    - `mean`: `weight * sum over k of mean |E D_k(x) - E D_k(y)|`, E over the batch and, of a map,
      the positions (Salimans et al. 2016, arXiv:1606.03498, whose code has this L1 on one layer,
      its formula the square). It does not ask that x and y show the same thing.

    The features are those of the passes in which the engine judges fake and real: D runs no more
    often, only on real images too. With several discriminators the loss is the mean over them, as
    in pix2pixHD. D does not learn from it, and the real features are constants.

    `paired` compares pixel by pixel what D was shown, so after `augment`: plugins that move real
    and fake by different draws, as diff_augment and ada do, go better with `mean`.
    """

    kind: Literal["paired", "mean"] = "paired"
    """What is compared: every feature at its place, or their means."""

    layers: list[str] = []
    """Names or patterns (`3`, `block*`) of D's modules, as in its state; left empty, the
    activations, or, where they are no modules, all convolutions and linear layers but the last."""

    weight: NonNegativeSchedule = Schedule.constant(10.0)
    """Factor on the sum; 10 beside an adversarial loss of weight 1 in pix2pixHD's code."""

    _passes: dict[str, Features] = PrivateAttr(default_factory=dict)

    @hookimpl
    def run_start(self, run: Run) -> None:
        for D in discriminators(run):
            self._chosen(D)

    @hookimpl(wrapper=True)
    def generator_step(self, run: Run) -> Generator[None, dict[str, Tensor], dict[str, Tensor]]:
        handles = [
            handle
            for D in discriminators(run)
            for handle in watch(D, self._chosen(D), run, self._passes)
        ]
        try:
            return (yield)
        finally:
            for handle in handles:
                handle.remove()
            self._passes.clear()

    @hookimpl
    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor) -> dict[str, Tensor]:
        if not {"fake", "real"} <= self._passes.keys():
            raise self.error(
                "it sees the features of D in the generator's step alone, and another plugin "
                f"wants its loss elsewhere; remove {self.name} or that one"
            )
        dtype = fake_logits.dtype
        terms = [
            self._distance(y.to(dtype), x.detach().to(dtype))
            for y, x in zip(self._passes["fake"], self._passes["real"], strict=True)
        ]
        return {f"G/{self.name}": self.weight.value * torch.stack(terms).sum()}

    def _chosen(self, D: nn.Module) -> list[nn.Module]:
        """The layers to compare, at least one."""
        modules = dict(D.named_modules())
        del modules[""]
        fault = f"no layer of the discriminator is named by {self.layers}"
        chosen = [
            module
            for name, module in modules.items()
            if any(fnmatchcase(name, pattern) for pattern in self.layers)
        ]
        if not self.layers:
            fault, chosen = "the discriminator has no inner layer", _inner_layers(D)
        if not chosen:
            raise self.error(f"{fault}; it has {', '.join(modules) or 'none'}", "layers")
        return chosen

    def _distance(self, fake: Tensor, real: Tensor) -> Tensor:
        if self.kind == "mean":
            over = [0, *range(2, fake.dim())]
            fake, real = fake.mean(over), real.mean(over)
        return F.l1_loss(fake, real)


def watch(
    D: nn.Module, layers: list[nn.Module], run: Run, passes: dict[str, Features]
) -> list[RemovableHandle]:
    """Keep what the layers answer in a pass of D, under "fake" or "real".

    :returns: handles whose `remove()` ends it.
    """
    features: Features = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features.append(output)

    def finish(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        passes[run.step.judging] = features.copy()
        features.clear()

    return [
        *(layer.register_forward_hook(note) for layer in layers),
        D.register_forward_hook(finish),
    ]


def _inner_layers(D: nn.Module) -> list[nn.Module]:
    """The activations, or all that has weights but the last, which makes the logits."""
    modules = list(D.modules())[1:]
    activations = [
        module
        for module in modules
        if type(module).__module__ == nn.ReLU.__module__
        and not isinstance(module, nn.MultiheadAttention)
    ]
    weighty = (nn.modules.conv._ConvNd, nn.Linear)
    layers = [module for module in modules if isinstance(module, weighty)]
    return activations or list[nn.Module](layers[:-1])
