"""`Run`: what the steps and the plugins see of a run, and how one optimizer step is taken."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pluggy import HookCaller, HookRelay, PluginManager
from torch import Tensor, nn
from torch.optim import Optimizer

from ganlab.errors import Diverged, RecipeError
from ganlab.guard import FLAG, fault_of, flag_of, is_sound, left_out_where
from ganlab.plugin import Batch, Losses, Plugin
from ganlab.ranks.world import ALONE, World
from ganlab.recipe.model import Recipe
from ganlab.runs.data import Data
from ganlab.runs.folder import RunFolder
from ganlab.runs.reading import Written
from ganlab.shared_forward import Cut, Pass
from ganlab.speed.device import autocast
from ganlab.streams import Streams

Value = TypeVar("Value")
Observer = Callable[[str, nn.Module, Losses], AbstractContextManager[Losses]]
"""Observes an optimizer step: from the role ("G" or "D"), the network and the losses to a context.
The context is entered before the backward pass, left after the step, and yields values to log."""
AS_WRITTEN_EVERY = 20  # watched iterations; one takes the time of 15 to 20 replayed ones
_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


class Terms(NamedTuple):
    """What a step computes on a batch: the losses to descend, and values that are only logged."""

    losses: Losses
    logged: Losses = {}
    cut: Cut | None = None
    """Set by `generator_losses` when D's pass is shared with the D step."""


LossesOf = Callable[["Run", Batch], Terms]


@dataclass(slots=True)
class Progress:
    """How far a run has come: what a checkpoint stores beside networks, optimizers and plugins."""

    iteration: int = 0
    """Iterations completed; during an iteration, its number, counted from 0."""
    evaluated: int = 0
    """Iteration of the last evaluation that the recipe plans; the checkpoint of an iteration comes
    before its evaluation."""
    best: tuple[int, float] | None = None
    """Iteration and figure of the best evaluation so far."""
    best_scores: dict[str, float] = field(default_factory=dict)
    """The finite scores of images behind the best figure; empty when it is no mean of scores."""
    scores: dict[str, float] = field(default_factory=dict)
    """Figures of the last evaluation."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """The images that a figure of the last evaluation does not count."""
    bicubic: dict[str, float] = field(default_factory=dict)
    """The same figures of bicubic enlargement, once evaluated."""
    unscored: dict[str, list[str]] = field(default_factory=dict)
    """The images on which a score of bicubic enlargement is not finite; no mean counts them."""
    game_began: int | None = None
    """The iteration of D's first step."""
    logs: Written = field(default_factory=dict)
    """How far the logs were written, for checking them when the run is resumed."""
    rolled_back: int = 0
    """How often the run went back to a checkpoint because a number was not finite."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many steps of "G" and "D" were skipped because a number was not finite."""
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)
    """The same, since the network's last step that was taken."""


@dataclass(slots=True)
class StepState:
    """What is true during one step only; the loop sets it before each step."""

    name: str = ""
    """Which step of the iteration it is, such as "step 1 of D"."""
    observer: Observer | None = None
    """Observes this step from its losses to its end, in a watched iteration."""
    as_written: bool = False
    """Whether this step runs as written, whatever the execution: what observes it needs Python."""
    share_forward: bool = False
    """Whether D's pass over G's images in the G step serves the D step too."""
    passes: list[Pass] = field(default_factory=list)
    """What the G step of this iteration left for its D step."""
    full_precision: bool = False
    """Whether networks run without bfloat16, to measure how much it rounds."""
    judging: Literal["real", "fake", ""] = ""
    """Which images D is judging at this moment."""


class GeneratorLoss(NamedTuple):
    """The hook `generator_loss` in two parts."""

    content: HookCaller
    """Of the plugins that read no logits."""
    adversarial: HookCaller
    """Of the plugins that read logits."""


