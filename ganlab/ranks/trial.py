"""The trial of a run of several processes: is what they compute together what one would compute?

At the start of the run an iteration is taken twice from the same state, without moving a weight:
shared out among the processes, and by each process alone on the whole of a small batch. Hook by
hook the answers must be the same, and so must the gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ganlab.errors import Diverged, RecipeError
from ganlab.iteration import iterate, moment, sample
from ganlab.monitoring.calls import Watch, tensors, watching
from ganlab.plugin import Batch
from ganlab.ranks.world import ALONE, World
from ganlab.requirements import providers
from ganlab.run import Run
from ganlab.speed.trial import Snapshot

ROWS = 5  # of each process in the trial: few, and hardly ever a size that is not of the batch
MOMENTS = 8  # of sampling: a degradation may draw other kinds of numbers now and then
NEAR = {"float64": 1e-9, "float32": 1e-2, "bfloat16": 0.1}
"""Share of the largest value by which two ways of summing may differ. float32 has TF32 in it."""
_TENSOR_HOOKS = {"augment", "labels", "discriminator_loss", "generator_loss", "penalty"}
_SAMPLING = {"sample_real", "sample_batch", "degrade"}


def try_sharing(run: Run) -> None:
    """Find out how batches are drawn by several processes, and refuse what they cannot share.

    Every process must call it. Nothing in the run changes but `samples_whole`.

    :raises RecipeError: naming the plugin or the network whose results would be others.
    """
    if run.world.size == 1:
        return
    _check_batch_norm(run)
    recipe, progress, random = run.recipe, run.progress, run.streams.state()
    rows = run.world.share_of(recipe.batch_size)
    unit = min(ROWS, recipe.batch_size // (run.world.size * recipe.accumulate))
    size = unit * run.world.size * recipe.accumulate
    try:
        run.recipe = recipe.model_copy(update={"batch_size": size, "watch_every": 0})
        run.samples_whole = _agreed(run.world, _draws_otherwise(run, rows))
        rest = max((p.rest_of_discriminator() for p in recipe.plugins.values()), default=0)
        for number in sorted({0, min(rest, recipe.iterations - 1), recipe.iterations - 1}):
            run.progress = replace(progress, iteration=number)
            _compare(run, unit, rows // recipe.accumulate)
    finally:
        run.recipe, run.progress = recipe, progress
        run.streams.set_state(random)
    if run.samples_whole:
        run.notes.append(
            "each process draws the whole batch and keeps its rows, since its rows alone would be "
            "drawn otherwise"
        )


def _check_batch_norm(run: Run) -> None:
    if run.recipe.sync_batch_norm:
        return
    for hook, network in (("generator", run.G), ("discriminator", run.D)):
        if network and any(isinstance(module, _BatchNorm) for module in network.modules()):
            (owner, *_) = providers(run.manager, f"make_{hook}")
            raise owner.error(
                f"its {hook} has batch norm, which on {run.world.size} processes would see "
                f"{run.world.share_of(run.recipe.batch_size)} of the {run.recipe.batch_size} "
                "samples of a batch; set sync_batch_norm = true in the recipe to take the "
                "statistics of the whole batch, or use another norm"
            )


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Context in which this process has the whole batch."""
    world = run.world
    run.take_part_in(ALONE)
    try:
        yield
    finally:
        run.take_part_in(world)


def _agreed(world: World, mine: bool) -> bool:
    """Whether it is so on any process."""
    return any(flag for (flag,) in world.agree([int(mine)]))


