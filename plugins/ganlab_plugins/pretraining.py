"""Pretraining: the generator trains on the content losses alone before adversarial training."""

from pluggy import HookCaller
from pydantic import Field, PrivateAttr
from torch import Tensor

from ganlab import (
    Batch,
    Plugin,
    Run,
    Terms,
    generator_losses,
    hookimpl,
)


class Pretraining(Plugin):
    """Train the generator on content losses alone for the first iterations.

    SRGAN starts from an MSE-trained SRResNet "to avoid undesired local optima" (Ledig et al. 2017,
    arXiv:1609.04802, section 3.2). The discriminator is not trained meanwhile. Both
    optimizers keep their state when adversarial training begins.
    """

    iterations: int = Field(ge=1, examples=[1])
    """Number of iterations, from the first, that run without the discriminator."""

    losses: tuple[str, ...] = ()
    """Names of the content losses to pretrain on; by default all of the recipe."""

    _content: HookCaller | None = PrivateAttr(None)

    def rest_of_discriminator(self) -> int:
        return self.iterations

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        found = [impl.plugin for impl in run.generator_loss.content.get_hookimpls()]
        content = [plugin for plugin in found if isinstance(plugin, Plugin)]
        if not content:
            raise self.error("there is no content loss to pretrain on; add one, such as pixel_loss")
        names = [plugin.name for plugin in content]
        for name in self.losses:
            if name not in names:
                raise self.error(
                    f"'{name}' is no content loss of this recipe; choose from {', '.join(names)}",
                    "losses",
                )
        chosen = [p for p in content if not self.losses or p.name in self.losses]
        self._content = run.generator_losses_of(chosen)
        if self.iterations >= run.recipe.iterations:
            raise self.error(
                f"iterations = {self.iterations} leaves none of the run's "
                f"{run.recipe.iterations} iterations for adversarial training; make the run "
                "longer, or set d_steps = 0 and drop the discriminator",
                "iterations",
            )

    @hookimpl(tryfirst=True)
    def discriminator_step(self, run: Run) -> dict[str, Tensor] | None:
        return {} if run.iteration < self.iterations else None

    @hookimpl(tryfirst=True)
    def generator_step(self, run: Run, batch: Batch) -> dict[str, Tensor] | None:
        if run.iteration >= self.iterations:
            return None
        return run.descend(run.G_optimizer, self._losses, batch)

    def _losses(self, run: Run, batch: Batch) -> Terms:
        return generator_losses(run, batch, adversarial=False, content=self._content)
