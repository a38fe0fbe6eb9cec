"""Activation checkpointing: activations are not kept but computed again in the backward pass.

It takes less memory, for the time of about one more forward pass (Chen et al. 2016,
arXiv:1604.06174). The parts that are computed again are found in the network:

- Four or more blocks of one class in an `nn.Sequential` or `nn.ModuleList`, as in the trunk of a
  residual network: each block keeps only its input. Of nested trunks the innermost counts.
- Two or more layers with weights in an `nn.Sequential` that is in no such block, as in many
  discriminators: they are cut into about sqrt(n) parts, and each part keeps only its input.

Modules keep their names, so weights and checkpoints are the same with and without it. The second
computation gives the same bits: it begins with the modules (buffers too) and the random streams as
they were the first time. Afterwards both are set back, as if there had been no second computation.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from math import ceil, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils.checkpoint import checkpoint

from ganlab.run import Run, discriminators
from ganlab.streams import Streams

BLOCKS = 4  # fewer modules of one class may be the parts of a single block
LAYERS = 2


def checkpoint_activations(run: Run, condition: Tensor, shown: Tensor) -> None:
    """Make the networks of a run recompute activations; note the networks that it cannot change.

    :param condition, shown: a batch that G takes, and a batch that D takes.
    """
    players = [("generator", run.G, condition)]
    players += [("discriminator", D, shown) for D in discriminators(run)]
    for role, network, images in players:
        compiled = run.recipe.compile == "networks"
        if reason := recompute(network, images, run.streams, compiled):
            run.notes.append(f"activation_checkpointing changes nothing in the {role}: {reason}")


def recompute(network: nn.Module, images: Tensor, streams: Streams, compiled: bool = False) -> str:
    """Make a network recompute activations, in place: the classes of its inner modules change.

    :param images: a batch that the network takes. The network runs on it once, to find out which
        modules it calls and whether it draws random numbers.
    :param streams: all random streams that it may draw from.
    :param compiled: whether the network will be compiled by torch.compile. That would update
        buffers such as batch norm's statistics twice, so modules with buffers are not changed.
    :returns: why nothing was changed; "" when something was.
    """
    chosen = dict(_places(network))
    called, draws = _tried(network, images, streams, list(chosen))
    chosen = {module: kind for module, kind in chosen.items() if module in called}
    if not chosen:
        return "it has no blocks or layers in a row (nn.Sequential, nn.ModuleList)"
    drawn_from = streams if draws else None
    if compiled:
        chosen = {m: k for m, k in chosen.items() if not drawn_from and not [*m.buffers()]}
        if not chosen:
            return 'with compile = "networks" what has buffers or draws numbers cannot recompute'
    for module, kind in chosen.items():
        # a new class for each module, as torch's parametrizations do: a deep copy keeps it
        bases, name = (kind, type(module)), type(module).__name__
        module.__class__ = type(name, bases, {"_drawn_from": drawn_from, "__module__": __name__})
    return ""


def _places(network: nn.Module) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules that keep only inputs, none inside another, and the class that each one gets."""
    blocks = _blocks(network)
    within = {part for block in blocks for part in block.modules()}
    rows = {module for module in network.modules() if _is_row(module)} - within
    yield from ((block, _Block) for block in blocks)
    yield from ((row, _Layers) for row in rows if _is_innermost(row, rows.union(blocks)))


