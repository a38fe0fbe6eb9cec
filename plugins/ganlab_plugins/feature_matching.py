"""Feature matching: the discriminator's layers should give equal features for real and fake."""

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

    D_k is the output of layer k of the discriminator; x is real, y is fake, of the same condition:

    - `paired`: `weight * sum over k of mean |D_k(x) - D_k(y)|`, as in pix2pixHD.
    - `mean`: `weight * sum over k of mean |E D_k(x) - E D_k(y)|`, where E is the mean over the
      batch and, for a map, the positions (Salimans et al. 2016, arXiv:1606.03498; their code has
      this L1 on one layer, their formula has the square). x and y may show different things.

    The features come from the passes in which D judges fake and real images. The loss needs no
    other passes, but it needs D to judge real images in the G step too. With several discriminators
    the loss is the mean over them, as in pix2pixHD. D is not trained by this loss, and the real
    features are constants.

    `paired` compares the images seen by D, so after `augment`, pixel by pixel. Use `mean` with
    plugins that move real and fake images by different draws, such as diff_augment and ada.
    """

    kind: Literal["paired", "mean"] = "paired"
    """Whether every feature is compared at its place, or only the means."""

    layers: list[str] = []
    """Names or patterns (`3`, `block*`) of D's modules, as in its state dict. If empty, the
    activations; if D has no activation modules, all convolutions and linear layers but the last."""

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
                "it gets D's features only in the generator's step, but another plugin asks for "
                f"its loss elsewhere; remove {self.name} or the other plugin"
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
        fault = f"no layer of the discriminator matches {self.layers}"
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
            fake, real = self.world.mean(fake.mean(over)), self.world.mean(real.mean(over))
        return F.l1_loss(fake, real)


def watch(
    D: nn.Module, layers: list[nn.Module], run: Run, passes: dict[str, Features]
) -> list[RemovableHandle]:
    """Store the outputs of the layers in each pass of D, under "fake" or "real".

    :returns: handles; the `remove()` of each one ends the storing.
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
    """The activations, or else all layers with weights except the last, which makes the logits."""
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
