"""Learning rate of a group of parameters: some layers learn faster or slower than the others."""

from collections.abc import Generator
from typing import Annotated

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from ganlab import (
    MayChange,
    NoEffect,
    Plugin,
    Run,
    hookimpl,
    parameters_named,
    require_discriminator,
)


class LearningRateGroup(Plugin):
    """Multiplies the learning rate of some parameters (ULMFiT, arXiv:1801.06146, section 3.2).

    The paper calls it discriminative fine-tuning: layers that were trained elsewhere learn more
    slowly than new ones. It works with every optimizer, and with `learning_rate_schedule`, which
    multiplies the rates of all groups. For a second group with another factor, use the plugin again
    under another name. The factors of a parameter that is in two groups are multiplied.

    A pattern is the name of a parameter, or that of a part of the network, such as `body.0`, for
    all parameters in it. `*`, `?` and `[...]` match as in file names.
    """

    factor: Annotated[float, NoEffect(1), MayChange()] = Field(gt=0, examples=[0.1])
    """Factor on the learning rate of these parameters."""

    generator: tuple[str, ...] = Field((), examples=[["*weight"]])
    """Patterns of names in the generator."""

    discriminator: tuple[str, ...] = ()
    """Patterns of names in the discriminator, or in each of several."""

    @model_validator(mode="after")
    def _there_is_a_group(self) -> "LearningRateGroup":
        if not (self.generator or self.discriminator):
            raise ValueError("it names no parameter; set generator or discriminator")
        return self

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        if self.discriminator:
            require_discriminator(self, run, "discriminator")

    @hookimpl(wrapper=True)
    def make_optimizer(self, module: nn.Module, role: str) -> Generator[None, Optimizer, Optimizer]:
        optimizer = yield
        patterns = self.generator if role == "generator" else self.discriminator
        chosen = {id(p) for p in parameters_named(self, role, patterns, module)}
        for group in list(optimizer.param_groups):
            ours = [p for p in group["params"] if id(p) in chosen]
            others = [p for p in group["params"] if id(p) not in chosen]
            if ours and others:
                group["params"] = others
                options = {name: value for name, value in group.items() if name != "params"}
                optimizer.add_param_group(options | {"params": ours})
                group = optimizer.param_groups[-1]
            if ours:
                group["lr"] = group["lr"] * self.factor  # not in place: it may be a shared tensor
        return optimizer
