"""Make a `Run` from a recipe: register its plugins, build its networks, check everything."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ganlab import hookspecs
from ganlab.data import data_of, held_out_images, notes_on_data
from ganlab.defaults import Defaults
from ganlab.errors import RecipeError
from ganlab.evaluation.scores import check_best_metric, check_held_out, eval_mode
from ganlab.network_bounds import bounded
from ganlab.plugin import Batch, Plugin, implements
from ganlab.ranks.trial import try_sharing
from ganlab.ranks.world import ALONE, World, shared_out
from ganlab.recipe.model import Recipe
from ganlab.requirements import (
    adversarial,
    check_images,
    check_sample_independence,
    dissolve,
    providers,
    register,
)
from ganlab.run import Eager, GeneratorLoss, Run, discriminators
from ganlab.runs.folder import RunFolder
from ganlab.shared_forward import hindrance_to_sharing
from ganlab.speed.activation_checkpointing import checkpoint_activations
from ganlab.speed.compiled import Compiled
from ganlab.speed.device import choose_numerics, free_memory, wants_channels_last, widest_float
from ganlab.speed.graphs import CudaRecorder, Graphs
from ganlab.steps import Steps
from ganlab.streams import Streams

PROBE = 2  # samples in the batch from which shapes are read; two show whether D mixes them


# hooks of plugins that a step can do without
_OF_DATA = {"sample_real", "sample_batch", "samples_drawn", "data_digest", "evaluation_images"}
_OF_DATA |= {"score_images", "evaluate", "verdicts", "check_recipe", "run_start", "run_end"}


def assemble(
    recipe: Recipe,
    device: torch.device,
    folder: RunFolder | None = None,
    given: Sequence[Batch] = (),
    world: World = ALONE,
) -> Run:
    """Build the networks and optimizers of a recipe, and check that they fit together.

    :param given: batches to learn the shapes from. Then no data are read, and plugins that only
        read data or evaluate are left out.
    :param world: the processes that train the run; each of them assembles it.
    :raises RecipeError: when they do not fit together.
    """
    run = open_run(recipe, device, folder)
    _share_out(run, world)
    run.given = [batch.to(device) for batch in given]
    for plugin in recipe.plugins.values() if given else ():
        if {name for name in vars(hookspecs) if implements(plugin, name)} <= _OF_DATA:
            run.manager.unregister(plugin)
    run.streams.moment("assembly")  # a plugin may build a network when it checks the recipe
    run.hook.check_recipe(run=run)
    if not given:
        check_best_metric(run)
    condition, seen = _build(run)
    _check(run, condition)
    _choose(run, condition, seen)
    if given:
        run.hook.run_start(run=run)
        return run
    run.held_out = held_out_images(run)
    check_held_out(run)
    run.hook.run_start(run=run)
    run.optimizer_options = {name: _options(one) for name, one in run.optimizers.items()}
    run.data = data_of(run)
    run.notes += notes_on_data(run)
    try_sharing(run)
    return run


def _share_out(run: Run, world: World) -> None:
    """Give each process of a run its part of the batch.

    :raises RecipeError: when the batch cannot be divided.
    """
    recipe = run.recipe
    if world.size == 1:
        return
    if not shared_out(recipe.batch_size, world.size, recipe.accumulate):
        times = f" x accumulate = {recipe.accumulate}" if recipe.accumulate > 1 else ""
        raise RecipeError(
            f"{recipe.origin('batch_size')}: batch_size = {recipe.batch_size} is the batch of all "
            f"processes together, and {world.size} processes{times} cannot share it equally; set "
            f"batch_size to a multiple of {world.size * recipe.accumulate}"
        )
    run.take_part_in(world)
    run.notes.append(
        f"{world.size} processes train this run, each on {world.share_of(recipe.batch_size)} of "
        f"the {recipe.batch_size} samples of a batch"
    )


def open_run(
    recipe: Recipe, device: torch.device, folder: RunFolder | None = None, whole: bool = True
) -> Run:
    """Make a run with its plugins registered. No data is read and no network is built.

    :param whole: whether the plugins must be an experiment; else they are a part of one.
    """
    choose_numerics(device, recipe.tf32, recipe.deterministic)
    run = Run(recipe, device, Streams(recipe.seed, device), folder)
    if run.dtype.itemsize > widest_float(device).itemsize:
        raise RecipeError(
            f'{recipe.file}: precision = "{recipe.precision}" is not possible on {device}; '
            'set precision = "float32", or use --device cpu'
        )
    run.manager = register(recipe, Defaults(run), Steps(), whole=whole)
    weakref.finalize(run, dissolve, run.manager).atexit = False
    plugins = list(recipe.plugins.values())
    adversaries = [plugin for plugin, _ in adversarial(run.manager)]
    run.generator_loss = GeneratorLoss(
        content=run.generator_losses_of(p for p in plugins if p not in adversaries),
        adversarial=run.generator_losses_of(adversaries),
    )
    for plugin in plugins:
        plugin.bind(streams=run.streams, world=run.world)
    return run


def build_network(run: Run, hook: str, real_shape: tuple[int, ...]) -> nn.Module:
    """Build a network whose initial weights depend only on the seed and its role.

    Several discriminators become a ModuleList, in the order of the recipe.
    """
    made: list[nn.Module] = []
    plugins = providers(run.manager, hook)
    for number, plugin in enumerate(plugins):
        # one at a time, so that one more does not change the weights of those before it
        others = [other for other in plugins if other is not plugin]
        build = run.manager.subset_hook_caller(hook, others)
        run.streams.moment("weights", hook, *([number] if number else []))
        with bounded(plugin.error):
            answer = build(condition_shape=run.condition_shape, real_shape=real_shape)
        answers = answer if isinstance(answer, list) else [answer]
        for network in answers:
            _require(network, nn.Module, plugin, hook, "a torch.nn.Module")
        made += answers
    module = made[0] if len(made) == 1 else nn.ModuleList(made)
    module = module.to(run.device, run.dtype)
    if wants_channels_last(run.recipe.precision, run.device):
        module = module.to(memory_format=torch.channels_last)
    return module


def _optimizer(run: Run, network: nn.Module, role: str) -> Optimizer:
    if not list(network.parameters()):
        (owner, *_) = providers(run.manager, f"make_{role}")
        raise owner.error(f"its {role} has no parameters, so there is nothing to train")
    made = run.hook.make_optimizer(module=network, role=role)
    for plugin in run.plugins_with("make_optimizer")[:1]:
        _require(made, Optimizer, plugin, "make_optimizer", "a torch.optim.Optimizer")
    return made


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group of an optimizer, in plain numbers, texts and tuples."""
    plain = (bool, int, float, str, tuple, type(None))
    groups = [
        {k: float(v) if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in group.items()}
        for group in optimizer.param_groups
    ]
    return [{k: v for k, v in group.items() if isinstance(v, plain)} for group in groups]


