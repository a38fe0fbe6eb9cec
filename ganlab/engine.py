"""A run: assembled from a recipe, then the loop. The steps themselves are in steps.py."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

import torch
from pluggy import HookCaller, HookRelay, PluginManager
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ganlab.assembly import (
    adversarial,
    check_images,
    check_sample_independence,
    hindrance_to_sharing,
    implementations,
    providers,
    register,
)
from ganlab.monitoring.attribution import attributed
from ganlab.checkpoint import (
    roll_back,
    state_of,
    weights_of,
    write_checkpoint,
    write_weights,
)
from ganlab.speed.descent import LossesOf, Update
from ganlab.speed.device import autocast, choose_numerics, keep_freed_memory, wants_channels_last
from ganlab.errors import Diverged, RecipeError
from ganlab.evaluation.scores import check_held_out, evaluating, judge_run
from ganlab.speed.fast import Eager, choose
from ganlab.runs.folder import RunFolder
from ganlab.evaluation.health import game_health
from ganlab.runs.journal import Journal
from ganlab.plugin import Batch, Plugin, Schedule
from ganlab.recipe.model import Recipe
from ganlab.speed.activation_checkpointing import checkpoint_activations
from ganlab.steps import EngineDefaults, Losses, Pass, discriminators, merged
from ganlab.streams import Streams
from ganlab.monitoring.verdicts import Verdict
from ganlab.runs.writer import Writer

PROBE = 2  # samples in the batch that shapes are learnt from; two show whether D mixes them
Observer = Callable[[str, nn.Module, Losses], AbstractContextManager[Losses]]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


@dataclass(slots=True)
class Run:
    """All that a run is made of. Event hooks get it; tensor hooks never do."""

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    streams: Streams
    folder: RunFolder | None = None
    manager: PluginManager = field(init=False, repr=False)
    hook: HookRelay = field(init=False)
    content_loss: HookCaller = field(init=False)
    """The generator losses that read no logits; `adversarial_loss` is the others."""
    adversarial_loss: HookCaller = field(init=False)
    reads_real_logits: bool = field(init=False)
    judges_by_sign: bool = field(init=False)
    condition_shape: tuple[int, ...] = field(init=False)
    real_shape: tuple[int, ...] = field(init=False)
    G: nn.Module = field(init=False)
    G_optimizer: Optimizer = field(init=False)
    D: nn.Module | None = None
    """A ModuleList when the recipe has several discriminators."""
    D_optimizer: Optimizer | None = None
    iteration: int = 0
    """Iterations completed; inside an iteration, its number counted from 0."""
    observer: Observer | None = None
    """Looks at a step between its losses and its end; set by the engine in a watched step."""
    fast: Eager = field(default_factory=Eager)
    """How updates are carried out; `fast.choose` has the choice."""
    writer: Writer = field(default_factory=Writer)
    """Writes checkpoints, weights and pictures while training goes on."""
    saving: Future[None] | None = None
    """The checkpoint that is on its way."""
    say: Callable[[str], None] = print
    """Tells the person at the terminal a line."""
    shares_forward: bool = False
    """Whether D runs once on the images that G made in an iteration, for both steps."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of how this run is carried out; told when it starts."""
    passes: list[Pass] = field(default_factory=list)
    """What the G step of this iteration leaves to its D step."""
    schedules: list[Schedule] = field(default_factory=list)
    """The options of plugins that change over iterations."""
    held_out: dict[str, Tensor] = field(default_factory=dict)
    """The images to judge on: name -> uint8 [C, H, W]."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    bicubic: dict[str, float] = field(default_factory=dict)
    """Of plain bicubic enlargement on the held-out images, once evaluated."""
    best: tuple[int, float] | None = None
    """Iteration and figure of the best evaluation so far."""
    game_began: int | None = None
    """The iteration of D's first step."""

    @property
    def scale(self) -> int:
        """How many times larger an image the generator makes."""
        return self.real_shape[-1] // self.condition_shape[-1]

    def generator_losses_of(self, plugins: Iterable[Plugin]) -> HookCaller:
        """The hook `generator_loss` of just these plugins."""
        kept = list(plugins)
        others = [p for p, _ in implementations(self.manager, "generator_loss") if p not in kept]
        return self.manager.subset_hook_caller("generator_loss", others)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which networks run."""
        return autocast(self.recipe.precision, self.device)

    @property
    def sharing(self) -> bool:
        """Whether D's pass over G's images in this G step serves the D step too."""
        return self.shares_forward and self.observer is None

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """What to call for a network's answer in a step: itself, or its compiled form."""
        return self.fast.network(module)

    def descend(self, optimizer: Optimizer | None, losses: LossesOf, batch: Batch) -> Losses:
        """Take one optimizer step down the sum of the losses: the only place where that happens.

        :param losses: a function such as `generator_losses`; the same one at every step, since it
            is captured once and replayed where the device allows it.
        :returns: the losses, detached, what else is to be logged, and what the observer of a
            watched step saw.
        """
        assert optimizer is not None
        update = Update("D" if optimizer is self.D_optimizer else "G", losses)
        if update.role == "D" and self.game_began is None:
            self.game_began = self.iteration
        found = update(self, batch) if self.observer else self.fast(self, update, batch)
        if update.role == "D":
            self.passes.clear()  # they are of D as it was
        return found


