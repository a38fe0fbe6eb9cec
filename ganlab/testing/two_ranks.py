"""The plugin under test in a run of one process, and in the same run of two: both are one run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.plugin import Losses, hookimpl
from ganlab.run import Run
from ganlab.state import copied
from ganlab.testing.experiment import CPU, Broken, NotApplicable, Subject, said
from ganlab.testing.turns import InTurns, WaitsInVain, on_ranks
from ganlab.testing.worlds import World

ROWS = 5  # of each process: few tensors have this number as their first dimension by chance
SETTINGS: dict[str, Any] = {
    "batch_size": 2 * ROWS,
    "precision": "float64",
    "watch_every": 0,
    "sync_batch_norm": True,
}
ITERATIONS = 2  # the second has a state to begin with
EXACT, ROUNDED = 1e-8, 1e-5  # of the largest value: what the order of a sum changes, float64 and 32

SUM = (
    "take the mean over the images, not the sum; what counts images, counts "
    "len(images) * self.world.size"
)
MEAN = (
    "where a mean over the batch goes into something that is not linear, or into the state, take "
    "self.world.mean(...) of it; what compares the images of a batch needs self.world.gather(...)"
)
DRAWS = (
    "draw for all images at once, the images being the first dimension, such as "
    "torch.rand(len(images), 1, generator=self.rng)"
)
SEEDED = "draw from self.rng or self.host_rng, which are the same in both processes"
STATE = "keep what is the same in all of them, such as self.world.mean(...), not of its own rows"


@dataclass(slots=True)
class Told:
    """What a process has seen of a run."""

    values: list[dict[str, Tensor]] = field(default_factory=list)
    """For each iteration: logged values, gradients and the plugin's state, by name."""
    draws: list[list[Tensor]] = field(default_factory=list)
    """For each iteration: where the plugin's random streams are after each step."""


class Difference(NamedTuple):
    """A value that is not the same with one process and with two."""

    iteration: int
    name: str
    alone: Tensor
    shared: Tensor | None


def told_by(run: Run, name: str) -> Told:
    """Train a run for some iterations, and note what it computes.

    :param name: of the plugin under test.
    """
    told, watch, plugin = Told(), _Watch(run, name), run.recipe.plugins[name]
    run.manager.register(watch, "the watch of two processes")
    for _ in range(ITERATIONS):
        logged = {n: value.detach().clone() for n, value in iterate(run).items()}
        run.iteration += 1
        state = copied(plugin.state_dict()) if hasattr(plugin, "state_dict") else {}
        told.values.append(logged | watch.gradients_seen | dict(_numbers(state)))
        told.draws.append(watch.draws)
        watch.gradients_seen, watch.draws = {}, []
    return told


class _Watch:
    """Notes the gradients of every step, and how far the plugin has drawn."""

    def __init__(self, run: Run, name: str) -> None:
        self._streams, self._name = run.streams, name
        self.gradients_seen: dict[str, Tensor] = {}
        self.draws: list[Tensor] = []

    @hookimpl(wrapper=True)
    def gradients(self, module: nn.Module, role: str) -> Any:
        told: Losses = yield
        step = f"{len(self.draws) // 3 + 1} of {role}"
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                self.gradients_seen[f"the gradient of {name} in step {step}"] = (
                    parameter.grad.clone()
                )
        own = (self._streams.generator(self._name), self._streams.host_generator(self._name))
        self.draws += [stream.get_state() for stream in (*own, torch.default_generator)]
        return told


def _numbers(state: Any) -> Iterator[tuple[str, Tensor]]:
    leaves, _ = tree_flatten_with_path(state)
    for path, leaf in leaves:
        if isinstance(leaf, Tensor | int | float):
            yield f"its state{keystr(path)}", torch.as_tensor(leaf)


def compare_with_two(subject: Subject, folder: Path) -> None:
    """Train the plugin under test by one process and by two, each with half of the batch.

    :raises Broken: naming the first value that differs.
    :raises NotApplicable: when it refuses a run of two processes.
    """
    world, run = subject.placed(folder, **SETTINGS)
    one = told_by(run, subject.name)
    first, second = _told_by_two(subject, world, folder)
    own = [f"G/{subject.name}", f"D/{subject.name}"]
    if differs := _first_difference(one, first, own):
        again = told_by(subject.run_in(world, folder, **SETTINGS), subject.name)
        remedy = SEEDED if _first_difference(one, again, own) else _remedy(differs, one, first)
        raise Broken(f"{differs.name} {_shown(differs)}; {remedy}")
    for shared, other in zip(first.values, second.values, strict=True):
        for name, value in shared.items():
            if not torch.equal(value, other[name]):
                raise Broken(f"{name} is not the same in both of two processes; {STATE}")


def _told_by_two(subject: Subject, world: World, folder: Path) -> Sequence[Told]:
    def take_part(ranks: InTurns) -> Told:
        try:
            run = subject.run_in(world, folder, CPU, ranks, **SETTINGS)
        except RecipeError as error:
            raise NotApplicable(f"it refuses a run of two processes: {said(error)}") from None
        run.samples_whole = True
        return told_by(run, subject.name)

    try:
        with patch("ganlab.assembly.try_sharing"):  # it would refuse without the value and remedy
            return on_ranks(take_part)
    except WaitsInVain as error:
        raise Broken(
            f"{error}; ask self.world for the same things in the same order in all of them"
        ) from None
    except ValueError as error:
        if "process group" in str(error):
            raise Broken("it communicates by torch.distributed; ask self.world instead") from None
        raise


def _first_difference(one: Told, two: Told, own: Sequence[str]) -> Difference | None:
    """:param own: names that are compared first."""
    for iteration, (alone, shared) in enumerate(zip(one.values, two.values, strict=True)):
        for name in sorted(alone, key=lambda name: name not in own):
            if name not in shared or not _near(alone[name], shared[name]):
                return Difference(iteration, name, alone[name], shared.get(name))
    return None


def _near(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    share = EXACT if a.dtype == torch.float64 else ROUNDED
    a, b = a.double(), b.double()
    largest = float(a.abs().max().nan_to_num()) if a.numel() else 0.0
    return torch.allclose(a, b, 0, max(share * largest, share / 1e4), equal_nan=True)


def _remedy(differs: Difference, one: Told, two: Told) -> str:
    iteration, _, alone, shared = differs
    drawn = zip(one.draws[iteration], two.draws[iteration], strict=False)
    if not all(torch.equal(*pair) for pair in drawn):
        return DRAWS
    if shared is not None and alone.shape != shared.shape:
        return STATE
    if shared is not None and torch.allclose(alone.double(), 2 * shared.double(), 1e-3):
        return SUM
    return MEAN


def _shown(differs: Difference) -> str:
    _, _, alone, shared = differs
    if shared is None:
        return "is there with one process, and not with two"
    if alone.shape != shared.shape:
        return f"has the shape {[*alone.shape]} with one process, and {[*shared.shape]} with two"
    if alone.numel() == 1:
        return f"is {float(alone):.6g} with one process, and {float(shared):.6g} with two"
    off = (alone.double() - shared.double()).norm() / alone.double().norm()
    return f"differs between one process and two, by {float(off):.2g} of its norm"
