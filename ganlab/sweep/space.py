"""SPACE.toml: which options of a recipe vary in a sweep, how far, and what is looked for."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from ganlab.compare.plan import parse_seeds
from ganlab.errors import RecipeError, clipped, printable
from ganlab.names import shortened
from ganlab.option import STRICT
from ganlab.recipe.complaint import complaint, worst
from ganlab.recipe.file import Key, Origin, RecipeTable, as_typed, did_you_mean, read_values

MOST_TRIALS = 100_000
KINDS = ("float", "int", "choices")


def require_optuna() -> None:
    """Call it before the first import of the library.

    :raises RecipeError: when the package optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise RecipeError("a sweep needs the package optuna: pip install 'ganlab[sweep]'")


class _Table(BaseModel):
    model_config = STRICT


class Option(_Table):
    """The values that one option of the recipe may have: one of `float`, `int` and `choices`."""

    floats: list[float] | None = Field(None, alias="float", min_length=2, max_length=2)
    """The lowest and the highest value, of numbers."""
    ints: list[int] | None = Field(None, alias="int", min_length=2, max_length=2)
    """The lowest and the highest value, of whole numbers."""
    choices: list[Any] | None = Field(None, min_length=2)
    """The values themselves: numbers, texts, true and false, lists, tables."""
    log: bool = False
    """Draw evenly on a logarithmic scale: for what acts by its factor, such as a learning rate."""
    step: float | None = Field(None, gt=0)
    """The distance between two values; without it any number between the ends, or each integer."""

    @model_validator(mode="after")
    def _is_one_range(self) -> "Option":
        given = [kind for kind, value in zip(KINDS, self._kinds, strict=True) if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of float, int and choices; {' and '.join(given) or 'none'}")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("log and step are for float and int, not for choices")
            texts = self.texts() or []
            if twice := [text for text in texts if texts.count(text) > 1]:
                raise ValueError(f"the choice {twice[0]} is given twice")
            return self
        low, high = self.ends
        kind = given[0]
        if not low < high:
            raise ValueError(f"{kind} = [{low}, {high}]: the first number must be the smaller one")
        if self.log and low <= 0:
            raise ValueError(f"{kind} = [{low}, {high}]: with log, both must be more than 0")
        if self.log and self.step is not None:
            raise ValueError("give log or step, not both")
        self._check_step(kind, low, high)
        return self

    def _check_step(self, kind: str, low: float, high: float) -> None:
        if self.step is None:
            return
        steps = (high - low) / self.step
        if kind == "int" and self.step != int(self.step):
            raise ValueError(f"step = {self.step:g} must be a whole number, as the values are")
        if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            raise ValueError(
                f"step = {self.step:g} does not lead from {low:g} to {high:g}; change one of them"
            )

    def __str__(self) -> str:
        if self.choices is not None:
            return f"one of {', '.join(self.texts() or ())}"
        low, high = self.ends
        kind = "whole numbers from" if self.ints is not None else "from"
        step = f" in steps of {self.step:g}" if self.step is not None else ""
        return f"{kind} {low:g} to {high:g}{step}{', logarithmic' if self.log else ''}"

    @property
    def _kinds(self) -> tuple[Any, Any, Any]:
        return self.floats, self.ints, self.choices

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value of a range."""
        low, high = (self.floats if self.floats is not None else self.ints) or (0, 0)
        return low, high

    def texts(self) -> list[str] | None:
        """Every value as TOML, in order; None where there are too many to count."""
        if self.choices is not None:
            return [text_of(choice) for choice in self.choices]
        if self.ints is not None:
            low, high = self.ints
            return [str(n) for n in range(low, high + 1, int(self.step or 1))]
        if self.step is None:
            return None
        first, last = self.ends
        count = round((last - first) / self.step) + 1
        return [repr(first + n * self.step) for n in range(count)] if count <= MOST_TRIALS else None

    def probes(self) -> dict[str, str]:
        """The values to try before a sweep begins, as TOML, each with its name for a message."""
        if self.choices is not None:
            return {
                text: f"the choice {printable(clipped(text, 100))}" for text in self.texts() or ()
            }
        low, high = map(text_of, self.ends)
        return {low: f"its low end {low}", high: f"its high end {high}"}


def text_of(value: Any) -> str:
    """A value as it is written in a recipe.

    :raises ValueError: when TOML has no such value.
    """
    table = tomlkit.inline_table()
    table["value"] = value
    return table.as_string().removeprefix("{value = ").removesuffix("}")


class Space(_Table):
    """What a sweep looks for, and how; the options that vary are beside it."""

    trials: int | None = Field(None, ge=1, le=MOST_TRIALS)
    """How many trials: points of the space. With `sampler = "grid"`: by default all points."""
    seeds: str = "0"
    """The seeds of each trial's runs, as "0..2" or "0,2"; a trial has the mean of their figures."""
    figure: str = ""
    """The figure of evaluation that decides; by default the recipe's `best_metric`."""
    best: Literal["highest", "lowest"] | None = None
    """Which value of that figure is the best; by default the recipe's `best_is`."""
    at: Literal["last", "best"] = "last"
    """Which evaluation of a run counts: its last, or that with the best figure."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How trials are chosen: "tpe" learns from those that have ended (Bergstra et al. 2011, by
    Optuna); "random" draws each alone; "grid" takes all points in order."""
    sampler_seed: int = Field(0, ge=0, lt=2**31)
    """The number from which the choice of trials is computed."""
    startup_trials: int = Field(5, ge=1)
    """How many trials are drawn at random before "tpe" learns, and end before any is stopped."""
    pruner: Literal["none", "median", "halving"] = "none"
    """When a run is stopped early: "median": its best figure so far is worse than the median of
    the others at this iteration; "halving": it is not among the best third at iterations that grow
    by a factor of three (ASHA, Li et al. 2020, arXiv:1810.05934). By Optuna."""
    prune_after: int = Field(0, ge=0)
    """Iterations before which no run is stopped early."""

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: str) -> str:
        try:
            parse_seeds(seeds)
        except RecipeError:
            raise ValueError('must be seeds, such as "0", "0..2" or "0,2,5".') from None
        return seeds

    @model_validator(mode="after")
    def _has_effect(self) -> "Space":
        if self.prune_after and self.pruner == "none":
            raise ValueError('prune_after has no effect with pruner = "none"; leave it out')
        return self

    @property
    def seed_list(self) -> list[int]:
        return parse_seeds(self.seeds)