def assemble(recipe: Recipe, device: torch.device, folder: RunFolder | None = None) -> Run:
    """Build the networks and optimizers of a recipe, and check that they fit together.

    :raises RecipeError: when they do not.
    """
    run = open_run(recipe, device, folder)
    with torch.no_grad():
        check_images(recipe, run.hook.sample_real(batch_size=PROBE, device=device))
        batch = run.hook.sample_batch(batch_size=PROBE, device=device)
        shown = run.hook.augment(images=batch.real, condition=batch.condition)
    run.condition_shape = tuple(batch.condition.shape[1:])
    run.real_shape = tuple(batch.real.shape[1:])
    if recipe.d_steps:
        run.D = build_network(run, "make_discriminator", tuple(shown.shape[1:]))
        owners = providers(run.manager, "make_discriminator")
        for owner, D in zip(owners, discriminators(run), strict=True):
            check_sample_independence(recipe, owner, D, shown)
        run.D_optimizer = run.hook.make_optimizer(module=run.D, role="discriminator")
        if recipe.first == "generator" and recipe.share_forward:
            reason = hindrance_to_sharing(recipe, run.manager, discriminators(run), shown)
            run.shares_forward = not reason
            if reason:
                run.notes.append(f"D judges G's images once more in its own step: {reason}")
    run.G = build_network(run, "make_generator", run.real_shape)
    run.G_optimizer = run.hook.make_optimizer(module=run.G, role="generator")
    with torch.no_grad(), evaluating(run.G), run.autocast():
        made = tuple(run.G(batch.condition).shape[1:])
    if made != run.real_shape:
        raise RecipeError(
            f"{recipe.file}: the generator makes {made} from {run.condition_shape}, but real "
            f"samples are {run.real_shape}; do the scales agree?"
        )
    if recipe.accumulate > 1:
        size = recipe.batch_size // recipe.accumulate
        run.notes += [
            f"batch norm of the {role} sees {size} samples at a time, not {recipe.batch_size}: "
            "not the same step as without accumulate"
            for role, network in (("generator", run.G), ("discriminator", run.D))
            if network and any(isinstance(m, _BatchNorm) for m in network.modules())
        ]
    if recipe.activation_checkpointing:
        checkpoint_activations(run, batch.condition, shown)
    run.fast = choose(run)
    run.held_out = merged(run, run.hook.evaluation_images())
    check_held_out(run)
    run.hook.run_start(run=run)
    return run


