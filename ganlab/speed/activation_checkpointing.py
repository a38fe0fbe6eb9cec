"""Activation checkpointing: what a network would keep for its backward pass is made again there.

Less memory for about one more forward pass (Chen et al. 2016, arXiv:1604.06174). Where to begin
again is read off the network:

- Four blocks or more of one class in an `nn.Sequential` or `nn.ModuleList`, as the trunk of a
  residual network, keep just what each is given. Of trunks within trunks the innermost counts.
- Two layers with weights or more in an `nn.Sequential` that is in no such block, as in many a
  discriminator, are cut into about sqrt(n) parts, which keep just what each is given.

Modules keep their names, so weights and checkpoints are the same with and without. What is made
again is the same to the last bit: modules are as they were the first time, buffers and all, and so
are the random streams; afterwards both are as if nothing had happened.
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

BLOCKS = 4  # fewer of one class may be the parts of a block
LAYERS = 2


def checkpoint_activations(run: Run, condition: Tensor, shown: Tensor) -> None:
    """Have the networks of a run recompute, and note where that changes nothing.

    :param condition, shown: a batch that G takes, and one that D takes.
    """
    players = [("generator", run.G, condition)]
    players += [("discriminator", D, shown) for D in discriminators(run)]
    for role, network, images in players:
        compiled = run.recipe.compile == "networks"
        if reason := recompute(network, images, run.streams, compiled):
            run.notes.append(f"activation_checkpointing changes nothing in the {role}: {reason}")


def recompute(network: nn.Module, images: Tensor, streams: Streams, compiled: bool = False) -> str:
    """Have a network recompute, in place: a change of its inner modules' classes.

    :param images: a batch that it takes; it is asked once, to see what it calls and draws.
    :param streams: all that it may draw from.
    :param compiled: whether torch.compile, which would move buffers such as batch norm's
        statistics twice, is to have it; then modules with buffers stay as they are.
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
        # a class of its own, as torch's parametrizations make one: a deep copy is of it too
        bases, name = (kind, type(module)), type(module).__name__
        module.__class__ = type(name, bases, {"_drawn_from": drawn_from, "__module__": __name__})
    return ""


def _places(network: nn.Module) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules to begin again at, none within another, and what to make of them."""
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
    """Whether it is layers one after another, two or more of them with weights."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    return sum(_has_weights(layer) for layer in module) >= LAYERS


def _has_weights(layer: nn.Module) -> bool:
    """Whether it is a convolution or the like; norms and activations have vectors at the most."""
    return any(p.dim() > 1 for p in layer.parameters())


def _parts(row: nn.Sequential) -> Iterator[list[nn.Module]]:
    # before a layer with weights, since a norm or an activation may overwrite what it is given
    layers = list(row)
    begins = [number for number, layer in enumerate(layers) if _has_weights(layer)]
    cuts = [0, *begins[:: ceil(sqrt(len(begins)))][1:], len(layers)]
    for begin, end in pairwise(cuts):
        yield layers[begin:end]


def _tried(
    network: nn.Module, images: Tensor, streams: Streams, modules: list[nn.Module]
) -> tuple[set[nn.Module], bool]:
    """Which of the modules are called in training, and whether random numbers are drawn."""
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in modules]
    # not a copy of the network, which would draw from copies of the streams
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
    """In front of the class of a block."""

    _drawn_from: ClassVar[Streams | None]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        whole = super().forward
        if not _keeps(self):
            return whole(*inputs, **options)
        return _recomputed([self], self._drawn_from, whole, *inputs, **options)


class _Layers(nn.Sequential):
    """In front of the class of a row of layers."""

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
    """Whether this pass would keep anything, and nobody listens, who would hear it twice.

    torch.func takes no part in checkpointing; where it differentiates a gradient once more, as for
    a gradient penalty, that keeps everything anyway.
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
    """Within it, as often as need be, modules and streams are as when it was made."""

    def __init__(self, modules: list[nn.Module], drawn_from: Streams | None) -> None:
        self._modules = [part for module in modules for part in module.modules()]
        self._begun = [_state(module) for module in self._modules]
        self._streams = drawn_from
        self._drawn = drawn_from.state() if drawn_from else []

    def __enter__(self) -> None:
        self._now = [vars(module).copy() for module in self._modules]
        for module, begun in zip(self._modules, self._begun, strict=True):
            # a copy each time: batch norm moves its statistics once more
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
    """Buffers, and flags such as the one by which batch norm leaves its statistics alone."""
    return vars(module) | {"_buffers": _copied(module._buffers)}


def _copied(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {n: b if b is None else b.clone() for n, b in buffers.items()}
