"""Puts the plugin under test into a small experiment, and makes a run of it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tomlkit
import torch
from torch import Tensor

from ganlab.assembly import assemble
from ganlab.errors import GanlabError
from ganlab.plugin import Plugin, hooks_of
from ganlab.ranks.world import ALONE, World as Ranks
from ganlab.recipe.discovery import find_plugin, installed, offering
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.folder import RunFolder
from ganlab.testing.worlds import World, images, points

CPU = torch.device("cpu")
SLOTS = {"make_generator", "make_discriminator", "sample_real", "discriminator_loss"}
SLOTS |= {"make_optimizer", "sample_batch"}
"""Hooks that one plugin of a recipe answers."""
WORLDS = (images(), images(64), points())
"""The first of them into which a plugin fits is its world."""
LOOP = {"iterations": 8, "batch_size": 2, "evaluate_every": 100, "checkpoint_every": 100}

Known = Mapping[str, tuple[Callable[[Any], Tensor | float], float]]
"""What is computed -> a function of the plugin, and the value that it must give."""


class Broken(AssertionError):  # noqa: N818  # it is what a test reports
    """A plugin breaks a rule; the message says how, and what to do."""


class NotApplicable(Exception):  # noqa: N818  # it is no error
    """A rule is not about this plugin; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The plugin under test, and what it is tested with."""

    kind: type[Plugin]
    options: dict[str, Any] = field(default_factory=dict)
    """Its options, as in a recipe."""
    beside: tuple[Plugin, ...] = ()
    """Plugins that it needs beside it in a recipe."""
    known: Known = field(default_factory=dict)
    world: World | None = None
    """The experiment to put it into; by default the first of `WORLDS` into which it fits."""

    @classmethod
    def of(cls, plugin: "type[Plugin] | Plugin | str | Subject", **more: Any) -> "Subject":
        """The subject for a class, whose options are their examples or defaults, for a plugin with
        its options, or for the name of an installed plugin."""
        if isinstance(plugin, Subject):
            return plugin
        if isinstance(plugin, Plugin):
            return cls(type(plugin), _options_of(plugin), **more)
        kind = find_plugin(plugin, "ganlab.testing")[0] if isinstance(plugin, str) else plugin
        fields = kind.model_fields.items()
        examples = {f.alias or name: f.examples[0] for name, f in fields if f.examples}
        return cls(kind, examples, **more)

    @property
    def name(self) -> str:
        """Its name in the recipe: the installed one, else the name of the class in lower case."""
        value = f"{self.kind.__module__}:{self.kind.__qualname__}"
        names = [name for name, point in installed().items() if point.value == value]
        return names[0] if names else self.kind.usual_name()

    @property
    def answers(self) -> set[str]:
        """The hooks that it answers itself, not as a wrapper."""
        return answers(self.kind)

    def made(self) -> Plugin:
        """The plugin with its options; raises what the author's code and pydantic raise."""
        return self.kind.model_validate(self.options, strict=False)

    def text(self, world: World, **settings: Any) -> str:
        """A recipe with the plugin in the place of whatever fills its slots."""
        taken = (self.answers | {a for one in self.beside for a in answers(type(one))}) & SLOTS
        kept = {n: k for n, k in world.plugins.items() if not answers(k) & taken}
        if "degrade" in hooks_of(self.kind):
            kept.pop("kit_noise", None)  # a chain of noise would throw away the first
        plugins = {name: world.options.get(name, {}) for name in kept}
        plugins |= {one.name: _options_of(one) for one in self.beside}
        return tomlkit.dumps(LOOP | settings | {"plugins": plugins | {self.name: self.options}})

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Context in which recipes may name it, and the plugins of the small experiments."""
        kinds = {n: k for world in WORLDS for n, k in world.plugins.items()}
        kinds |= {one.name: type(one) for one in self.beside}
        with offering(kinds | {self.name: self.kind}):
            yield

    @contextmanager
    def in_a_folder(self) -> Iterator[Path]:
        """Context of a run folder for its runs, in which `at_hand` holds."""
        with TemporaryDirectory(ignore_cleanup_errors=True) as parent, self.at_hand():
            folder = Path(parent)
            for part in ("samples", "checkpoints"):
                (folder / part).mkdir()
            yield folder

    def run(self, folder: Path, device: torch.device = CPU, **settings: Any) -> Run:
        """A run with this plugin, in the first world where it fits.

        :raises Broken: when it fits into none.
        :raises NotApplicable: when it cannot be made; a rule of its own tells how.
        """
        return self.placed(folder, device, **settings)[1]

    def placed(
        self, folder: Path, device: torch.device = CPU, **settings: Any
    ) -> tuple[World, Run]:
        """The first world where it fits, and a run there; raises as `run` does."""
        if self.world:
            return self.world, self.run_in(self.world, folder, device, **settings)
        faults = []
        for world in WORLDS:
            try:
                return world, self.run_in(world, folder, device, **settings)
            except GanlabError as error:
                faults.append(_without_place(error))
        raise Broken("it fits into no small experiment: " + "; ".join(dict.fromkeys(faults)))

    def run_in(
        self,
        world: World,
        folder: Path,
        device: torch.device = CPU,
        ranks: Ranks = ALONE,
        **settings: Any,
    ) -> Run:
        """A run with this plugin in a world.

        :param ranks: the processes that train it, as the caller, one of them, sees them.
        """
        try:
            self.made()
        except Exception:  # the code is the author's
            raise NotApplicable("it cannot be made from its options") from None
        file = folder / "recipe.toml"
        file.write_text(self.text(world, **settings))
        return assemble(load_recipe(file), device, RunFolder(folder), world=ranks)


def answers(kind: type[Plugin]) -> set[str]:
    """The hooks that a class answers itself, not as a wrapper."""
    marks = {hook: getattr(kind, hook).ganlab_impl for hook in hooks_of(kind)}
    return {hook for hook, mark in marks.items() if not mark["wrapper"]}


def tiny_run(*plugins: Plugin, world: World | None = None, **settings: Any) -> Run:
    """A small run with these plugins, assembled but not trained, on the CPU; nothing is kept.

    It enlarges images of 8 x 8 to 32 x 32 pixels, and is trained by
    `from ganlab.iteration import iterate`.

    :param settings: of the recipe, such as `batch_size = 1`.
    """
    first = plugins[0] if plugins else Plugin
    subject = Subject.of(first, beside=plugins[1:], world=world)
    with subject.in_a_folder() as folder:
        run = subject.run(folder, **settings)
    run.folder = None
    return run


def _options_of(plugin: Plugin) -> dict[str, Any]:
    return plugin.model_dump(mode="json", exclude_none=True, exclude_unset=True, by_alias=True)


def said(error: BaseException) -> str:
    """The message of an error in one line, without its place in the recipe of a test."""
    return re.sub(r"^plugins\.\w+: ", "", _without_place(error))


def _without_place(error: BaseException) -> str:
    return re.sub(r"^.*?recipe\.toml(:\d+)?: ", "", " ".join(str(error).split()))
