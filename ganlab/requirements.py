"""Register plugins on the hooks, and check that together they make an experiment."""

import copy
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pluggy
import torch
from pluggy import HookImpl, HookimplOpts, PluginManager
from torch import Tensor, nn

from ganlab import hookspecs
from ganlab.errors import RecipeError
from ganlab.monitoring.tracing import trace_calls
from ganlab.option import Begins, NoEffect
from ganlab.plugin import Plugin, implements
from ganlab.recipe.file import did_you_mean
from ganlab.recipe.model import Recipe
from ganlab.schedule import Schedule, schedules_in

_ONE = ("make_generator", "sample_real")
_WITH_D = ("make_discriminator", "discriminator_loss")
REQUIRED = (*_ONE, *_WITH_D)
_AT_MOST_ONE = ("make_optimizer", "sample_batch")
_ONLY_WITH_D = (*_WITH_D, "penalty", "labels", "augment", "discriminator_step")
CHAINED = ("degrade", "augment", "labels", "gradients", "evaluation_generator")
_LOGITS = {"fake_logits", "real_logits"}


class _Manager(PluginManager):
    """Plugin manager that looks for hook implementations in the class of a plugin.

    pluggy looks at every attribute of the object; for a pydantic model that takes 4 ms.
    """

    def parse_hookimpl_opts(self, plugin: object, name: str) -> HookimplOpts | None:
        found = (vars(kind)[name] for kind in type(plugin).__mro__ if name in vars(kind))
        return getattr(next(found, None), f"{self.project_name}_impl", None)


def register(recipe: Recipe, *defaults: object, whole: bool = True) -> PluginManager:
    """Make a plugin manager for this recipe, with the engine's defaults registered first.

    :param whole: whether the plugins must make an experiment together.
    :raises RecipeError: when a plugin breaks the contract, or the plugins make no experiment.
    """
    manager = _Manager("ganlab")
    manager.add_hookspecs(hookspecs)
    for number, default in enumerate(defaults, 1):
        manager.register(default, name=f"engine {number}")
    for name, plugin in recipe.plugins.items():
        try:
            manager.register(plugin, name=name)
        except pluggy.PluginValidationError as error:
            fault = str(error).replace("\n", " ")
            raise plugin.error(f"it does not fit the hooks: {fault}") from None
    _check_names(manager)
    _check_chains(manager)
    if os.environ.get("GANLAB_TRACE_PLUGINS") == "1":
        trace_calls(manager)
    if whole:
        _check_settings(recipe)
        _check_slots(manager, recipe)
        _check_reach(manager, recipe)
    return manager


def dissolve(manager: PluginManager) -> None:
    """Let go of the plugins: a manager refers to itself, and would keep their memory."""
    for plugin in manager.get_plugins():
        manager.unregister(plugin)


def implementations(manager: PluginManager, hook: str) -> list[tuple[Plugin, HookImpl]]:
    """The plugins that implement a hook; the engine itself is left out."""
    caller = getattr(manager.hook, hook)
    return [(i.plugin, i) for i in caller.get_hookimpls() if isinstance(i.plugin, Plugin)]


def providers(manager: PluginManager, hook: str) -> list[Plugin]:
    """The plugins that answer a hook themselves, in recipe order; wrappers are left out."""
    return [plugin for plugin, impl in implementations(manager, hook) if not impl.wrapper]


def adversarial(manager: PluginManager) -> list[tuple[Plugin, HookImpl]]:
    """The generator losses that read logits."""
    return [
        (plugin, impl)
        for plugin, impl in implementations(manager, "generator_loss")
        if _LOGITS & set(impl.argnames)
    ]


def _check_names(manager: PluginManager) -> None:
    """Refuse a misspelt hook: it would never be called, and no message would say so."""
    callers = list(vars(manager.hook).values())
    for caller in callers:
        if not caller.has_spec():
            known = [other.name for other in callers if other.has_spec()]
            plugin, _ = implementations(manager, caller.name)[0]
            raise plugin.error(
                f"no hook is named '{caller.name}'{did_you_mean(caller.name, known)}"
            )