def open_run(recipe: Recipe, device: torch.device, folder: RunFolder | None = None) -> Run:
    """A run with its plugins on their hooks, and no data or network touched yet."""
    choose_numerics(device, recipe.tf32, recipe.deterministic)
    streams = Streams(recipe.seed, device)
    run = Run(recipe, device, _DTYPES[recipe.precision], streams, folder)
    manager = register(recipe, EngineDefaults(run))
    run.manager, run.hook = manager, manager.hook
    with_logits = adversarial(manager)
    adversaries = [plugin for plugin, _ in with_logits]
    plugins = recipe.plugins.values()
    run.adversarial_loss = run.generator_losses_of(adversaries)
    run.content_loss = run.generator_losses_of(p for p in plugins if p not in adversaries)
    objectives = providers(manager, "discriminator_loss")
    run.judges_by_sign = any(plugin.judges_by_sign for plugin in objectives)
    run.reads_real_logits = any("real_logits" in impl.argnames for _, impl in with_logits)
    for plugin in recipe.plugins.values():
        plugin._streams = streams
        for schedule in plugin.schedules():
            schedule.to(device)
            run.schedules += [schedule] if schedule.moves else []
    return run


def build_network(run: Run, hook: str, real_shape: tuple[int, ...]) -> nn.Module:
    """A network whose initial weights are a function of the seed and its role alone.

    Several discriminators become a ModuleList, in the order of the recipe.
    """
    made: list[nn.Module] = []
    plugins = providers(run.manager, hook)
    for number, plugin in enumerate(plugins):
        # each by itself, so that one more leaves the weights of those before it as they are
        others = [other for other in plugins if other is not plugin]
        build = run.manager.subset_hook_caller(hook, others)
        run.streams.moment("weights", hook, *([number] if number else []))
        answer = build(condition_shape=run.condition_shape, real_shape=real_shape)
        made += answer if isinstance(answer, list) else [answer]
    module = made[0] if len(made) == 1 else nn.ModuleList(made)
    module = module.to(run.device, run.dtype)
    if wants_channels_last(run.recipe.precision, run.device):
        module = module.to(memory_format=torch.channels_last)
    return module


def train(run: Run, journal: Journal, stop: Callable[[], str] = lambda: "") -> str:
    """Iterate until the recipe's end or until `stop()` gives a reason; the state is saved.

    :param stop: "" to go on; "signal" saves and leaves, at any other reason G is judged too.
    :returns: the reason, "" when the recipe's end was reached, "verdict" when that ended it.
    :raises Diverged: when a loss is not finite; the last checkpoint is from before.
    """
    run.say = journal.say
    keep_freed_memory()
    with closing(run.writer), run.fast.running():
        return _train(run, journal, stop)


def _train(run: Run, journal: Journal, stop: Callable[[], str]) -> str:
    recipe, saved, judged = run.recipe, run.iteration, -1
    reason = ""
    while not reason and run.iteration < recipe.iterations and not (reason := stop()):
        losses = iterate(run)
        run.iteration += 1
        journal.record(run.iteration, losses)
        last = run.iteration == recipe.iterations
        evaluating_now = last or run.iteration % recipe.evaluate_every == 0
        saving_now = last or run.iteration % recipe.checkpoint_every == 0
        if evaluating_now:
            judged = evaluate(run, journal)
        # before the checkpoint, so that a run killed in between finds the same again
        found = look_for_verdicts(run, journal) if evaluating_now or saving_now else []
        if saving_now:
            saved = save(run, journal)
        reason = "verdict" if found and recipe.on_verdict != "carry on" else ""
    if reason == "verdict" and recipe.on_verdict == "roll back":
        assert run.folder
        run.writer.wait()
        saved = roll_back(run, run.folder.checkpoints, min(verdict.since for verdict in found))
        journal.say(f"rolled back to iteration {run.iteration}")
    if saved != run.iteration:
        save(run, journal)
    if reason not in ("", "signal") and judged != run.iteration:
        evaluate(run, journal, planned=False)
    run.hook.run_end(run=run)
    return reason