@dataclass(frozen=True, slots=True)
class SpaceFile:
    """A space as its file says it, with the place of each part."""

    file: Path
    space: Space
    options: dict[str, Option]
    """By the key that `--set` takes."""
    table: RecipeTable
    keys: dict[str, Key]
    """Where each option is written."""

    @property
    def name(self) -> str:
        return shortened(self.file.stem)

    def place(self, option: str) -> str:
        """File, line and key of an option, for a message."""
        return f"{self.table.origin(*self.keys[option])}: options.{option}"

    def setting(self, key: str) -> str:
        """File and line of a setting."""
        return str(self.table.origin(key))

    @property
    def num_trials(self) -> int:
        count = self.size
        if self.space.sampler == "grid":
            assert count is not None
            return min(self.space.trials or count, count)
        assert self.space.trials is not None
        return self.space.trials if count is None else min(self.space.trials, count)

    @property
    def size(self) -> int | None:
        """The number of points; None where it has no end."""
        texts = [option.texts() for option in self.options.values()]
        return math.prod(len(t) for t in texts if t is not None) if None not in texts else None

    def grid(self) -> Iterator[dict[str, str]]:
        """All points in order, the last option fastest."""
        texts = [option.texts() or [] for option in self.options.values()]
        for point in itertools.product(*texts):
            yield dict(zip(self.options, point, strict=True))

    def record(self) -> dict[str, Any]:
        """All that decides about the trials, as plain data; the number of trials may grow."""
        options = {key: one.model_dump(mode="json", by_alias=True) for key, one in
                   self.options.items()}  # fmt: skip
        return {**self.space.model_dump(mode="json", exclude={"trials"}), "options": options}


def read_space(path: Path) -> SpaceFile:
    """Read SPACE.toml; what the recipe says to it is checked by `check_values`.

    :raises RecipeError: with file, line, fault and remedy.
    """
    if not path.exists():
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.toml")))
        raise RecipeError(f"{as_typed(path)}: no such file{near}")
    table = read_values(path)
    settings = {key: value for key, value in table.values.items() if key != "options"}
    try:
        space = Space.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        first = worst(error)
        place = table.origin(*(part for part in first["loc"] if isinstance(part, str)))
        raise RecipeError(f"{place}: {complaint(first, Space, 'setting')}") from None
    if not isinstance(table.values.get("options"), dict) or not table.values["options"]:
        raise RecipeError(
            f"{table.origin('options')}: the table [options] is missing: it says which options "
            "vary, such as adam.learning_rate = { float = [1e-5, 1e-3], log = true }"
        )
    options: dict[str, Option] = {}
    keys: dict[str, Key] = {}
    for key, value in _flat(table.values["options"], ("options",)):
        name = ".".join(key[1:]).removeprefix("plugins.")
        if name in options:
            raise RecipeError(f"{table.origin(*key)}: options.{name}: it is given twice")
        options[name], keys[name] = _option(value, name, table.origin(*key)), key
    found = SpaceFile(path, space, options, table, keys)
    _check_trials(found)
    return found


def _flat(table: dict[str, Any], key: Key) -> Iterator[tuple[Key, Any]]:
    """The options in a table, also those whose keys are written without quotes."""
    for name, value in table.items():
        if isinstance(value, dict) and value and not _is_range(value):
            yield from _flat(value, (*key, name))
        else:
            yield (*key, name), value


def _is_range(table: dict[str, Any]) -> bool:
    """Whether a table says which values an option may have, perhaps with a slip."""
    if all(isinstance(inner, dict) for inner in table.values()):
        return False
    known = (*KINDS, "log", "step")
    return any(key in known or did_you_mean(key, known) for key in table)


def _option(value: Any, name: str, place: Origin) -> Option:
    if not isinstance(value, dict):
        raise RecipeError(
            f"{place}: options.{name} = {clipped(json.dumps(value), 100)}: an option has a table: "
            "{ float = [low, high] }, { int = [low, high] } or { choices = [one, another] }"
        )
    try:
        return Option.model_validate_json(json.dumps(value))
    except ValidationError as error:
        wrong = complaint(worst(error), Option, "key")
        raise RecipeError(f"{place}: options.{name}: {wrong}") from None


def _check_trials(found: SpaceFile) -> None:
    """Refuse a number of trials that the sampler cannot have, or that is missing."""
    if found.space.sampler != "grid":
        if found.space.trials is None:
            raise RecipeError(
                f"{as_typed(found.file)}: the setting 'trials' is missing (how many points to "
                "try); write it, such as trials = 20"
            )
        return
    for name, option in found.options.items():
        if option.texts() is None:
            raise RecipeError(
                f'{found.place(name)}: sampler = "grid" needs a step, such as '
                "{ float = [0.0, 1.0], step = 0.25 }, or choices"
            )
    if (found.size or 0) > MOST_TRIALS and found.space.trials is None:
        raise RecipeError(
            f"{as_typed(found.file)}: the grid has {found.size:,} points; set trials, or give "
            "larger steps"
        )
