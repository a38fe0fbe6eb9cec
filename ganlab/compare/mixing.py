"""Recipes between two recipes: one recipe with some of the changes that lead to the other."""

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import tomlkit

from ganlab.assembly import open_run
from ganlab.compare.difference import Side, difference
from ganlab.compare.plan import Variant
from ganlab.errors import RecipeError
from ganlab.files import sha256, write_text
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.report.model import Change
from ganlab.speed.device import pick_device

Part = tuple[str, ...]
"""What a change replaces: ("iterations",) a setting; ("plugins", name) a whole plugin,
("plugins", name, option), ("code", name) the file of a plugin."""
_ORDER = ("order of plugins",)


@dataclass(frozen=True, slots=True)
class Shift:
    """The smallest change that can be applied to a recipe, with its parts, so that it is valid."""

    parts: tuple[Part, ...]
    changes: tuple[Change, ...]
    """The same for the reader."""

    def __str__(self) -> str:
        return "; ".join(_worded(change) for change in self.changes)


class Mixtures:
    """The recipes between a good one and a bad one, as files in a folder.

    Each takes the first n shifts, or any other selection of them, from the bad recipe, and all
    else from the good one.
    """

    def __init__(self, good: Side, bad: Side, folder: Path) -> None:
        """:param folder: for the files of the mixtures; only the run folders must outlive it."""
        self._good, self._bad, self._folder = good, bad, folder
        self._tables = [side.tables for side in (good, bad)]
        self.left_out: list[Change] = []
        """Changes that no recipe can bring about: environment, code that is not here any more."""
        self.shifts = tuple(self._grouped(self._pieces()))
        """All changes, in the order in which they are applied."""

    def variant(self, numbers: Collection[int]) -> Variant:
        """The good recipe with these shifts, counted from 1."""
        whole = len(numbers) == len(self.shifts)
        parts = {part for n in numbers for part in self.shifts[n - 1].parts}
        return Variant(self._name(numbers, whole), self._write(parts, whole))

    def _name(self, numbers: Collection[int], whole: bool) -> str:
        one, other = (re.sub(r"-\d+$", "", side.name) for side in (self._good, self._bad))
        if one == other:
            one, other = f"{one}-good", f"{other}-bad"
        if whole or not numbers:
            return other if whole else one
        return f"{one}-to-{other}-{spans(numbers, '-', '+')}"

    def _pieces(self) -> list[Shift]:
        """One shift for each part in which the recipes differ."""
        found: dict[Part, list[Change]] = {}
        for change in difference(self._good, self._bad):
            part = self._part(change)
            if not part:
                self.left_out.append(change)
            elif change.key != "seed":
                found.setdefault(part, []).append(change)
        return [Shift((part,), tuple(changes)) for part, changes in found.items()]

    def _part(self, change: Change) -> Part:
        """The part of a recipe that a change is about; () when a recipe cannot bring it about."""
        if change.key.startswith("order of "):
            return _ORDER
        if change.group == "settings":
            return (change.key,)
        if not change.key.startswith("plugins."):
            return ()
        _, name, *option = change.key.split(".", 2)
        tables = [table["plugins"].get(name) for table in self._tables]
        if all(tables) and tables[0].get("use") != tables[1].get("use"):
            return ("plugins", name)  # of another class, so with other options
        if change.group == "code":
            return ("code", name) if self._good.recipe.sources[name].beside_recipe else ()
        return ("plugins", name, *option)

    def _grouped(self, pieces: Sequence[Shift]) -> Iterator[Shift]:
        """Merge shifts that make no valid recipe without each other, such as a new generator.

        One after another is applied when the recipe is valid with it; when no single one can be,
        the smallest set is applied that can.
        """
        applied: set[Part] = set()
        rest = list(pieces)
        while rest:
            before = len(rest)
            for piece in tuple(rest):
                if self._is_valid(applied | {*piece.parts}):
                    applied |= {*piece.parts}
                    rest.remove(piece)
                    yield piece
            if rest and len(rest) == before:
                together = self._smallest(applied, rest)
                rest = [piece for piece in rest if piece not in together]
                applied |= {*_merged(together).parts}
                yield _merged(together)

    def _smallest(self, applied: set[Part], rest: Sequence[Shift]) -> Sequence[Shift]:
        """The first pair or triple that makes a valid recipe, else all that cannot be left out."""
        for size in (2, 3):
            for several in combinations(rest, size):
                if self._is_valid(applied | {*_merged(several).parts}):
                    return several
        together = list(rest)
        for piece in rest:
            fewer = [other for other in together if other is not piece]
            if fewer and self._is_valid(applied | {*_merged(fewer).parts}):
                together = fewer
        return together

    def _is_valid(self, parts: set[Part]) -> bool:
        """Whether the recipe loads and its plugins are an experiment; data are not read."""
        try:
            open_run(load_recipe(self._write(parts, False)), pick_device("cpu"))
        except RecipeError:
            return False
        return True

    def _write(self, parts: Collection[Part], whole: bool) -> Path:
        """Write a mixture as a recipe file.

        :param whole: whether all shifts are applied; then the order of plugins is the bad one's.
        """
        good, bad = self._tables
        settings = {
            key: (bad if (key,) in parts else good)[key] for key in good if key != "plugins"
        }
        every = dict.fromkeys([*good["plugins"], *bad["plugins"]])
        mixed = {name: self._plugin(name, parts) for name in every}
        orders = [list(good["plugins"]), list(bad["plugins"])]
        if whole or _ORDER in parts:
            orders.reverse()
        names = arranged([name for name, options in mixed.items() if options is not None], *orders)
        text = tomlkit.dumps(settings | {"plugins": {name: mixed[name] for name in names}})
        file = self._folder / f"{sha256(text)[:16]}.toml"
        write_text(file, text)
        return file

    def _plugin(self, name: str, parts: Collection[Part]) -> dict[str, Any] | None:
        """The options of a plugin in a mixture; None when it is not in it."""
        good, bad = (table["plugins"].get(name) for table in self._tables)
        if ("plugins", name) in parts:
            return self._with_code(name, bad, self._bad.recipe, "bad")
        if good is None:
            return None
        options: dict[str, Any] = {}
        for key in dict.fromkeys([*good, *(bad or {})]):
            chosen = bad if ("plugins", name, key) in parts else good
            if chosen and key in chosen:
                options[key] = chosen[key]
        if ("code", name) in parts:
            return self._with_code(name, options, self._bad.recipe, "bad")
        return self._with_code(name, options, self._good.recipe, "good")

    def _with_code(
        self, name: str, options: dict[str, Any] | None, recipe: Recipe, which: str
    ) -> dict[str, Any] | None:
        """The options, with the path of a copy of the plugin's file if it has one."""
        if options is None or not recipe.sources[name].beside_recipe:
            return options
        copy = self._folder / which / f"{name}.py"
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(recipe.sources[name].file, copy)
        return options | {"use": f"./{which}/{name}.py"}


def arranged(names: Collection[str], first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The names in the first order; one that is not in it comes after its forerunner in the second.

    A name whose forerunners are all absent comes at the beginning.
    """
    result = [name for name in first if name in names]
    for number, name in enumerate(second):
        if name in names and name not in result:
            before = [other for other in second[:number] if other in result]
            result.insert(result.index(before[-1]) + 1 if before else 0, name)
    return result


def spans(numbers: Collection[int], to: str = " to ", between: str = ", ") -> str:
    """Numbers in words: "1 to 4, 7"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return between.join(
        f"{span[0]}{to}{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in found
    )


def _merged(shifts: Sequence[Shift]) -> Shift:
    return Shift(
        tuple(part for shift in shifts for part in shift.parts),
        tuple(change for shift in shifts for change in shift.changes),
    )


def _worded(change: Change) -> str:
    if change.kind == "added":
        return f"{change.key} added: {change.b}"
    if change.kind == "removed":
        return f"{change.key} removed: {change.a}"
    values = ("not set" if value is None else value for value in (change.a, change.b))
    return f"{change.key}: {' -> '.join(values)}"