def iterate(run: Run, observer: Observer | None = None) -> dict[str, Tensor]:
    """One iteration: the D steps, then the G steps, each on a batch of its own.

    With `first = "generator"` one step each on one batch, G's first.

    :param observer: looks at the first step of each network; else `attributed` does in a watched
        iteration, and nothing in the others.
    :returns: every logged value, its mean over the steps that gave one, on the device.
    """
    recipe, hook = run.recipe, run.hook
    run.streams.moment(run.iteration)
    for schedule in run.schedules:
        schedule.advance(run.iteration)
    hook.iteration_start(run=run)
    if _is_watched(run):
        observer = observer or attributed
    several: dict[str, list[Tensor]] = {}
    players = [
        ("D", recipe.d_steps, hook.discriminator_step),
        ("G", recipe.g_steps, hook.generator_step),
    ]
    shared = recipe.first == "generator"
    batch: Batch | None = None
    for role, count, step in reversed(players) if shared else players:
        for index in range(count):
            run.streams.moment(run.iteration, role, index)
            # the first of several is enough: a watched step costs a backward pass a loss
            run.observer = observer if index == 0 else None
            if batch is None or not shared:
                batch = hook.sample_batch(batch_size=recipe.batch_size, device=run.device)
            for name, value in step(run=run, batch=batch).items():
                several.setdefault(name, []).append(value)
    run.observer = None
    run.passes.clear()
    # a lazy penalty is not there in every step
    losses = {
        n: v[0] if len(v) == 1 else torch.stack(v).double().mean() for n, v in several.items()
    }
    hook.iteration_end(run=run, losses=losses)
    return losses


def _is_watched(run: Run) -> bool:
    """At the recipe's interval, and as the game begins, against which later steps are held."""
    every, began = run.recipe.watch_every, run.game_began
    beginning = began is not None and run.iteration - began in (1, 2, 4, 8, 16)
    return every > 0 and (beginning or (run.iteration + 1) % every == 0)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).double().mean()


def evaluate(run: Run, journal: Journal, planned: bool = True) -> int:
    """Judge the generator, write its weights, and keep them when they are the best so far.

    :param planned: else it is for the person who stopped the run, and leaves nothing behind that
        would tell the resumed run from one that was never stopped.
    """
    assert run.folder
    _require_finite(run, journal)
    generator = run.hook.evaluation_generator(generator=run.G)
    with evaluating(generator):
        figures, scores, health = judge_run(run, generator)
        health |= game_health(run, generator)
    run.scores = figures
    figure = figures.get(run.recipe.best_metric)
    sign = 1 if run.recipe.best_is == "highest" else -1
    best = planned and figure is not None and (not run.best or sign * (figure - run.best[1]) > 0)
    if best and figure is not None:
        run.best = (run.iteration, figure)
    weights = weights_of(run, generator)
    for name in ("last", "best") if best else ("last",):
        run.writer.later(write_weights, weights, run.folder.weights(name))
    if figures or health:
        journal.evaluation(run.iteration, figures, scores, health, planned)
    return run.iteration


def look_for_verdicts(run: Run, journal: Journal) -> list[Verdict]:
    """Tell and write what fails by now and was not told before."""
    journal.flush()
    found = [one for several in run.hook.verdicts(history=journal.history) for one in several]
    new = {v.name: v for v in reversed(found) if v.name not in journal.verdicts}
    for verdict in new.values():
        journal.verdict(run.iteration, verdict, run.recipe.on_verdict)
    return list(new.values())


def save(run: Run, journal: Journal) -> int:
    """Checkpoint the run; what the journal holds is on the disk before."""
    assert run.folder
    _require_finite(run, journal)
    journal.sync()
    if run.saving:
        run.saving.result()  # one at a time: states that wait for a slow disk would fill the memory
    run.saving = run.writer.later(write_checkpoint, state_of(run), run.folder.checkpoints)
    return run.iteration


def _require_finite(run: Run, journal: Journal) -> None:
    """Let no checkpoint and no weights for use hold what has diverged.

    :raises Diverged: naming the first loss, or the network, that is not finite.
    """
    journal.flush()
    for name, network in (("G", run.G), ("D", run.D)):
        # one answer for all of them: a device is waited for once
        norms = list(torch._foreach_norm(list(network.parameters()))) if network else []
        if norms and not torch.stack(norms).isfinite().all():
            raise Diverged(f"iteration {run.iteration}: the weights of {name} are not finite")