@dataclass(slots=True, weakref_slot=True)
class Run:
    """All that a run is made of. Event hooks receive it; tensor hooks never do.

    A plugin may read everything here. It may change what it made itself, and take optimizer steps
    through `descend`.
    """

    recipe: Recipe
    device: torch.device
    streams: Streams
    folder: RunFolder | None = None
    """Where results are written; None in a run that keeps nothing, such as a check."""
    manager: PluginManager = field(init=False, repr=False)
    generator_loss: GeneratorLoss = field(init=False)
    condition_shape: tuple[int, ...] = field(init=False)
    """Of one sample that G sees: (C, h, w)."""
    real_shape: tuple[int, ...] = field(init=False)
    """Of one real sample: (C, H, W)."""
    G: nn.Module = field(init=False)
    G_optimizer: Optimizer = field(init=False)
    D: nn.Module | None = None
    """A ModuleList when the recipe has several discriminators; None when it has none."""
    D_optimizer: Optimizer | None = None
    former_ends: frozenset[int] = frozenset()
    """Where the run was done, and so was evaluated, before it was made longer."""
    optimizer_options: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The options of each optimizer's groups as the recipe makes them, before any step."""
    held_out: dict[str, Tensor] = field(default_factory=dict)
    """The images for evaluation: name -> uint8 [C, H, W]."""
    data: Data = field(default_factory=dict)
    """What the run reads, as digests: training data, held-out images, weights."""
    world: World = ALONE
    """The processes that train this run together; usually this one alone."""
    samples_whole: bool = False
    """Whether each of several processes draws the whole batch and keeps its rows, because its rows
    alone would be drawn otherwise."""
    execution: "Eager" = field(default_factory=lambda: Eager())
    """How optimizer steps are carried out: as written, compiled, or captured as CUDA graphs."""
    share_forward: bool = False
    """Whether one pass of D serves both steps of an iteration that is not watched."""
    progress: Progress = field(default_factory=Progress)
    step: StepState = field(default_factory=StepState)
    sampling_seconds: float = 0.0
    """Time of this process in the hook `sample_batch`; on a CPU, what the data take of training."""
    flags: Losses = field(default_factory=dict)
    """The steps of this iteration, by name, each with a flag on the device: 1 when a number was not
    finite. Empty on a CPU, where such a step raises `Diverged` at once."""
    batches: list[Batch] = field(default_factory=list)
    """The batches of the steps of this iteration so far."""
    given: list[Batch] = field(default_factory=list)
    """Batches that the next steps take in the place of new ones: those of a bundle."""
    skips: list[Diverged] = field(default_factory=list)
    """The steps of this iteration that were skipped, and what was not finite."""
    notes: list[str] = field(default_factory=list)
    """Facts for the user about how this run is carried out. `ganlab run` prints each once."""

    def take_part_in(self, world: World) -> None:
        """Let the run and its plugins know the processes that train it together."""
        self.world = world
        for plugin in self.recipe.plugins.values():
            plugin.bind(world=world)

    @property
    def hook(self) -> HookRelay:
        """The hooks: `run.hook.degrade(images=...)` asks the plugins."""
        return self.manager.hook

    @property
    def iteration(self) -> int:
        """Iterations completed; during an iteration, its number, counted from 0."""
        return self.progress.iteration

    @iteration.setter
    def iteration(self, number: int) -> None:
        self.progress.iteration = number

    @property
    def networks(self) -> dict[str, nn.Module]:
        """G, and D if there is one, by these names."""
        return {"G": self.G} | ({} if self.D is None else {"D": self.D})

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers of `networks`, by the same names."""
        return {"G": self.G_optimizer} | (
            {} if self.D_optimizer is None else {"D": self.D_optimizer}
        )

    @property
    def as_written_every(self) -> int:
        """Iterations from one that runs as written to the next, where the others are replayed."""
        usual = Recipe.model_fields["watch_every"].default
        return AS_WRITTEN_EVERY * int(self.recipe.watch_every or usual)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images: float32, or float64 where the recipe asks for it."""
        return _DTYPES[self.recipe.precision]

    @property
    def scale(self) -> int:
        """How many times larger G makes an image."""
        return self.real_shape[-1] // self.condition_shape[-1]

    @property
    def reads_real_logits(self) -> bool:
        """Whether a generator loss reads the logits of the real images."""
        losses = self.generator_loss.adversarial.get_hookimpls()
        return any("real_logits" in loss.argnames for loss in losses)

    @property
    def judges_by_sign(self) -> bool:
        """Whether the sign of a logit is D's decision between real and fake."""
        return any(plugin.judges_by_sign for plugin in self.plugins_with("discriminator_loss"))

    def plugins_with(self, hook: str) -> list[Plugin]:
        """The plugins that implement a hook, in recipe order; the engine itself is left out."""
        found = getattr(self.hook, hook).get_hookimpls()
        return [impl.plugin for impl in found if isinstance(impl.plugin, Plugin)]

    def generator_losses_of(self, plugins: Iterable[Plugin]) -> HookCaller:
        """The hook `generator_loss` of these plugins only."""
        kept = list(plugins)
        others = [plugin for plugin in self.plugins_with("generator_loss") if plugin not in kept]
        return self.manager.subset_hook_caller("generator_loss", others)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the precision in which networks run."""
        if self.step.full_precision:
            return nullcontext()
        return autocast(self.recipe.precision, self.device)

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The function to call for a network in a step: itself, or its compiled form."""
        return self.execution.network(module)

    def descend(self, optimizer: Optimizer | None, losses: LossesOf, batch: Batch) -> Losses:
        """Take one optimizer step down the sum of the losses. Steps are taken only here.

        :param losses: function from the run and a batch to `Terms`, such as `generator_losses`.
            Give the same function at every step: it is captured once and replayed where the device
            allows.
        :returns: the losses, detached; other values to log; in a watched step also the values of
            its observer.
        :raises Diverged: on a CPU, before the step, when a number is not finite.
        """
        assert optimizer is not None
        update = Update("D" if optimizer is self.D_optimizer else "G", losses)
        if update.role == "D" and self.progress.game_began is None:
            self.progress.game_began = self.iteration
        found = self.execution.take(self, update, batch)
        if (flag := found.pop(FLAG, None)) is not None:
            before = self.flags.get(self.step.name)
            self.flags[self.step.name] = flag if before is None else torch.maximum(before, flag)
        if update.role == "D":
            self.step.passes.clear()  # D has changed
        return found


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step of one network. Calling it takes the step as it is written."""

    role: Literal["G", "D"]
    losses: LossesOf

    def module(self, run: Run) -> nn.Module:
        module = run.G if self.role == "G" else run.D
        assert module is not None
        return module

    def optimizer(self, run: Run) -> Optimizer:
        optimizer = run.G_optimizer if self.role == "G" else run.D_optimizer
        assert optimizer is not None
        return optimizer

    def parameters(self, run: Run) -> list[Tensor]:
        return [p for p in self.module(run).parameters() if p.requires_grad]

    def __call__(self, run: Run, batch: Batch) -> Losses:
        """Compute losses, backward and step, in the recipe's `accumulate` parts of the batch.

        :returns: as `Run.descend` does; means over the parts.
        """
        module, optimizer, parameters = self.module(run), self.optimizer(run), self.parameters(run)
        parts = batch.parts(run.recipe.accumulate)
        found: list[Losses] = []
        totals: list[Tensor] = []
        seen: Losses = {}
        optimizer.zero_grad(set_to_none=True)
        with ExitStack() as observing:
            for part in parts:
                terms = self.losses(run, part)
                if run.step.observer and not found:  # the first part is enough
                    observer = run.step.observer(self.role, module, terms.losses)
                    seen = observing.enter_context(observer)
                total = torch.stack(list(terms.losses.values())).sum()
                total = total / len(parts) if len(parts) > 1 else total
                if terms.cut:
                    terms.cut.backward(total, parameters)
                else:
                    total.backward(inputs=parameters, retain_graph=run.execution.keeps_graphs)
                totals.append(total.detach())
                found.append({n: v.detach() for n, v in (terms.losses | terms.logged).items()})
            if run.world.size > 1:
                self._average(run, parameters, totals, found)
            named = {"G": "generator", "D": "discriminator"}[self.role]
            flags = [self._flag(run, totals, found, terms.losses.keys())]
            told = run.hook.gradients(module=module, role=named)
            if run.plugins_with("gradients"):  # what they made of finite numbers may not be finite
                flags.append(self._flag(run, totals, found, terms.losses.keys()))
            flag = self._step_unless(run, flags)
            # freed before the other network's step: the memory peak is lower
            optimizer.zero_grad(set_to_none=True)
        return merged(run, [mean(found), told]) | seen | flag

    @staticmethod
    def _average(
        run: Run, parameters: list[Tensor], totals: list[Tensor], found: list[Losses]
    ) -> None:
        """Make gradients and values those of the whole batch, of which this process has rows."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for losses in found:  # a plugin may give one tensor twice, or one that it keeps
            losses.update({name: value.clone() for name, value in losses.items()})
        values = [value for losses in found for value in losses.values()]
        run.world.average([*gradients, *totals, *values])

    def _flag(
        self, run: Run, totals: list[Tensor], found: list[Losses], names: Collection[str]
    ) -> Tensor | None:
        """The flag of `guard`, where the host does not know yet; None where all is finite.

        :param found: the values of each part of the batch.
        :param names: those of them that are losses.
        :raises Diverged: where the host knows that a number is not finite.
        """
        optimizer = self.optimizer(run)
        if run.device.type != "cpu" or run.execution.replays:
            return flag_of(optimizer, totals)
        if is_sound(optimizer, totals):
            return None
        losses = {name: value for name, value in mean(found).items() if name in names}
        what = fault_of(self.module(run), optimizer, losses)
        optimizer.zero_grad(set_to_none=True)
        raise Diverged(run.iteration + 1, what, run.step.name)

    def _step_unless(self, run: Run, flags: Sequence[Tensor | None]) -> Losses:
        """Take the optimizer's step, unless a flag is set; returns the flag, if there is one."""
        optimizer, known = self.optimizer(run), [flag for flag in flags if flag is not None]
        if not known:
            optimizer.step()
            return {}
        flag = reduce(torch.maximum, known)
        with left_out_where(flag, optimizer):
            optimizer.step()
        return {FLAG: flag}


