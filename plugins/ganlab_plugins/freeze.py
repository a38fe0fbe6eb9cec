"""Freezing: some layers keep their weights while the others train."""

from typing import Annotated

from pydantic import Field, PrivateAttr, model_validator
from torch import nn

from ganlab import (
    Begins,
    Plugin,
    Run,
    first_layers,
    hookimpl,
    parameters_named,
    require_discriminator,
)


class Freeze(Plugin):
    """Leaves layers out of training, as FreezeD does (Mo et al. 2020, arXiv:2002.10964).

    FreezeD fine-tunes a GAN on little data: the first layers of the discriminator keep the weights
    with which training begins (see `initial_weights`). Here layers of G can be frozen too, and both
    only until an iteration. A frozen parameter gets no gradient, so it costs less time, and no
    momentum or weight decay moves it. Batch norm in a frozen layer still computes its statistics.

    A pattern is the name of a parameter, or that of a part of the network, such as `body.0`, for
    all parameters in it. `*`, `?` and `[...]` match as in file names. Several discriminators are
    treated alike. A plugin that replaces weights itself (`weight_clipping`) still does so.
    """

    generator: tuple[str, ...] = ()
    """Patterns of names in the generator."""

    discriminator: tuple[str, ...] = ()
    """Patterns of names in the discriminator."""

    discriminator_layers: int = Field(0, ge=0, examples=[1])
    """Number of layers, from the first, of the discriminator. The authors' code for StyleGAN
    freezes all but the last three blocks and the linear layer."""

    until: Annotated[int | None, Begins("iterations")] = Field(None, ge=1)
    """The iteration from which they train with the others; by default they never do."""

    _held: nn.ParameterList = PrivateAttr(default_factory=nn.ParameterList)

    @model_validator(mode="after")
    def _something_is_frozen(self) -> "Freeze":
        if not (self.generator or self.discriminator or self.discriminator_layers):
            raise ValueError(
                "it freezes nothing; set generator, discriminator or discriminator_layers"
            )
        return self

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        for option in ("discriminator", "discriminator_layers"):
            if getattr(self, option):
                require_discriminator(self, run, option)

    @hookimpl
    def run_start(self, run: Run) -> None:
        chosen = parameters_named(self, "generator", self.generator, run.G)
        if run.D is not None:
            chosen += parameters_named(self, "discriminator", self.discriminator, run.D)
        if run.D is not None and self.discriminator_layers:
            number = self.discriminator_layers
            chosen += first_layers(self, "discriminator_layers", number, run.D)
        # a network may have parameters that never train
        self._held = nn.ParameterList(p for p in chosen if p.requires_grad)
        frozen = {id(p) for p in self._held}
        for name, network in (("generator", run.G), ("discriminator", run.D)):
            trained = [p for p in network.parameters() if p.requires_grad] if network else []
            if trained and all(id(p) in frozen for p in trained):
                raise self.error(f"no parameter of the {name} is left to train; freeze fewer")

    @hookimpl
    def iteration_start(self, run: Run) -> None:
        if run.iteration == self.until:
            run.execution.forget()
        self._freeze(run, frozen=True)

    @hookimpl
    def iteration_end(self, run: Run) -> None:
        self._freeze(run, frozen=False)

    def _freeze(self, run: Run, frozen: bool) -> None:
        if self.until is None or run.iteration < self.until:
            for parameter in self._held:
                parameter.requires_grad_(not frozen)
