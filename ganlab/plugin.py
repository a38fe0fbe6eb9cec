"""The base class of every plugin, and the two values that travel through hooks: Batch, Schedule."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pluggy
import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from torch import Tensor

from ganlab.errors import RecipeError
from ganlab.streams import Streams

hookspec = pluggy.HookspecMarker("ganlab")
hookimpl = pluggy.HookimplMarker("ganlab")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on.

    In super-resolution `real` is HR, [N, C, H, W] in 0..1, and `condition` the LR made from it,
    [N, C, H/scale, W/scale]. In a toy problem they are whatever the data and `degrade` return.
    """

    real: Tensor
    condition: Tensor

    def parts(self, count: int) -> list["Batch"]:
        """Cut into so many equal parts, which look at the same memory."""
        if count == 1:
            return [self]
        pairs = zip(self.real.chunk(count), self.condition.chunk(count), strict=True)
        return [Batch(*pair) for pair in pairs]


class Schedule(BaseModel):
    """A number that may change over iterations: `0.1`, or `{ from = 0.1, to = 0, over = 10_000 }`.

    It starts at `from`, moves to `to` in `over` iterations beginning at iteration `after`, and
    stays there. Tensor hooks read `.value`, a 0-d float64 tensor that the engine refills before
    every iteration: 0-d, so it leaves the dtype of images alone (a 0-d loss becomes float64); a
    tensor, so a captured graph sees it change.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )

    start: float = Field(alias="from")
    end: float = Field(alias="to")
    over: int = Field(1, ge=1)
    after: int = Field(0, ge=0)
    shape: Literal["linear", "cosine"] = "linear"

    _value: Tensor | None = PrivateAttr(None)

    __hash__ = None  # type: ignore[assignment]  # so that pydantic copies a default per plugin

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"from": value, "to": value}
        return value

    @classmethod
    def constant(cls, value: float) -> "Schedule":
        return cls.model_validate(value)

    @model_serializer
    def _to_toml(self) -> Any:
        if not self.moves:
            return self.start
        table = {"from": self.start, "to": self.end, "over": self.over, "after": self.after}
        return {**table, "shape": self.shape}

    @property
    def moves(self) -> bool:
        return self.start != self.end

    def at(self, iteration: int) -> float:
        """Its value at an iteration, counted from 0."""
        progress = min(max((iteration - self.after) / self.over, 0.0), 1.0)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    @property
    def value(self) -> Tensor:
        if self._value is None:
            self._value = torch.tensor(self.at(0), dtype=torch.float64)
        return self._value

    def to(self, device: torch.device) -> None:
        """Keep the value on this device; called once by the engine."""
        self._value = self.value.to(device)

    def advance(self, iteration: int) -> None:
        """Refill the value in place for this iteration; called by the engine."""
        if self.moves:
            self.value.fill_(self.at(iteration))


def _schedules(value: Any) -> Iterator[Schedule]:
    if isinstance(value, Schedule):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _schedules(inner)
    elif isinstance(value, dict):
        yield from _schedules(list(value.values()))


def _not_negative(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end) < 0:
        raise ValueError("must be at least 0")
    return schedule


NonNegativeSchedule = Annotated[Schedule, AfterValidator(_not_negative)]
"""A Schedule that never falls below 0: weights, noise levels."""


def _beside_the_recipe(path: Path, info: ValidationInfo) -> Path:
    folders = (info.context or {}).get("folders", {})
    folder = folders.get(info.field_name)
    return Path(folder, path.expanduser()).resolve() if folder else path.expanduser()


RecipePath = Annotated[Path, Field(strict=False), AfterValidator(_beside_the_recipe)]
"""A path option: relative to the recipe file that states it (to the current folder in `--set`)."""


class Plugin(BaseModel):
    """Base of every plugin: its fields are recipe options, its `@hookimpl` methods what it does.

    The class docstring says what it computes and names the paper; the string under a field
    describes the option. Running state goes into a `PrivateAttr`, and is saved with checkpoints
    by a plugin that defines `state_dict()` and `load_state_dict(state)` (tensors, numbers,
    strings, lists and dicts only). Random numbers come from `rng` or `host_rng`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    # Identity, since pluggy compares plugins and keeps them in sets; functions of our own, since
    # pydantic replaces object.__hash__ on a frozen model.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    per_sample: ClassVar[bool] = False
    """Needs a discriminator that judges each image alone (no batch norm); checked at load."""

    images_only: ClassVar[bool] = False
    """Needs samples that are images, [N, C, H, W]; checked at load."""

    wants_bounded_slope: ClassVar[bool] = False
    """An objective that means something only while the discriminator's slope is bounded."""

    judges_by_sign: ClassVar[bool] = False
    """An objective under which a positive logit is D's verdict "real", a negative one "fake"."""

    bounds_slope: ClassVar[bool] = False
    """Bounds the discriminator's slope, softly or hard: a penalty, clipping, a norm of weights."""

    shares_forward: ClassVar[bool | None] = None
    """Whether D may run once on G's images for both steps (the recipe's `share_forward`). True: it
    may, `augment` makes the same of the same images in both; False: it may not; None: it may unless
    the plugin augments, since most draw anew."""

    capturable: ClassVar[bool] = True
    """Whether its tensor hooks may be captured as a CUDA graph: no `.item()`, no branch on a value,
    nothing that changes from step to step but tensors, in place."""

    couples_players: ClassVar[bool] = False
    """Its losses have gradients for both networks, of which a step takes its own."""

    _name: str = PrivateAttr("")
    _streams: Streams | None = PrivateAttr(None)
    _place: Callable[[str | None], str] | None = PrivateAttr(None)

    @property
    def name(self) -> str:
        """The key of this instance in the recipe; log names are built from it."""
        return self._name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def rng(self) -> torch.Generator | None:
        """This plugin's own random stream on the run's device; None (torch's own) outside a run.

        Its numbers depend on (seed, plugin name, iteration, step) alone: no other plugin's draws
        shift them.
        """
        return self._streams.generator(self.name) if self._streams else None

    @property
    def host_rng(self) -> torch.Generator | None:
        """Like `rng`, but always on the CPU: the same numbers whatever the device."""
        return self._streams.host_generator(self.name) if self._streams else None

    def doubts(self, others: Sequence["Plugin"]) -> list[str]:
        """What is possible beside the other plugins, and hardly meant: told, not refused."""
        return []

    def schedules(self) -> Iterator[Schedule]:
        """The options that change over iterations."""
        return _schedules([getattr(self, field) for field in type(self).model_fields])

    def scale_of(
        self,
        condition_shape: tuple[int, ...],
        real_shape: tuple[int, ...],
        supported: tuple[int, ...],
    ) -> int:
        """How many times larger a generator must make its images, from the shapes it is told.

        :raises RecipeError: when it is none of the supported factors, or the axes differ in it.
        """
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
        """An error to raise for what the user wrote, headed by the file and line of the option."""
        place = self._place(option) if self._place else self.name
        return RecipeError(f"{place}: {fault}")
