"""The two steps of a GAN and the engine's other defaults, each a hook implementation asked last."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from pluggy import HookCaller
from torch import Tensor, nn

from ganlab.monitoring.attribution import of_logits
from ganlab.errors import RecipeError
from ganlab.plugin import Batch, hookimpl
from ganlab.monitoring.verdicts import History, Verdict, find_verdicts

if TYPE_CHECKING:
    from ganlab.engine import Run

Losses = dict[str, Tensor]
Value = TypeVar("Value")


class Terms(NamedTuple):
    """What a step computes on a batch: the losses to descend, and values that are merely logged."""

    losses: Losses
    logged: Losses = {}
    cut: tuple[Tensor, Tensor] | None = None
    """Where G's images were cut off from what judged them: as G made them, and as a leaf."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """G's images on a condition, left by a G step to the D step of the same batch."""

    condition: Tensor
    fake: Tensor
    """Without gradient."""
    logits: list[Tensor]
    """Of each D, with their graph to its weights; empty when D's pass is not shared."""

    def is_of(self, batch: Batch) -> bool:
        mine, theirs = self.condition, batch.condition
        return mine.data_ptr() == theirs.data_ptr() and mine.shape == theirs.shape


def discriminator_losses(run: "Run", batch: Batch) -> Terms:
    """D's losses on one batch, and what else to log. No gradient reaches G."""
    hook = run.hook
    real, fake = shown(run, batch)
    passed = passed_on(run, batch)
    watched: list[Losses] = []

    def losses(number: int, D: nn.Module) -> Losses:
        if passed and passed.logits:
            of_fake = passed.logits[number]
        elif passed:
            # seen by D in G's step already; before the real images, as when that pass is shared,
            # for the order of D's passes is the order in which their gradients are summed
            with statistics_kept(D):
                of_fake = judge(run, D, fake)
        of_real = judge(run, D, real)
        if not passed:
            of_fake = judge(run, D, fake)
        logits = {"real_logits": of_real, "fake_logits": of_fake}
        watched.append({f"D/{name}": value.detach().mean() for name, value in logits.items()})
        if run.observer:
            watched[-1] |= of_logits(**logits, by_sign=run.judges_by_sign)
        real_label, fake_label = hook.labels(**logits)
        adversarial = hook.discriminator_loss(
            real_label=real_label, fake_label=fake_label, **logits
        )
        penalties = hook.penalty(
            discriminator=D, real=real, fake=fake, condition=batch.condition, **logits
        )
        return merged(run, [{"D/adversarial": adversarial}, *penalties])

    every = [losses(number, D) for number, D in enumerate(discriminators(run))]
    return Terms(mean(every), mean(watched))


def shown(run: "Run", batch: Batch) -> tuple[Tensor, Tensor]:
    """What D sees of a batch: the real and the fake images after `augment`, without gradient."""
    augment = run.hook.augment
    if passed := passed_on(run, batch):
        fake = passed.fake
    else:
        with torch.no_grad(), run.autocast():
            fake = run.network(run.G)(batch.condition)
    with torch.no_grad():
        real = augment(images=batch.real, condition=batch.condition)
        return real, augment(images=fake.to(real.dtype), condition=batch.condition)


def passed_on(run: "Run", batch: Batch) -> Pass | None:
    """What the G step of this iteration made of the same batch, if there was one."""
    return next((passed for passed in run.passes if passed.is_of(batch)), None)