def _require(answer: object, kind: type, plugin: Plugin, hook: str, what: str) -> None:
    if not isinstance(answer, kind):
        raise plugin.error(f"its {hook} returned {type(answer).__name__}; it must return {what}")


def _build(run: Run) -> tuple[Tensor, Tensor]:
    """Find the shapes, and build networks and optimizers.

    :returns: a condition to try G with, and images to try D with.
    """
    recipe, hook = run.recipe, run.hook
    with torch.no_grad():
        batch = _given_probe(run) if run.given else _drawn_probe(run)
        _tensor(run, "degrade", batch.condition)
        seen = hook.augment(images=batch.real, condition=batch.condition)
        _tensor(run, "augment", seen)
    _check_batch(run, batch)
    run.condition_shape = tuple(batch.condition.shape[1:])
    run.real_shape = tuple(batch.real.shape[1:])
    if recipe.d_steps:
        run.D = build_network(run, "make_discriminator", tuple(seen.shape[1:]))
        owners = providers(run.manager, "make_discriminator")
        for owner, D in zip(owners, discriminators(run), strict=True):
            check_sample_independence(recipe, owner, D, seen)
        run.D_optimizer = _optimizer(run, run.D, "discriminator")
        run.share_forward, note = _share_forward(run, seen)
        run.notes += [note] if note else []
    run.G = build_network(run, "make_generator", run.real_shape)
    run.G_optimizer = _optimizer(run, run.G, "generator")
    return batch.condition, seen