class Eager:
    """Optimizer steps carried out as they are written. `speed/` has the quicker ways."""

    replays = False
    """Whether steps are replayed, so that only steps that run as written show what Python does."""

    keeps_graphs = False
    """Whether a backward pass keeps the graph, so that it can be recorded once and used again."""

    slow_steps = 0
    """How many steps took longer than later ones will: they warmed up, were tried or captured."""

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The function to call in a step for a network."""
        return module

    def running(self) -> AbstractContextManager[Any]:
        """Context of the whole training."""
        return nullcontext()

    def forget(self) -> None:
        """Forget recorded steps: other parameters are trained from now on.

        A plugin that changes `requires_grad` of a parameter for good calls it between two steps.
        """

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        """Take a step."""
        return update(run, batch)


def discriminators(run: Run) -> list[nn.Module]:
    """The list of discriminators; empty in a run without one."""
    if run.D is None:
        return []
    return list(run.D) if isinstance(run.D, nn.ModuleList) else [run.D]


def require_discriminator(plugin: Plugin, run: Run, option: str) -> None:
    """Refuse an option that is about the discriminator in a recipe without one.

    :raises RecipeError: when `d_steps` is 0.
    """
    if not run.recipe.d_steps:
        raise plugin.error("there is no discriminator (d_steps = 0); leave the option out", option)


def mean(several: Sequence[Losses]) -> Losses:
    """The mean of each term over several discriminators, or over several parts of a batch."""
    if len(several) == 1:
        return several[0]
    return {name: torch.stack([one[name] for one in several]).mean() for name in several[0]}


def merged(run: Run, answers: Iterable[dict[str, Value]]) -> dict[str, Value]:
    """The answers of several plugins as one dict.

    :raises RecipeError: when two of them use one name.
    """
    result: dict[str, Value] = {}
    for answer in answers:
        if twice := result.keys() & answer.keys():
            raise RecipeError(
                f"{run.recipe.file}: two plugins returned {', '.join(sorted(twice))}; give one "
                "of them another name in the recipe, or build the name from self.name"
            )
        result |= answer
    return result


def num_parameters(module: nn.Module) -> int:
    """How many numbers of a network are trained."""
    return sum(p.numel() for p in module.parameters())