def _check_settings(recipe: Recipe) -> None:
    """Refuse settings of the loop that do not go together."""
    if recipe.d_steps == 0 and recipe.num_discriminators != 1:
        raise RecipeError(
            f"{recipe.file}: num_discriminators = {recipe.num_discriminators} has no effect: "
            "d_steps is 0, so there is no discriminator; leave it out"
        )
    if recipe.first == "generator" and (recipe.d_steps, recipe.g_steps) != (1, 1):
        raise RecipeError(
            f'{recipe.file}: first = "generator" needs one D step and one G step; here d_steps = '
            f"{recipe.d_steps} and g_steps = {recipe.g_steps}; set both to 1, or leave out first"
        )
    if recipe.first == "discriminator" and not recipe.share_forward:
        raise RecipeError(
            f"{recipe.origin('share_forward')}: share_forward = false has no effect: with first = "
            '"discriminator" no pass of D is shared; leave it out, or set first = "generator"'
        )
    if recipe.batch_size % recipe.accumulate:
        raise RecipeError(
            f"{recipe.file}: accumulate = {recipe.accumulate} does not divide batch_size = "
            f"{recipe.batch_size}, and all parts must be equal; choose a divisor of batch_size"
        )


def _check_slots(manager: PluginManager, recipe: Recipe) -> None:
    """Check that each hook has the plugins that it needs, and that no plugin is without effect."""
    with_d = recipe.d_steps > 0
    required = (*_ONE, *(_WITH_D if with_d else ()))
    for hook in (*required, *_AT_MOST_ONE):
        wanted = recipe.num_discriminators if hook == "make_discriminator" and with_d else 1
        names = [plugin.name for plugin in providers(manager, hook)]
        exactly = "exactly" if hook in required else "at most"
        count = "one plugin" if wanted == 1 else f"{wanted} plugins"
        rule = f"{recipe.file}: {hook} must be provided by {exactly} {count}"
        if len(names) < wanted and hook in required:
            is_of_d = hook in _WITH_D and wanted == 1
            why = " because d_steps is more than 0" if is_of_d else ""
            here = f"here {_all_do(names)}" if names else "no plugin provides it"
            without = "; d_steps = 0 trains without a discriminator" if is_of_d else ""
            raise RecipeError(
                f"{rule}{why}; {here}. `ganlab plugins --hook {hook}` lists those that can{without}"
            )
        if len(names) > wanted:
            train = ""
            if hook == "make_discriminator":
                train = f", or train against all of them with `num_discriminators = {len(names)}`"
            raise RecipeError(
                f"{rule}; here {_all_do(names)}. Drop one with `{names[0]} = false`{train}"
            )
    for hook in () if with_d else _ONLY_WITH_D:
        for plugin, _ in implementations(manager, hook):
            raise plugin.error(
                f"has no effect without a discriminator (it provides {hook}, and d_steps is 0); "
                f"set d_steps = 1, or drop {plugin.name}"
            )


def _all_do(names: list[str]) -> str:
    return " and ".join(names) + {1: " alone provides it", 2: " both provide it"}.get(
        len(names), " all provide it"
    )


def _check_chains(manager: PluginManager) -> None:
    for hook in CHAINED:
        for plugin, impl in implementations(manager, hook):
            if not impl.wrapper:
                raise plugin.error(
                    f"{hook} is chained: write it as @hookimpl(wrapper=True), with `x = yield`"
                )


def _check_reach(manager: PluginManager, recipe: Recipe) -> None:
    """Check that the generator has a loss, and that a loss reads the labels."""
    losses = implementations(manager, "generator_loss")
    with_logits = adversarial(manager)
    if not losses:
        raise RecipeError(f"{recipe.file}: no plugin provides generator_loss to train G; add one")
    if recipe.d_steps == 0 and with_logits:
        plugin, _ = with_logits[0]
        raise plugin.error("reads the discriminator's logits, but d_steps is 0; set d_steps = 1")
    if recipe.d_steps > 0 and not with_logits:
        raise RecipeError(
            f"{recipe.file}: a discriminator is trained (d_steps = {recipe.d_steps}), but no "
            "generator loss reads its logits; add one, such as bce, or set d_steps = 0"
        )
    if recipe.d_steps == 0:
        return
    losses = implementations(manager, "discriminator_loss")
    loss, impl = next((plugin, impl) for plugin, impl in losses if not impl.wrapper)
    if not {"real_label", "fake_label"} & set(impl.argnames):
        for plugin, _ in implementations(manager, "labels"):
            raise plugin.error(
                f"changes the labels, which {loss.name} does not read; remove one of the two"
            )


def warnings_of(recipe: Recipe) -> list[str]:
    """What is allowed in a recipe, but probably a mistake; each names the plugin or the option.

    An option without effect is told here if a run of another length, or an ablation, would state
    it on purpose. What could have no effect in any run is refused elsewhere.
    """
    plugins = list(recipe.plugins.values())
    found = [
        f"{plugin.name} {warning}"
        for plugin in plugins
        for warning in plugin.warnings([other for other in plugins if other is not plugin])
    ]
    every = recipe.watch_every
    if every > recipe.iterations and every != Recipe.model_fields["watch_every"].default:
        found.append(_never_reached("watch_every", every, recipe.iterations, "iterations"))
    if (waits := recipe.patience * recipe.evaluate_every) >= recipe.iterations:
        found.append(
            f"patience is {recipe.patience} evaluations, {waits:,} iterations, but the run ends at "
            f"{recipe.iterations:,}, so it has no effect"
        )
    return found + [warning for plugin in plugins for warning in _idle_options(recipe, plugin)]


