"""The two steps of a GAN. `Run.descend`, in run.py, takes the optimizer step down their losses."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from pluggy import HookCaller
from torch import Tensor, nn

from ganlab.monitoring.attribution import of_logits
from ganlab.plugin import Batch, Losses, hookimpl
from ganlab.run import Run, Terms, discriminators, mean, merged
from ganlab.shared_forward import Cut, Pass


class Steps:
    """The engine's own steps. They are asked last, so a plugin may wrap or replace them."""

    @hookimpl(trylast=True)
    def discriminator_step(self, run: Run, batch: Batch) -> Losses:
        return run.descend(run.D_optimizer, discriminator_losses, batch)

    @hookimpl(trylast=True)
    def generator_step(self, run: Run, batch: Batch) -> Losses:
        # the D step goes backward through a shared pass too, to the weights of D
        with nullcontext() if run.step.share_forward else frozen(run.D):
            return run.descend(run.G_optimizer, generator_losses, batch)


def discriminator_losses(run: Run, batch: Batch) -> Terms:
    """D's losses on one batch, and its logits to log. No gradient reaches G."""
    hook, condition = run.hook, batch.condition
    passed = pass_of(run, batch)  # of the G step, with first = "generator"
    real, fake = images_for_discriminator(run, batch)
    losses: list[Losses] = []
    logged: list[Losses] = []
    for number, D in enumerate(discriminators(run)):
        if passed:
            fake_logits = passed.fake_logits(number, partial(judge, run, which="fake"), D, fake)
        real_logits = judge(run, D, real, "real")
        if not passed:
            fake_logits = judge(run, D, fake, "fake")
        logits = {"real_logits": real_logits, "fake_logits": fake_logits}
        logged.append({f"D/{name}": value.detach().mean() for name, value in logits.items()})
        if run.step.observer:
            logged[-1] |= of_logits(**logits, by_sign=run.judges_by_sign)
        real_label, fake_label = hook.labels(**logits)
        labels = {"real_label": real_label, "fake_label": fake_label}
        adversarial = hook.discriminator_loss(**labels, **logits)
        penalties = hook.penalty(
            discriminator=D, real=real, fake=fake, condition=condition, **logits
        )
        losses.append(merged(run, [{"D/adversarial": adversarial}, *penalties]))
    return Terms(mean(losses), mean(logged))


def generator_losses(
    run: Run, batch: Batch, adversarial: bool = True, content: HookCaller | None = None
) -> Terms:
    """G's losses on one batch.

    :param adversarial: False leaves out the losses that read logits, and does not run D.
    :param content: the content losses to take; by default all of the recipe.
    """
    augment, reads_real = run.hook.augment, run.reads_real_logits
    with run.autocast():
        made = run.network(run.G)(batch.condition)
    made = made.to(batch.real.dtype)
    playing = adversarial and run.D is not None
    cut = Cut.at(made) if playing and run.step.share_forward else None
    images = {"fake": cut.leaf if cut else made, "real": batch.real, "condition": batch.condition}
    content_losses = (content or run.generator_loss.content)(
        fake_logits=None, real_logits=None, **images
    )
    if not playing:
        return Terms(merged(run, content_losses))
    fake = augment(images=images["fake"], condition=batch.condition)
    if reads_real:
        with torch.no_grad():
            real = augment(images=batch.real, condition=batch.condition)
    judged: list[Tensor] = []
    losses: list[Losses] = []
    for D in discriminators(run):
        judged.append(judge(run, D, fake, "fake"))
        logits = {"fake_logits": judged[-1], "real_logits": None}
        if reads_real:
            with torch.no_grad():
                logits["real_logits"] = judge(run, D, real, "real")
        losses.append(merged(run, run.generator_loss.adversarial(**logits, **images)))
    if run.recipe.first == "generator":
        left = Pass(batch.condition, images["fake"].detach(), judged if cut else [])
        run.step.passes.append(left)
    return Terms(merged(run, [mean(losses), *content_losses]), cut=cut)


def images_for_discriminator(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """The real and the fake images after `augment`, without gradient."""
    augment, passed = run.hook.augment, pass_of(run, batch)
    with torch.no_grad():
        if passed:
            fake = passed.fake
        else:
            with run.autocast():
                fake = run.network(run.G)(batch.condition)
        real = augment(images=batch.real, condition=batch.condition)
        return real, augment(images=fake.to(real.dtype), condition=batch.condition)


def pass_of(run: Run, batch: Batch) -> Pass | None:
    """What the G step of this iteration left for this batch; None if there was none."""
    return next((passed for passed in run.step.passes if passed.is_of(batch)), None)


def judge(
    run: Run, D: nn.Module, images: Tensor, which: Literal["real", "fake", ""] = ""
) -> Tensor:
    """D's logits, in the dtype of the images even when D ran in bfloat16.

    :param which: "real" or "fake"; a plugin with hooks on D's layers reads it in `run.step`.
    """
    run.step.judging = which
    with run.autocast():
        logits = run.network(D)(images)
    run.step.judging = ""
    return logits.to(images.dtype)


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Context in which the gradients of a network's parameters are not computed."""
    trainable = [p for p in module.parameters() if p.requires_grad] if module else []
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
