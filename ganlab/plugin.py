"""The base class of every plugin, and the values that travel through the hooks."""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pluggy
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo
from torch import Tensor

from ganlab.errors import RecipeError
from ganlab.images.ranges import is_address
from ganlab.option import STRICT
from ganlab.published import PublishedFile
from ganlab.ranks.world import ALONE, World
from ganlab.schedule import Schedule, schedules_in
from ganlab.streams import Streams

hookspec = pluggy.HookspecMarker("ganlab")
hookimpl = pluggy.HookimplMarker("ganlab")

Losses = dict[str, Tensor]
"""Log name ("G/pixel_loss") -> 0-d tensor."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples that one step trains on.

    In super-resolution `real` is HR, [N, C, H, W] in 0..1, and `condition` the LR made from it,
    [N, C, H/scale, W/scale]. In a toy problem they are whatever the data and `degrade` return.
    """

    real: Tensor
    condition: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(self.real.to(device), self.condition.to(device))

    def parts(self, count: int) -> list["Batch"]:
        """Cut into `count` equal parts, which share the memory of this batch."""
        if count == 1:
            return [self]
        pairs = zip(self.real.chunk(count), self.condition.chunk(count), strict=True)
        return [Batch(*pair) for pair in pairs]


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """One held-out image, and the images made from it; uint8 [3, H, W] or [1, H, W], on the CPU."""

    name: str
    hr: Tensor
    lr: Tensor
    sr: Tensor
    bicubic: Tensor
    scores: dict[str, float]
    bicubic_scores: dict[str, float] = field(default_factory=dict)


def _beside_the_recipe(path: Path, info: ValidationInfo) -> Path:
    folders = (info.context or {}).get("folders", {})
    folder = folders.get(info.field_name)
    return Path(folder, path.expanduser()).resolve() if folder else path.expanduser()


RecipePath = Annotated[Path, Field(strict=False), AfterValidator(_beside_the_recipe)]
"""A path option. A relative path starts at the folder of the recipe file that states it; in `--set`
it starts at the current folder."""


def _folder_or_address(place: Path | str, info: ValidationInfo) -> Path | str:
    if is_address(place):
        return place
    return _beside_the_recipe(Path(place), info)


RecipePlace = Annotated[
    Annotated[Path, Field(strict=False)] | str, AfterValidator(_folder_or_address)
]
"""A folder, as `RecipePath`, or an address with "://", such as "https://host/folder"."""


def implements(plugin: "Plugin", hook: str) -> bool:
    """Whether a plugin has an implementation of this hook."""
    return hasattr(getattr(type(plugin), hook, None), "ganlab_impl")


def hooks_of(kind: type["Plugin"]) -> list[str]:
    """The names of the hooks that a class implements, sorted."""
    found = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
    return sorted(name for name, value in found.items() if hasattr(value, "ganlab_impl"))