def _draws_otherwise(run: Run, rows: int) -> bool:
    """Whether this process's rows, drawn alone, are others than those of the whole batch.

    :param rows: how many it has in the run.
    """
    for plugin in run.recipe.plugins.values():
        hooks = [hook for hook in _SAMPLING if plugin in run.plugins_with(hook)]
        if hooks and hasattr(plugin, "state_dict"):  # such as a pool of samples, empty as yet
            return True
    parts = run.recipe.accumulate
    run.world.other_sizes.clear()
    before = Snapshot(run)
    try:
        for number in range(MOMENTS):
            run.progress = replace(run.progress, iteration=number)
            with _alone(run):
                run.streams.moment(*moment(run, "D", 0))
                whole = sample(run)
            run.streams.moment(*moment(run, "D", 0))
            mine = sample(run)
            cut = Batch(run.world.rows(whole.real, parts), run.world.rows(whole.condition, parts))
            if not (_same(mine.real, cut.real) and _same(mine.condition, cut.condition)):
                return True
    except RecipeError:
        raise
    except Exception:  # of a plugin that cannot draw so few; the whole batch it must be able to
        return True
    finally:
        before.restore()
    # what is not for the images here would be taken to be for them in the run
    return bool(run.world.other_sizes & {(parts, rows), (parts, 2 * rows)})


def _same(mine: Tensor, rows: Tensor) -> bool:
    return mine.shape == rows.shape and bool(torch.allclose(mine, rows, 1e-4, 1e-5))


@dataclass(slots=True)
class _Taken:
    """What one iteration computed."""

    answers: list[tuple[str, str, list[Tensor]]] = field(default_factory=list)
    """Hook, plugin, and the tensors of each answer."""
    gradients: list[tuple[str, list[Tensor]]] = field(default_factory=list)
    """Of each optimizer step: "G" or "D", and its gradient."""
    kept: dict[str, list[Tensor]] = field(default_factory=dict)
    """By plugin: what it would save."""
    sizes: dict[int, str] = field(default_factory=dict)
    """First dimensions of random draws that are not for the images: the plugin that made one."""


class _Answers(Watch):
    def __init__(self, taken: _Taken, hook: str, plugin: str, world: World) -> None:
        self.taken, self.hook, self.plugin, self.world = taken, hook, plugin, world

    def answered(self, answer: Any) -> None:
        for _, size in self.world.other_sizes:
            self.taken.sizes.setdefault(size, self.plugin)
        found = [t.detach().clone() for t in tensors(answer) if t.is_floating_point()]
        self.taken.answers.append((self.hook, self.plugin, found))


def _taken(run: Run) -> _Taken:
    """Take an iteration without moving a weight, and put back what it changed."""
    taken, before = _Taken(), Snapshot(run)
    run.world.other_sizes.clear()

    def begin(hook: str, plugin: str, wraps: bool) -> Watch:
        return _Answers(taken, hook, plugin, run.world) if hook in _TENSOR_HOOKS else Watch()

    try:
        with watching(run.manager, begin), _weights_held(run, taken):
            iterate(run)
        for name, plugin in run.recipe.plugins.items():
            if hasattr(plugin, "state_dict"):
                owner: Any = plugin
                taken.kept[name] = [
                    torch.as_tensor(leaf, dtype=torch.float64).detach().clone()
                    for leaf in tree_leaves(owner.state_dict())
                    if isinstance(leaf, Tensor | float | int)
                ]
    except Diverged:  # training will tell
        pass
    finally:
        before.restore()
    return taken


@contextmanager
def _weights_held(run: Run, taken: _Taken) -> Iterator[None]:
    """Context in which an optimizer's step notes its gradient and changes nothing."""

    def noting(role: str, network: nn.Module) -> Any:
        def step(*_: Any, **__: Any) -> None:
            found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            taken.gradients.append((role, found))

        return step

    optimizers: dict[str, Any] = dict(run.optimizers)
    for role, optimizer in optimizers.items():
        optimizer.step = noting(role, run.networks[role])
    try:
        yield
    finally:
        for optimizer in optimizers.values():
            del optimizer.step


