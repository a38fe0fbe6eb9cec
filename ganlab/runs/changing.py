"""What may change in a run that has begun, with `ganlab resume RUN --set key=value`.

What was computed so far must stay valid. So a run keeps its seed, its plugins, its networks and its
data. An option may change when its author says so (`MayChange`), when it is a schedule, which
changes in a run anyway, or when it is the path of data that have only been moved.
"""

import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from ganlab.errors import RecipeError
from ganlab.files import sha256
from ganlab.option import MayChange
from ganlab.recipe.model import Recipe, load_recipe, resolved
from ganlab.runs.data import Data
from ganlab.runs.folder import RunFolder
from ganlab.runs.record import Change, carry_out, differences, toml
from ganlab.schedule import schedules_in

_KEEPS = "what was computed so far depends on it"
_UNMARKED = "its plugin does not say that it may change in a run (MayChange)"
_PLUGINS = "a run keeps its plugins, since its state has a part for each"


@dataclass(frozen=True, slots=True)
class Wish:
    """A value that shall change."""

    key: str
    old: Any
    new: Any
    mark: MayChange
    moved: str = ""
    """The plugin whose data were moved, where the value is a path."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What shall change in a run when it goes on."""

    folder: RunFolder
    before: Recipe
    after: Recipe
    all: tuple[Wish, ...]

    def check_data(self, data: Data, accepted: bool) -> None:
        """Refuse moved data when nothing tells whether they are the same.

        :param data: what the run reads now.
        :raises RecipeError: naming the option.
        """
        known = {name for plugins in data.values() for key in plugins for name in key.split("+")}
        for wish in self.all:
            if wish.moved and wish.moved not in known and not accepted:
                raise RecipeError(
                    f"{_shown(wish)}: {wish.moved} does not say what its data are, so nothing "
                    "tells whether those there are the same; if they are, add --accept-data"
                )

    def carry_out(self, iteration: int) -> list[Change]:
        """Change the recipe of the run, and tell it in changes.jsonl.

        :param iteration: how many iterations are completed.
        :raises RecipeError: when the run has more iterations behind it than it shall have.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = resolved(self.after)
        if self.after.iterations <= iteration:
            raise RecipeError(
                f"{self.folder.path}: {iteration:,} of {self.after.iterations:,} iterations are "
                f"done, so nothing is left to train; give a larger number: --iterations N"
            )
        made = [
            Change(iteration=iteration, time=now, key=wish.key, old=wish.old, new=wish.new,
                   alters=self._alters(wish, iteration), recipe=sha256(text))
            for wish in self.all
        ]  # fmt: skip
        carry_out(self.folder.path, text, made)
        return made

    def _alters(self, wish: Wish, iteration: int) -> bool:
        if wish.key != "iterations":
            return wish.mark.alters
        if any(plugin.reads_length for plugin in self.before.plugins.values()):
            return True
        end, every = self.before.iterations, self.before
        # at its end a run is evaluated and finds verdicts; a longer one would not do that there
        return iteration >= end and bool(end % every.evaluate_every or end % every.checkpoint_every)


def wishes_of(folder: RunFolder, overrides: Iterable[str]) -> Wishes:
    """The recipe of a run with what shall change in it.

    :param overrides: `key=value` strings, as given to `--set`.
    :raises RecipeError: naming a value that may not change, and why.
    """
    before = load_recipe(folder.recipe)
    overrides = tuple(overrides)
    after = load_recipe(folder.recipe, overrides) if overrides else before
    one, other = (tomllib.loads(resolved(recipe)) for recipe in (before, after))
    found = [_wish(folder, before, after, *each) for each in differences(one, other)]
    return Wishes(folder, before, after, tuple(found))


def _wish(folder: RunFolder, before: Recipe, after: Recipe, key: str, old: Any, new: Any) -> Wish:
    first, _, rest = key.partition(".")
    if first != "plugins":
        mark: MayChange | None = _mark(Recipe.model_fields[key])
        return _allowed(folder, Wish(key, old, new, mark or MayChange()), mark, _KEEPS)
    name, _, option = rest.partition(".")
    if option in ("", "use"):
        return _allowed(folder, Wish(key, old, new, MayChange()), None, _PLUGINS)
    fields = type(after.plugins[name]).model_fields
    field = next(n for n, info in fields.items() if option in (n, info.alias))
    values = [getattr(recipe.plugins[name], field) for recipe in (before, after)]
    moved = name if any(isinstance(value, Path) for value in values) else ""
    mark = _mark(fields[field])
    if moved:
        mark = MayChange(alters=False)
    elif not mark and any(schedules_in(values)):
        mark = MayChange()
    if (
        mark
        and mark.only
        and {each[0] for each in differences(old or {}, new or {})} - {*mark.only}
    ):
        mark = None
    return _allowed(folder, Wish(key, old, new, mark or MayChange(), moved), mark, _UNMARKED)


def _mark(field: FieldInfo) -> MayChange | None:
    return next((mark for mark in field.metadata if isinstance(mark, MayChange)), None)


def _allowed(folder: RunFolder, wish: Wish, mark: MayChange | None, reason: str) -> Wish:
    if mark is None:
        command = shlex.join(["ganlab", "run", str(folder.recipe), *_shown(wish).split(" ", 1)])
        raise RecipeError(
            f"{_shown(wish)}: this may not change in a run that has begun: {reason}. Start a new "
            f"run with it: {command}"
        )
    return wish


def _shown(wish: Wish) -> str:
    key = wish.key.removeprefix("plugins.")
    return f"--set {key}={'false' if wish.new is None else toml(wish.new)}"