def _idle_options(recipe: Recipe, plugin: Plugin) -> Iterator[str]:
    """Say which options of a plugin have no effect in a run of this length."""
    rest = max(other.rest_of_discriminator() for other in recipe.plugins.values())
    d_steps = recipe.d_steps * max(recipe.iterations - rest, 0)
    last = recipe.iterations - 1
    first = min(rest, last) if _acts_with_d_only(plugin) else 0
    for name, field in type(plugin).model_fields.items():
        option, value = f"{plugin.name}.{field.alias or name}", getattr(plugin, name)
        still = [why for one in schedules_in(value) if (why := _why_still(one, first, last))]
        idle = False
        for mark in field.metadata:
            if isinstance(mark, NoEffect):
                constant = _constant(value, first, last)
                idle = constant == mark.at and _constant(field.default, first, last) != mark.at
                if idle:
                    yield f"{option} {_stays(constant, first)}, so it has no effect"
            elif isinstance(mark, Begins):
                total = recipe.iterations if mark.after == "iterations" else d_steps
                for number in value if isinstance(value, tuple) else (value,):
                    if number and number >= total:
                        yield _never_reached(option, number, total, mark.after)
        yield from (f"{option} never changes: {why}" for why in still if not idle)


def _why_still(schedule: Schedule, first: int, last: int) -> str:
    """Why a schedule does not move between two iterations; "" if it does."""
    if not schedule.moves or schedule.at(first) != schedule.at(last):
        return ""
    if schedule.at(last) == schedule.start:
        return f"it begins after iteration {schedule.after:,}, and the last one is {last:,}"
    return f"it has ended before D's first step, at iteration {first:,}"


def _stays(value: Any, first: int) -> str:
    shown = f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"is {shown} " + (
        f"from D's first step on (iteration {first:,})" if first else "throughout"
    )


def _constant(value: Any, first: int, last: int) -> Any:
    """The value of an option between two iterations; None when it changes."""
    if not isinstance(value, Schedule):
        return value
    return value.at(first) if value.at(first) == value.at(last) else None


def _never_reached(option: str, number: int, total: int, what: str) -> str:
    return f"{option} = {number:,} is never reached: the run has {total:,} {what}"


def _acts_with_d_only(plugin: Plugin) -> bool:
    """Whether a plugin acts in iterations with a D step only."""
    silent = {*_ONLY_WITH_D, "run_start", "make_optimizer"}
    hooks = [name for name in vars(hookspecs) if implements(plugin, name) and name not in silent]
    loss: Any = getattr(plugin, "generator_loss", None)
    return not hooks or (
        hooks == ["generator_loss"] and bool(_LOGITS & inspect.signature(loss).parameters.keys())
    )


def check_images(recipe: Recipe, samples: Tensor) -> None:
    """Refuse a plugin that is for images when the samples of the data are not images."""
    for plugin in recipe.plugins.values():
        if plugin.images_only and samples.dim() != 4:
            raise plugin.error(
                f"is for images, but a sample of this data is {[*samples.shape[1:]]}; drop it"
            )


def check_sample_independence(
    recipe: Recipe, owner: Plugin, discriminator: nn.Module, images: Tensor
) -> None:
    """Refuse a per-sample penalty on a discriminator that mixes the images of a batch.

    On a probe batch, the gradient of one image's logits with respect to the other images must be
    zero. This is measured, so it works for every discriminator.

    :param owner: the plugin that made the discriminator.
    :param images: at least two.
    """
    demanding = [plugin for plugin in recipe.plugins.values() if plugin.per_sample]
    if not demanding:
        return
    probe = copy.deepcopy(discriminator).train()  # a copy keeps the statistics of batch norm
    for parameter in probe.parameters():
        # a layer whose weights begin at zero would hide the layers before it
        parameter.data += 0.01 * torch.randn_like(parameter)
    images = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(probe(images)[0].sum(), images)
    if not gradient[1:].any():
        return
    norms = [m for m in discriminator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    what = (
        f"without batch norm, and {owner.name} has {len(norms)} such layers"
        if norms
        else (f"that judges each image alone, but in {owner.name} one changes another's logits")
    )
    setting = owner.without_batch_norm
    remedy = f"; set {owner.name}.{setting}." if setting else "."
    raise demanding[0].error(f"{demanding[0].name} needs a discriminator {what}{remedy}")