def _blocks(network: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for trunk in network.modules():
        if isinstance(trunk, nn.Sequential | nn.ModuleList):
            blocks = [child for child in trunk if _is_composed(child)]
            counts = Counter(map(type_before_parametrizations, blocks))
            found += [b for b in blocks if counts[type_before_parametrizations(b)] >= BLOCKS]
    return [block for block in found if _is_innermost(block, set(found))]


def _is_innermost(module: nn.Module, others: set[nn.Module]) -> bool:
    return others.isdisjoint([*module.modules()][1:])


def _is_composed(module: nn.Module) -> bool:
    return any(name != "parametrizations" for name, _ in module.named_children())


def _is_row(module: nn.Module) -> bool:
    """Whether a module is a sequence of layers, two or more of them with weights."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    return sum(_has_weights(layer) for layer in module) >= LAYERS


def _has_weights(layer: nn.Module) -> bool:
    """Whether a layer has a weight matrix, as a convolution has; norms have vectors only."""
    return any(p.dim() > 1 for p in layer.parameters())


def _parts(row: nn.Sequential) -> Iterator[list[nn.Module]]:
    # cut before a layer with weights: a norm or an activation may overwrite its input
    layers = list(row)
    begins = [number for number, layer in enumerate(layers) if _has_weights(layer)]
    cuts = [0, *begins[:: ceil(sqrt(len(begins)))][1:], len(layers)]
    for begin, end in pairwise(cuts):
        yield layers[begin:end]


def _tried(
    network: nn.Module, images: Tensor, streams: Streams, modules: list[nn.Module]
) -> tuple[set[nn.Module], bool]:
    """The modules that are called in training, and whether random numbers are drawn."""
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in modules]
    # no copy of the network: it would draw from copies of the streams
    with torch.no_grad(), _AsBegun([network], streams):
        before = streams.state()
        network.train()(images)
        after = streams.state()
    for handle in handles:
        handle.remove()
    same = len(after) == len(before) and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True)
    )
    return called, not same


class _Block(nn.Module):
    """Base class put before a block's own class: the block keeps only its input."""

    _drawn_from: ClassVar[Streams | None]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        whole = super().forward
        if not _keeps(self):
            return whole(*inputs, **options)
        return _recomputed([self], self._drawn_from, whole, *inputs, **options)


class _Layers(nn.Sequential):
    """Base class put before the class of a row of layers: each part keeps only its input."""

    _drawn_from: ClassVar[Streams | None]

    def forward(self, images: Any) -> Any:
        if not _keeps(self):
            return super().forward(images)
        for layers in _parts(self):

            def whole(images: Any, layers: list[nn.Module] = layers) -> Any:
                for layer in layers:
                    images = layer(images)
                return images

            images = _recomputed(layers, self._drawn_from, whole, images)
        return images


def _keeps(module: nn.Module) -> bool:
    """Whether this pass would keep activations, and has no forward hook, which would run twice.

    torch.func does not support checkpointing. Where it differentiates a gradient again, as for a
    gradient penalty, everything is kept anyway.
    """
    if not (module.training and torch.is_grad_enabled()):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return not any(part._forward_hooks for part in module.modules())


def _recomputed(
    modules: list[nn.Module],
    drawn_from: Streams | None,
    function: Callable[..., Any],
    *inputs: Any,
    **options: Any,
) -> Any:
    options |= {"use_reentrant": False, "preserve_rng_state": False}
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (nullcontext(), _AsBegun(modules, drawn_from))
    return checkpoint(function, *inputs, **options)


class _AsBegun(AbstractContextManager[None]):
    """Context in which modules and streams are as when it was created; it can be entered again."""

    def __init__(self, modules: list[nn.Module], drawn_from: Streams | None) -> None:
        self._modules = [part for module in modules for part in module.modules()]
        self._begun = [_state(module) for module in self._modules]
        self._streams = drawn_from
        self._drawn = drawn_from.state() if drawn_from else []

    def __enter__(self) -> None:
        self._now = [vars(module).copy() for module in self._modules]
        for module, begun in zip(self._modules, self._begun, strict=True):
            # a copy each time: batch norm updates its statistics again
            vars(module).update(begun, _buffers=_copied(begun["_buffers"]))
        if self._streams:
            self._drawn_now = self._streams.state()
            self._streams.set_state(self._drawn)

    def __exit__(self, *_: object) -> None:
        for module, now in zip(self._modules, self._now, strict=True):
            vars(module).update(now)
        if self._streams:
            self._streams.set_state(self._drawn_now)


def _state(module: nn.Module) -> dict[str, Any]:
    """Buffers, and flags such as the one that makes batch norm keep its statistics unchanged."""
    return vars(module) | {"_buffers": _copied(module._buffers)}


def _copied(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {n: b if b is None else b.clone() for n, b in buffers.items()}