def _compare(run: Run, unit: int, rows: int) -> None:
    """Take one iteration shared out and whole; refuse the first thing that differs.

    :param rows: how many images of a part of the batch a process has in the run.
    """
    mine = _taken(run)
    for _, size in sorted(run.world.other_sizes & {(1, rows), (1, 2 * rows)}):
        _refuse_size(run, mine.sizes.get(size, ""), size, rows)
    with _alone(run):
        whole = _taken(run)
    near = NEAR[run.recipe.precision]
    found = list(_differences(run, mine, whole, unit))
    # a rank may see nothing wrong with its own rows
    every = run.world.agree([int(not apart <= near) for *_, apart in found])
    for place, (plugin, what, _) in enumerate(found):
        if any(ranks[place] for ranks in every):
            raise _fault(run, plugin, what)


def _differences(
    run: Run, mine: _Taken, whole: _Taken, unit: int
) -> Iterator[tuple[str, str, float]]:
    """The plugin, what it does, and how far that is from what it does on the whole batch."""
    for (hook, plugin, found), (_, _, wanted) in zip(mine.answers, whole.answers, strict=False):
        for a, b in zip(found, wanted, strict=False):
            yield plugin, f"its {hook} gives other values", _apart(run.world, a, b, unit)
    for (role, found), (_, wanted) in zip(mine.gradients, whole.gradients, strict=False):
        hook = {"G": "make_generator", "D": "make_discriminator"}[role]
        (owner, *_) = providers(run.manager, hook)
        what = f"its {hook[5:]} has another gradient"
        yield owner.name, what, _length_apart(found, wanted)
    for plugin, kept in mine.kept.items():
        for a, b in zip(kept, whole.kept.get(plugin, kept), strict=False):
            yield plugin, "it keeps other values", _apart(run.world, a, b, unit)


def _apart(world: World, mine: Tensor, whole: Tensor, unit: int) -> float:
    """How far an answer is from that of one process, as a share of the largest value.

    Rows are compared with the rows of the whole. Any other tensor is a mean over the batch.
    """
    if mine.dim() and len(whole) == len(mine) * world.size != 0:
        whole = world.rows(whole, max(1, len(mine) // unit))
    elif not mine.dim():
        mine = mine.clone()
        world.average([mine])
    if mine.shape != whole.shape:
        return torch.inf
    if not mine.numel():
        return 0.0
    mine, whole = mine.double(), whole.double()
    return (mine - whole).abs().max().item() / max(whole.abs().max().item(), 1e-3)


def _length_apart(mine: Sequence[Tensor], whole: Sequence[Tensor]) -> float:
    if len(mine) != len(whole):
        return torch.inf
    squares = [(a - b).double().square().sum() for a, b in zip(mine, whole, strict=True)]
    lengths = [b.double().square().sum() for b in whole]
    if not squares:
        return 0.0
    length = torch.stack(lengths).sum().sqrt().item()
    return torch.stack(squares).sum().sqrt().item() / max(length, 1e-12)


def _refuse_size(run: Run, name: str, size: int, rows: int) -> None:
    """Refuse a draw whose size is by chance that of this process's images.

    :raises RecipeError: naming the plugin, if it is known.
    """
    fault = (
        f"{size} random numbers are drawn at once that are not for images; with {rows} images on "
        f"each of {run.world.size} processes they would be taken to be for these. Choose another "
        "batch_size or number of processes"
    )
    plugin = run.recipe.plugins.get(name)
    raise plugin.error(fault) if plugin else RecipeError(f"{run.recipe.file}: {fault}")


def _fault(run: Run, name: str, what: str) -> RecipeError:
    size = run.world.size
    remedy = (
        f"{what} on {size} processes than on one, for the same batch. It may compare the images "
        "of a batch with each other, or draw random numbers otherwise than for all images at "
        "once; train this recipe on one device"
    )
    plugin = run.recipe.plugins.get(name)
    return plugin.error(remedy) if plugin else RecipeError(f"{run.recipe.file}: {name}: {remedy}")
