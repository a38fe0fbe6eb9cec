"""The recipe's step in a bare loop: the same networks, losses and optimizers, and nothing else.

Plugins are called as plain functions. There is no hook dispatch, no setting of random streams, no
log, no check, no schedule, no sharing of D's pass and no graph. The loop is like one written by
hand; the engine's time is compared with it. Steps that a plugin wraps are taken unwrapped.
"""

from collections.abc import Callable
from typing import Any

import torch
from pluggy import HookCaller, HookImpl
from torch import Tensor, nn

from ganlab.plugin import Batch, Plugin
from ganlab.run import Run, discriminators

Known = dict[str, Any]


class PlainLoop:
    """A bare loop on the networks and optimizers of a run, after its pretraining."""

    def __init__(self, run: Run) -> None:
        self._run = run
        callers = vars(run.manager.hook) | {
            "content_loss": run.generator_loss.content,
            "adversarial_loss": run.generator_loss.adversarial,
        }
        self._hooks = {name: _functions(caller) for name, caller in callers.items()}

    def iterate(self) -> None:
        recipe = self._run.recipe
        self._call("iteration_start", run=self._run)
        if recipe.first == "generator":
            batch = self._sample()
            fake = self._generator_step(batch)
            if recipe.d_steps:
                self._discriminator_step(batch, fake)
        else:
            for _ in range(recipe.d_steps):
                batch = self._sample()
                with torch.no_grad(), self._run.autocast():
                    fake = self._run.G(batch.condition)
                self._discriminator_step(batch, fake)
            for _ in range(recipe.g_steps):
                self._generator_step(self._sample())
        self._call("iteration_end", run=self._run, losses={})

    def _sample(self) -> Batch:
        size = {"batch_size": self._run.recipe.batch_size, "device": self._run.device}
        if self._hooks["sample_batch"]:
            batch: Batch = self._run.hook.sample_batch(**size)
            return batch
        real = self._call("sample_real", **size)[0].to(self._run.dtype)
        with torch.no_grad():
            return Batch(real, self._chain("degrade", "images", real).to(real.dtype))

    def _discriminator_step(self, batch: Batch, fake: Tensor) -> None:
        run, optimizer = self._run, self._run.D_optimizer
        assert optimizer is not None
        condition = batch.condition
        with torch.no_grad():
            real = self._chain("augment", "images", batch.real, condition=condition)
            fake = self._chain("augment", "images", fake.to(real.dtype), condition=condition)
        optimizer.zero_grad()
        networks = discriminators(run)
        for D in networks:
            logits = {"real_logits": self._judge(D, real), "fake_logits": self._judge(D, fake)}
            ones = torch.ones_like(logits["real_logits"])
            labels = self._chain("labels", "", (ones, torch.zeros_like(ones)), **logits)
            named = logits | dict(zip(("real_label", "fake_label"), labels, strict=True))
            images = {"real": real, "fake": fake, "condition": condition}
            terms = self._call("penalty", discriminator=D, **images, **logits)
            total = sum((v for t in terms for v in t.values()), torch.zeros_like(ones.sum()))
            total = total + self._call("discriminator_loss", **named)[0]
            (total / len(networks)).backward()
        optimizer.step()

    def _generator_step(self, batch: Batch) -> Tensor:
        """Take one G step; returns G's images, without gradient."""
        run, condition = self._run, batch.condition
        networks = discriminators(run)
        for D in networks:
            D.requires_grad_(False)
        run.G_optimizer.zero_grad()
        with run.autocast():
            fake = run.G(condition)
        fake = fake.to(batch.real.dtype)
        images = {"fake": fake, "real": batch.real, "condition": condition}
        terms = self._call("content_loss", fake_logits=None, real_logits=None, **images)
        total = sum((v for t in terms for v in t.values()), torch.zeros_like(fake.sum()))
        shown = self._chain("augment", "images", fake, condition=condition)
        for D in networks:
            logits: Known = {"fake_logits": self._judge(D, shown), "real_logits": None}
            if run.reads_real_logits:
                with torch.no_grad():
                    real = self._chain("augment", "images", batch.real, condition=condition)
                    logits["real_logits"] = self._judge(D, real)
            for term in self._call("adversarial_loss", **images, **logits):
                total = total + sum(term.values()) / len(networks)
        total.backward()
        run.G_optimizer.step()
        for D in networks:
            D.requires_grad_(True)
        return fake.detach()

    def _judge(self, D: nn.Module, images: Tensor) -> Tensor:
        with self._run.autocast():
            logits: Tensor = D(images)
        return logits.to(images.dtype)

    def _call(self, hook: str, **known: Any) -> list[Any]:
        return [function(known) for function in self._hooks[hook]]

    def _chain(self, hook: str, name: str, value: Any, **known: Any) -> Any:
        for function in self._hooks[hook]:
            value = function(known | {name: value}, value)
        return value


def _functions(caller: HookCaller) -> list[Callable[..., Any]]:
    """The hook implementations of plugins, in the order of the recipe."""
    impls = [impl for impl in caller.get_hookimpls() if isinstance(impl.plugin, Plugin)]
    return [_wrapper(impl) if impl.wrapper else _plain(impl) for impl in impls]


def _plain(impl: HookImpl) -> Callable[[Known], Any]:
    return lambda known: impl.function(*(known[name] for name in impl.argnames))


def _wrapper(impl: HookImpl) -> Callable[[Known, Any], Any]:
    def call(known: Known, value: Any) -> Any:
        generator: Any = impl.function(*(known[name] for name in impl.argnames))
        next(generator)
        try:
            generator.send(value)
        except StopIteration as done:
            return done.value

    return call
