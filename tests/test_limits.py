"""`plugins NAME` and `explain KEY` show the limits that an option really has."""

import json
import operator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator

from ganlab import NonNegativeSchedule, Plugin, Schedule
from ganlab.cli import main
from ganlab.commands.describe import describe_plugins, in_words
from ganlab.commands.limits import Limits, limits_of
from ganlab.recipe.discovery import find_plugin
from ganlab.recipe.file import Origin
from ganlab.recipe.model import Recipe

MODELS: dict[str, type[BaseModel]] = {
    plugin["name"]: find_plugin(plugin["name"], Origin(None, text=""))[0]
    for plugin in describe_plugins()
}
PROBES = (-1, -0.01, 0, 0.01, 0.5, 1, 1.5, 2, 3, 4, 6, 7, 12, 40, 101, 300, 1e6)
HOLDS = {
    "at least": operator.ge,
    "more than": operator.gt,
    "at most": operator.le,
    "less than": operator.lt,
    "a multiple of": lambda value, unit: value % unit == 0,
    "one of": lambda value, allowed: value in allowed,
}


def allowed(value: float, limits: Limits, place: str = "") -> bool:
    """Whether the limits shown allow a number, or a number at a place in a list."""
    return all(
        HOLDS[words.removeprefix(place)](value, limit)
        for words, limit in limits.items()
        if words.removeprefix(place) in HOLDS and words.startswith(place)
    )


def refused(model: type[BaseModel], field: str, value: Any) -> bool:
    """Whether the option itself is refused, whatever the other options are."""
    needed = {name: info.examples[0] for name, info in model.model_fields.items() if info.examples}
    written = json.dumps(needed | {field: value}, default=str)
    try:
        model.model_validate_json(written)
    except ValidationError as error:
        return any(each["loc"][:1] == (field,) for each in error.errors())
    return False


def numbers(model: type[BaseModel]) -> list[tuple[str, type, Any]]:
    """The options that hold a number, a schedule or a list of numbers, with an allowed value."""
    found = []
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        value = info.examples[0] if info.examples else default
        first = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(first, int | float | Schedule) and not isinstance(first, bool):
            found.append((name, type(first), value))
    return found


@pytest.mark.parametrize("name", [*sorted(MODELS), "recipe"])
def test_the_limits_shown_are_the_limits_kept(name: str) -> None:
    model = MODELS.get(name, Recipe)
    shown = limits_of(model)
    for field, kind, value in numbers(model):
        limits = shown[field]
        for probe in PROBES:
            if kind is int and probe != int(probe):
                continue
            number = int(probe) if kind is int else probe
            if not isinstance(value, tuple | list):
                told = allowed(number, limits)
                assert refused(model, field, number) is not told or "rule" in limits, (field, probe)
                assert told or refused(model, field, number), (field, probe, limits)
                continue
            for index in range(len(value)):
                place = f"item {index + 1} "
                place = place if any(w.startswith(place) for w in limits) else "each "
                given = [*value[:index], number, *value[index + 1 :]]
                told = allowed(number, limits, place)
                assert refused(model, field, given) is not told or "rule" in limits, (field, given)
                assert told or refused(model, field, given), (field, given, limits)


class Inner(BaseModel):
    gain: float = Field(1, ge=0, lt=3)


def _even(value: int) -> int:
    """An even number.

    As a validator of options.
    """
    if value % 2:
        raise ValueError("must be even")
    return value


class Bounded(Plugin):
    """Has an option of every kind that has limits."""

    lists: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1, max_length=3)
    pair: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(le=9)]] = (1, 2)
    alike: tuple[Annotated[float, Field(lt=1)], Annotated[float, Field(lt=1)]] = (0, 0)
    table: dict[Literal["x", "y"], Annotated[float, Field(gt=0)]] = {}
    either: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    inner: Inner = Inner()
    inners: list[Inner] = []
    only: Literal["only"] = "only"
    optional: Annotated[float, Field(ge=0)] | None = None
    text: Annotated[str, Field(pattern="^a", min_length=2)] = "ab"
    even: Annotated[int, AfterValidator(_even)] | None = None
    weight: NonNegativeSchedule = Schedule.constant(1)
    steps: int = Field(3, multiple_of=3)
    odd: int = 1

    @field_validator("odd")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        """An odd number."""
        return value


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("lists", "items at least 1, items at most 3, each at least 1"),
        ("pair", "number of items 2, item 1 more than 0, item 2 at most 9"),
        ("alike", "number of items 2, each less than 1"),
        ("table", 'each value more than 0, each name one of ["x", "y"]'),
        ("either", 'at least 1, or one of ["auto"]'),
        ("inner", "gain at least 0, gain less than 3"),
        ("inners", "each gain at least 0, each gain less than 3"),
        ("only", 'one of ["only"]'),
        ("optional", "at least 0"),
        ("text", 'of the form "^a", characters at least 2'),
        ("even", "an even number"),
        ("steps", "a multiple of 3"),
        ("odd", "an odd number"),
        ("weight", "at least 0"),
    ],
)
def test_every_kind_of_limit_is_shown(option: str, words: str) -> None:
    assert in_words(limits_of(Bounded)[option]) == words


def test_both_commands_show_the_limit_of_a_schedule(tiny: Path) -> None:
    shown = CliRunner().invoke(main, ["plugins", "gradient_penalty"]).stdout
    assert "weight = 10.0, at least 0 (may be a schedule)\n" in shown
    key = ["explain", str(tiny), "gradient_penalty.weight"]
    assert "at least 0" in " ".join(CliRunner().invoke(main, key).stdout.split())
    (value,) = json.loads(CliRunner().invoke(main, [*key, "--json"]).stdout)["values"]
    assert value["bounds"]["at least"] == 0