class Plugin(BaseModel):
    """Base of every plugin: its fields are recipe options, its `@hookimpl` methods do the work.

    The class docstring says what it computes and names the paper; the string under a field
    describes the option. Running state goes into a `PrivateAttr`. It is saved with checkpoints
    when the plugin defines `state_dict()` and `load_state_dict(state)` (tensors, numbers,
    strings, lists and dicts only; a number that is not finite is refused, so "no value yet" is
    None). Random numbers come from `rng` or `host_rng`.
    """

    model_config = STRICT | ConfigDict(validate_default=True)

    # Plugins are compared by identity, since pluggy compares them and keeps them in sets. Both
    # functions are needed, since pydantic replaces object.__hash__ on a frozen model.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    per_sample: ClassVar[bool] = False
    """Needs a discriminator that judges each image alone (no batch norm); checked at load."""

    images_only: ClassVar[bool] = False
    """Needs samples that are images, [N, C, H, W]; checked at load."""

    wants_bounded_slope: ClassVar[bool] = False
    """It is an objective that is meaningful only while the discriminator's slope is bounded."""

    judges_by_sign: ClassVar[bool] = False
    """It is an objective under which the sign of a logit is D's decision: positive is "real"."""

    bounds_slope: ClassVar[bool] = False
    """Whether it bounds the discriminator's slope: by a penalty, clipping or normed weights."""

    share_forward: ClassVar[bool | None] = None
    """Whether D may run once on G's images for both steps (the recipe's `share_forward`).

    True: it may, because `augment` gives the same result for the same images in both steps. False:
    it may not. None: it may, unless the plugin implements `augment`: most draw new random numbers
    in each step.
    """

    capturable: ClassVar[bool] = True
    """Whether its tensor hooks may be captured as a CUDA graph. They then use no `.item()` and no
    branch on a value, and from step to step only tensors change, in place."""

    without_batch_norm: ClassVar[str] = ""
    """For a plugin that makes a discriminator: the setting that leaves out batch norm, such as
    `norm = "none"`. Named in the message when a penalty needs it."""

    couples_players: ClassVar[bool] = False
    """Its losses have gradients for both networks; a step uses that for its own network only."""

    extra_steps: ClassVar[bool] = False
    """It takes optimizer steps of its own through `run.descend`, beside the step of each network,
    as a lazy penalty does. Without it, `ganlab check` refuses a second optimizer step."""

    reads_length: ClassVar[bool] = False
    """What it does depends on the recipe's `iterations`, such as a decay over the whole run. A run
    that is made longer is then not the run that a longer recipe gives from the start."""

    published: ClassVar[tuple[PublishedFile, ...]] = ()
    """The published files of weights that it can read, the one it reads by default first.

    `ganlab weights fetch` gets them, and `load_weights` names that command when one is missing.
    """

    reads_folder: ClassVar[str] = ""
    """For data that are a folder of images: the option that names the folder. `--data FOLDER` gives
    it there. The plugin is registered in the entry-point group `ganlab.reads_folder` too, so that
    `--data` finds it for a recipe with other data."""

    observes: ClassVar[bool] = False
    """It only looks on, to log or to draw, so `check` does not warn that it has no effect."""

    _name: str = PrivateAttr("")
    _streams: Streams | None = PrivateAttr(None)
    _world: World = PrivateAttr(ALONE)
    _place: Callable[[str | None], str] | None = PrivateAttr(None)
    _moving: list[Schedule] = PrivateAttr(default_factory=list)
    _files_read: dict[str, str] = PrivateAttr(default_factory=dict)
    _left_out: dict[str, str] = PrivateAttr(default_factory=dict)

    def bind(
        self,
        *,
        name: str | None = None,
        place: Callable[[str | None], str] | None = None,
        streams: Streams | None = None,
        world: World | None = None,
    ) -> Self:
        """Connect the plugin to its recipe and its run. Called by the core, not by plugins.

        :param name: its key in the recipe.
        :param place: function from an option (or None) to the file and line where it is written.
        :param streams: the random numbers of the run; schedules are moved to its device.
        :param world: the processes that train the run.
        """
        self._world = world or self._world
        self._name = self._name if name is None else name
        self._place = place or self._place
        if streams:
            self._streams = streams
            for schedule in self.schedules():
                schedule.to(streams.device)
            self._moving = [schedule for schedule in self.schedules() if schedule.moves]
        return self

    def advance(self, iteration: int) -> None:
        """Set the options that change over iterations. Called by the loop before each iteration."""
        for schedule in self._moving:
            schedule.advance(iteration)

    @property
    def name(self) -> str:
        """The key of this instance in the recipe; log names are built from it."""
        return self._name or self.usual_name()

    @classmethod
    def usual_name(cls) -> str:
        """The name outside a recipe, made of that of the class, such as "gradient_penalty"."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def files_read(self) -> dict[str, str]:
        """The files of weights that it has read: name -> sha256. `read_weights` fills it."""
        return self._files_read

    @property
    def left_out(self) -> dict[str, str]:
        """The items of its data that it left out: name -> reason. The plugin fills it.

        They are told when a run starts, and kept in its data.json and report.
        """
        return self._left_out

    @property
    def rng(self) -> torch.Generator | None:
        """This plugin's own random stream on the run's device; None (torch's own) outside a run.

        Its numbers depend on (seed, plugin name, iteration, step) alone: no other plugin's draws
        shift them.
        """
        return self._streams.generator(self.name) if self._streams else None

    @property
    def host_rng(self) -> torch.Generator | None:
        """Like `rng`, but always on the CPU: the same numbers on every device."""
        return self._streams.host_generator(self.name) if self._streams else None

    @property
    def world(self) -> World:
        """The processes that train the run together, of which each sees its rows of a batch.

        `self.world.mean(value)` is the mean over them: what one process would have for the whole
        batch. A plugin may not communicate in any other way.
        """
        return self._world

    @property
    def moment(self) -> tuple[object, ...]:
        """The point of the run that `rng` depends on, such as (7, "D", 0); () outside a run.

        In a step: iteration, "D" or "G", number of the step in the iteration, each from 0. After a
        run went back to a checkpoint, more parts follow.
        """
        return self._streams.now if self._streams else ()

    @property
    def stream_key(self) -> tuple[object, ...]:
        """What all random numbers of this plugin depend on, beside the moment: seed and name."""
        return (self._streams.seed if self._streams else torch.initial_seed(), self.name)

    def warnings(self, others: Sequence["Plugin"]) -> list[str]:
        """Say what is allowed beside the other plugins of the recipe, but probably a mistake.

        Each text follows the plugin's name; `check` and `run` print it and go on.
        """
        return []

    def rest_of_discriminator(self) -> int:
        """For how many iterations, from the first, this plugin keeps D from making a step."""
        return 0

    def invariants(self, run: Any) -> Generator[None, None, list[str]]:
        """Find what must hold after an iteration but does not; `ganlab check` calls it.

        Before the one `yield`, measure what the iteration will change. After it, measure again, and
        return a sentence for each thing that does not hold, with its figures and a remedy.

            def invariants(self, run):
                before = self._count
                yield
                return [] if self._count == before + 1 else ["it did not count the iteration"]

        :param run: the `Run`; nothing in it may be changed.
        """
        yield
        return []

    def schedules(self) -> Iterator[Schedule]:
        """The options that change over iterations."""
        return schedules_in([getattr(self, field) for field in type(self).model_fields])

    def scale_of(
        self,
        condition_shape: tuple[int, ...],
        real_shape: tuple[int, ...],
        supported: tuple[int, ...],
    ) -> int:
        """How many times larger a generator must make its images, computed from the shapes.

        :raises RecipeError: when the factor is not supported, or differs between the axes; when
            the shapes are not those of images.
        """
        if (len(condition_shape), len(real_shape)) != (3, 3):
            raise self.error(
                f"enlarges images, but it would have to make {[*real_shape]} from "
                f"{[*condition_shape]}; choose another generator, or other data"
            )
        (_, height, width), (_, *size) = condition_shape, real_shape
        scale = size[0] // height
        if size != [height * scale, width * scale] or scale not in supported:
            *most, last = map(str, supported)
            factors = f"{', '.join(most)} or {last}" if most else last
            raise self.error(
                f"makes images {factors} times as large, not {size[0]} x {size[1]} from "
                f"{height} x {width}; choose another scale or generator"
            )
        return scale

    def error(self, fault: str, option: str | None = None) -> RecipeError:
        """Make the error for a fault in the recipe; it begins with file and line of the option."""
        place = self._place(option) if self._place else self.name
        return RecipeError(f"{place}: {fault}")