def _check_batch(run: Run, probe: Batch) -> None:
    """Refuse a batch whose images alone are more than the device can hold.

    :param probe: a batch of `PROBE` samples.
    """
    recipe, tensors = run.recipe, (probe.real, probe.condition)
    one = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / PROBE
    needed, free = recipe.batch_size * one / 2**30, free_memory(run.device) / 2**30
    if needed > free:
        raise RecipeError(
            f"{recipe.origin('batch_size')}: batch_size = {recipe.batch_size}: the images of one "
            f"batch alone take {needed:,.1f} GiB, and {free:,.1f} GiB are free on {run.device}; "
            "take a smaller batch, or `ganlab bench --fit` to find the largest"
        )


def _drawn_probe(run: Run) -> Batch:
    real = run.hook.sample_real(batch_size=PROBE, device=run.device)
    check_images(run.recipe, _tensor(run, "sample_real", real))
    batch: Batch = run.hook.sample_batch(batch_size=PROBE, device=run.device)
    return batch


def _given_probe(run: Run) -> Batch:
    first = run.given[0]
    twice = [torch.cat([images, images])[:PROBE] for images in (first.real, first.condition)]
    return Batch(*twice)


def _tensor(run: Run, hook: str, answer: object) -> Tensor:
    """The answer of a hook, which must be a tensor.

    :raises RecipeError: it names the plugins that made it.
    """
    if not isinstance(answer, Tensor):
        names = " and ".join(plugin.name for plugin in run.plugins_with(hook))
        raise RecipeError(
            f"{run.recipe.file}: {hook} gives {type(answer).__name__}, not a tensor; look at what "
            f"{names} return in {hook}"
        )
    return answer


def _share_forward(run: Run, seen: Tensor) -> tuple[bool, str]:
    """Whether one pass of D serves both steps; a note when the recipe asks for it and it cannot."""
    recipe = run.recipe
    if recipe.first != "generator" or not recipe.share_forward:
        return False, ""
    reason = hindrance_to_sharing(recipe, run.plugins_with("augment"), discriminators(run), seen)
    return not reason, f"D judges G's images again in its own step: {reason}" if reason else ""


def _check(run: Run, condition: Tensor) -> None:
    """Refuse a generator of the wrong output size; add a note when batch norm sees parts only."""
    recipe = run.recipe
    with eval_mode(run.G), run.autocast():
        images = run.G(condition)
    owner = providers(run.manager, "make_generator")[0]
    _require(images, Tensor, owner, "generator", "one tensor of images")
    made = tuple(images.shape[1:])
    if made != run.real_shape:
        raise RecipeError(
            f"{recipe.file}: the generator makes {made} from {run.condition_shape}, but real "
            f"samples are {run.real_shape}; check that their scales agree"
        )
    if recipe.accumulate > 1:
        size = recipe.batch_size // recipe.accumulate
        run.notes += [
            f"batch norm of the {role} sees {size} samples at a time, not {recipe.batch_size}: "
            "the step is not the same as without accumulate"
            for role, network in (("generator", run.G), ("discriminator", run.D))
            if network and any(isinstance(m, _BatchNorm) for m in network.modules())
        ]


def _choose(run: Run, condition: Tensor, seen: Tensor) -> None:
    """Choose whether networks recompute activations, and how steps are carried out."""
    if run.recipe.activation_checkpointing:
        checkpoint_activations(run, condition, seen)
    run.execution = choose_execution(run)


def choose_execution(run: Run) -> Eager:
    """Choose what the recipe's `compile` asks for, if this device and these plugins allow it."""
    mode, cuda = run.recipe.compile, run.device.type == "cuda"
    if run.world.size > 1:
        if mode != "off" and (cuda or mode != "auto"):
            run.notes.append("several processes: steps run as written, not compiled or captured")
        return Eager()
    if mode == "networks":
        return Compiled()
    if mode == "off":
        return Eager()
    if not cuda:
        if mode == "graphs":
            run.notes.append('compile = "graphs" is for CUDA; running eager here')
        return Eager()
    for plugin in run.recipe.plugins.values():
        if not plugin.capturable:
            run.notes.append(f"{plugin.name} cannot be captured as a CUDA graph; running eager")
            return Eager()
    return Graphs(CudaRecorder(run.device))
