"""Gradient clipping: a step is taken down a gradient of limited norm."""

from collections.abc import Generator
from typing import Annotated

from pydantic import Field, model_validator
from torch import nn
from torch.nn.utils import clip_grad_norm_

from ganlab import Losses, MayChange, Plugin, Run, hookimpl, require_discriminator


class GradientClipping(Plugin):
    """Gradient clipping by norm (Pascanu et al. 2012, arXiv:1211.5063), of each network alone.

    Before every optimizer step, the gradient g of a network becomes
    `g * min(1, limit / (|g| + 1e-6))`, where |g| is the Euclidean norm over all its parameters. A
    smaller gradient is not changed at all. |g| before clipping is logged as `G/gradient_norm` and
    `D/gradient_norm`. This is torch's `clip_grad_norm_`.

    Several discriminators are clipped one by one, and the mean of their norms is logged. Their
    losses are averaged, so with n of them each gradient is 1/n of what it would be alone. The
    additional step of a lazy penalty is clipped too, but its norm is not logged.
    """

    generator: Annotated[float | None, MayChange()] = Field(None, gt=0, examples=[0.1])
    """Largest norm of the generator's gradient; by default it is not clipped."""

    discriminator: Annotated[float | None, MayChange()] = Field(None, gt=0, examples=[0.1])
    """Largest norm of a discriminator's gradient; by default it is not clipped."""

    @model_validator(mode="after")
    def _something_is_clipped(self) -> "GradientClipping":
        if self.generator is None and self.discriminator is None:
            raise ValueError("it clips nothing; set generator, discriminator or both")
        return self

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        if self.discriminator is not None:
            require_discriminator(self, run, "discriminator")
        for role in ("generator", "discriminator"):
            clipping = [p for p in run.plugins_with("gradients") if self._clips_too(p, role)]
            if len(clipping) > 1:
                names = " and ".join(plugin.name for plugin in clipping)
                raise self.error(f"{names} both clip the {role}; leave one out", role)

    def _clips_too(self, plugin: Plugin, role: str) -> bool:
        return isinstance(plugin, GradientClipping) and getattr(plugin, role) is not None

    @hookimpl(wrapper=True)
    def gradients(self, module: nn.Module, role: str) -> Generator[None, Losses, Losses]:
        told = yield
        limit = self.generator if role == "generator" else self.discriminator
        if limit is None:
            return told
        networks = list(module) if isinstance(module, nn.ModuleList) else [module]
        norms = [clip_grad_norm_(network.parameters(), limit) for network in networks]
        name = "G/gradient_norm" if role == "generator" else "D/gradient_norm"
        return told | {name: sum(norms[1:], norms[0]) / len(norms)}
