"""What was at work when an error was raised, and whose code it was.

Everything is read from the error and its traceback, so no code has to say what it is about to do.
"""

import traceback
from dataclasses import dataclass, field
from types import CodeType

import torch
from torch.optim import Optimizer

from ganlab.assembly import assemble
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.defaults import Defaults
from ganlab.engine import Loop
from ganlab.evaluation.health import game_health
from ganlab.evaluation.scores import evaluate_generator
from ganlab.iteration import iterate
from ganlab.monitoring.attribution import gradients
from ganlab.monitoring.blame import Blame, blame
from ganlab.plugin import Plugin
from ganlab.recipe.discovery import origin_of
from ganlab.recipe.model import Recipe
from ganlab.requirements import providers
from ganlab.run import Run, Update, discriminators
from ganlab.speed.trial import tried
from ganlab.steps import discriminator_losses, generator_losses

ASSEMBLY, EVALUATION = "the assembly of the run", "the evaluation"
HEALTH = "the health of the game"
WATCHED = "the gradient of one loss, since this step is watched"

# what is told when a function is at work; the innermost one counts
_ITERATION: dict[CodeType, str] = {
    Defaults.sample_batch.__code__: "sampling",
    discriminator_losses.__code__: "forward pass",
    generator_losses.__code__: "forward pass",
    torch.Tensor.backward.__code__: "backward pass",
    gradients.__code__: WATCHED,
    tried.__code__: "trial of a quicker way to take it",
}
BESIDE: dict[CodeType, str] = {
    assemble.__code__: ASSEMBLY,
    load_checkpoint.__code__: "reading a checkpoint",
    write_checkpoint.__code__: "writing a checkpoint",
    Loop.save.__code__: "writing a checkpoint",
    Loop.evaluate.__code__: EVALUATION,
    evaluate_generator.__code__: EVALUATION,
    game_health.__code__: HEALTH,
}


@dataclass(slots=True)
class Place:
    """What was at work when an error was raised, read from its traceback."""

    run: Run | None = None
    recipe: Recipe | None = None
    phase: str = ""
    """Such as "the evaluation", or "iteration 7"."""
    details: list[str] = field(default_factory=list)
    """Of an iteration, such as ["G step", "backward pass"]."""
    culprit: Blame | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Place":
        place = cls()
        for frame, _ in traceback.walk_tb(error.__traceback__):
            code, here = frame.f_code, frame.f_locals
            if isinstance(run := here.get("run"), Run):
                place.run = place.run or run
            if isinstance(recipe := here.get("recipe"), Recipe):
                place.recipe = place.recipe or recipe
            if code is iterate.__code__ and place.run:
                place.phase, place.details = f"iteration {place.run.iteration + 1:,}", []
            elif code in BESIDE:
                place.phase, place.details = BESIDE[code], []
            elif code is Update.__call__.__code__:
                place.details = [f"{here['self'].role} step"]
            elif code in _ITERATION:
                place.details = [*place.details[:1], _ITERATION[code]]
            elif isinstance(here.get("self"), Optimizer):
                place.details = [*place.details[:1], "optimizer"]
        if place.run and not place.recipe:
            place.recipe = place.run.recipe
        plugins = place.recipe.plugins.values() if place.recipe else ()
        place.culprit = blame(error, plugins, _makers(place.run) if place.run else None)
        return place

    @property
    def device(self) -> torch.device:
        return self.run.device if self.run else torch.device("cpu")

    def words(self) -> str:
        """The place as a part of a sentence; "" when it is not known."""
        told = f"in {self.phase}" if self.phase else ""
        done = self.run.iteration if self.run else 0
        if self.phase == ASSEMBLY and not done:
            told += ", before iteration 1"
        elif done and not self.details and not self.phase.startswith("iteration"):
            told += f" after {done:,} iteration{'s' if done > 1 else ''}"
        return (told + (f" ({', '.join(self.details)})" if self.details else "")).strip()

    def whose(self) -> str:
        """The plugin and where its code comes from: "plugin sobel (acme-losses 1.2)"."""
        assert self.culprit
        plugin = self.culprit.plugin
        return f"plugin {plugin.name} ({origin_of(type(plugin))})"


def _makers(run: Run) -> dict[int, tuple[Plugin, str]]:
    """The networks and optimizers of a run by their `id`, each with its plugin and the hook."""
    made: list[tuple[object, Plugin, str]] = []
    if generator := getattr(run, "G", None):
        made += [(generator, plugin, "make_generator")
                 for plugin in providers(run.manager, "make_generator")[:1]]  # fmt: skip
    owners = providers(run.manager, "make_discriminator")
    made += [
        (network, owner, "make_discriminator")
        for network, owner in zip(discriminators(run), owners, strict=False)
    ]
    for optimizer in (getattr(run, "G_optimizer", None), run.D_optimizer):
        made += [(optimizer, plugin, "make_optimizer")
                 for plugin in providers(run.manager, "make_optimizer")[:1]]  # fmt: skip
    return {id(thing): (plugin, hook) for thing, plugin, hook in made if thing is not None}