def generator_losses(
    run: "Run", batch: Batch, adversarial: bool = True, content: HookCaller | None = None
) -> Terms:
    """G's losses on one batch; without `adversarial` the content losses alone, and no D.

    :param content: the content losses to take; all of the recipe when left out.
    """
    augment = run.hook.augment
    with run.autocast():
        made = run.network(run.G)(batch.condition)
    made = made.to(batch.real.dtype)
    playing = adversarial and run.D is not None
    cut = playing and run.sharing
    fake = made.detach().requires_grad_() if cut else made
    images = {"fake": fake, "real": batch.real, "condition": batch.condition}
    content_terms = (content or run.content_loss)(fake_logits=None, real_logits=None, **images)
    if not playing:
        return Terms(merged(run, content_terms))
    fake_shown = augment(images=fake, condition=batch.condition)
    if run.reads_real_logits:
        with torch.no_grad():
            real_shown = augment(images=batch.real, condition=batch.condition)
    judged: list[Tensor] = []

    def losses(D: nn.Module) -> Losses:
        fake_logits, real_logits = judge(run, D, fake_shown), None
        judged.append(fake_logits)
        if run.reads_real_logits:
            with torch.no_grad():
                real_logits = judge(run, D, real_shown)
        terms = run.adversarial_loss(fake_logits=fake_logits, real_logits=real_logits, **images)
        return merged(run, terms)

    terms = merged(run, [mean([losses(D) for D in discriminators(run)]), *content_terms])
    if run.recipe.first == "generator":
        run.passes.append(Pass(batch.condition, fake.detach(), judged if cut else []))
    return Terms(terms, cut=(made, fake) if cut else None)


def judge(run: "Run", D: nn.Module, images: Tensor) -> Tensor:
    """D's logits, in the precision of the images even when D itself ran in bfloat16."""
    with run.autocast():
        logits = run.network(D)(images)
    return logits.to(images.dtype)


def discriminators(run: "Run") -> list[nn.Module]:
    """The one discriminator, or each of several; none in a run without."""
    if run.D is None:
        return []
    return list(run.D) if isinstance(run.D, nn.ModuleList) else [run.D]


def mean(several: list[Losses]) -> Losses:
    """What several discriminators gave, the mean of each term."""
    if len(several) == 1:
        return several[0]
    return {name: torch.stack([one[name] for one in several]).mean() for name in several[0]}


def merged(run: "Run", terms: Sequence[dict[str, Value]]) -> dict[str, Value]:
    """One dict of what several plugins returned.

    :raises RecipeError: when two of them use one name.
    """
    result: dict[str, Value] = {}
    for term in terms:
        if twice := result.keys() & term.keys():
            raise RecipeError(
                f"{run.recipe.file}: two plugins returned {', '.join(sorted(twice))}; give one "
                "another name in the recipe, or build the name from self.name"
            )
        result |= term
    return result


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Keep the gradients of a network's parameters from being computed."""
    trainable = [p for p in module.parameters() if p.requires_grad] if module else []
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Have batch norm compute as ever, and leave its running statistics as they are."""
    norms: list[Any] = [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class EngineDefaults:
    """What the engine itself answers when no plugin does; the beginning of every chain."""

    def __init__(self, run: "Run") -> None:
        self.run = run

    @hookimpl(trylast=True)
    def discriminator_step(self, run: "Run", batch: Batch) -> Losses:
        return run.descend(run.D_optimizer, discriminator_losses, batch)

    @hookimpl(trylast=True)
    def generator_step(self, run: "Run", batch: Batch) -> Losses:
        # a pass that D's step is to share needs the gradients of D's weights too
        with nullcontext() if run.sharing else frozen(run.D):
            return run.descend(run.G_optimizer, generator_losses, batch)

    @hookimpl(trylast=True)
    def sample_batch(self, batch_size: int, device: torch.device) -> Batch:
        hook, dtype = self.run.hook, self.run.dtype
        real = hook.sample_real(batch_size=batch_size, device=device).to(dtype)
        with torch.no_grad():
            return Batch(real, hook.degrade(images=real).to(dtype))

    @hookimpl(trylast=True)
    def degrade(self, images: Tensor) -> Tensor:
        return images

    @hookimpl(trylast=True)
    def augment(self, images: Tensor) -> Tensor:
        return images

    @hookimpl(trylast=True)
    def labels(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(real_logits), torch.zeros_like(fake_logits)

    @hookimpl(trylast=True)
    def evaluation_generator(self, generator: nn.Module) -> nn.Module:
        return generator

    @hookimpl(trylast=True)
    def verdicts(self, history: History) -> list[Verdict]:
        return list(find_verdicts(history))

    @hookimpl(trylast=True)
    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
