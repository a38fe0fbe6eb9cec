"""A number that may change over iterations."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema
from torch import Tensor

from ganlab.option import STRICT, NoEffect
from ganlab.speed.device import widest_float


class Schedule(BaseModel):
    """A number that may change over iterations: `0.1`, or `{ from = 0.1, to = 0, over = 10_000 }`.

    It starts at `from`. Beginning at iteration `after` it moves to `to` in `over` iterations, and
    stays there. Tensor hooks read `.value`, a 0-d float64 tensor (float32 on MPS), which the loop
    refills before every iteration. A 0-d tensor does not change the dtype of images (a 0-d loss
    becomes float64), and a captured graph reads its new value.
    """

    model_config = STRICT | ConfigDict(populate_by_name=True)

    start: float = Field(alias="from")
    """The value until iteration `after`."""
    end: float = Field(alias="to")
    """The value at the end, and from then on."""
    over: int = Field(1, ge=1)
    """Iterations that the change takes."""
    after: int = Field(0, ge=0)
    """The iteration at which the change begins."""
    shape: Literal["linear", "cosine"] = "linear"
    """How the value moves: on a line, or on half a cosine wave."""

    _value: Tensor | None = PrivateAttr(None)

    __hash__ = None  # type: ignore[assignment]  # so that pydantic copies a default for each plugin

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"from": value, "to": value}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A number is allowed as well as a table; the model's own schema knows the table only."""
        made = handler(core_schema)
        handler.resolve_ref_schema(made)["type"] = ["number", "object"]
        return made

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
        self._value = self.value.to(widest_float(device)).to(device)

    def advance(self, iteration: int) -> None:
        """Refill the value in place for this iteration; called by the engine."""
        if self.moves:
            self.value.fill_(self.at(iteration))


def schedules_in(value: Any) -> Iterator[Schedule]:
    """Every schedule in an option's value, also inside nested lists and tables."""
    if isinstance(value, Schedule):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from schedules_in(inner)
    elif isinstance(value, dict):
        yield from schedules_in(list(value.values()))


def _not_negative(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end) < 0:
        raise ValueError("must be at least 0")
    return schedule


NonNegativeSchedule = Annotated[
    Schedule,
    AfterValidator(_not_negative),
    Field(json_schema_extra={"minimum": 0}),
    NoEffect(0),
]
"""A Schedule that never falls below 0: weights, noise levels. At 0 it has no effect."""
