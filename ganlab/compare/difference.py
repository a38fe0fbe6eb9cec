"""The differences between two recipes or runs, with all defaults filled in."""

import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tomlkit

from ganlab.compare.data import DataNow
from ganlab.errors import GanlabError
from ganlab.recipe.model import Recipe, load_recipe, resolved
from ganlab.recipe.own_data import on_folder
from ganlab.report.model import Change, Group
from ganlab.requirements import CHAINED
from ganlab.runs.data import Data, described, differences, digests, renamed
from ganlab.runs.folder import (
    open_run_folder,
    plugin_record,
    read_data,
    read_tables,
    recorded_hooks,
)
from ganlab.runs.reading import read_json
from ganlab.runs.record import read_record
from ganlab.runs.reference import names_recipe
from ganlab.speed.device import pick_device


@dataclass(frozen=True)
class Side:
    """One side of a difference: a recipe, or a run with its recipe and manifest."""

    name: str
    tables: dict[str, Any]
    """The recipe with all values, as TOML tables."""
    plugins: dict[str, str]
    """The sha256 of each plugin's code: as recorded for a run, as it is now for a recipe."""
    hooks: dict[str, list[str]]
    """The hooks that each plugin implements, as far as they are known."""
    load: Callable[[], Recipe]
    """Loads the recipe, with the code of its plugins."""
    environment: dict[str, Any] | None = None
    """The manifest of a run; None for a recipe."""
    data: Data = field(default_factory=dict)
    """The data of a run as digests; empty for a recipe, until `with_data` reads them."""
    changes: tuple[str, ...] = ()
    """What was changed in a run since its start, in words."""

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe; only what has to run it asks for it, since a difference needs no code."""
        return self.load()


def side(argument: Path | str, overrides: Sequence[str] = (), data: Path | None = None) -> Side:
    """Read a recipe file or a run folder. No code in a run folder is run.

    :param overrides: `key=value` strings, as given to `--set`.
    :param data: a folder of images in the place of its own data.
    :raises RecipeError: when the argument is neither, or the recipe is wrong.
    """
    if names_recipe(argument):
        return side_of(load_recipe(argument, on_folder(argument, overrides, data)))
    folder = open_run_folder(argument)
    manifest = read_json(folder.manifest)
    changes = on_folder(folder.recipe, overrides, data)

    def load() -> Recipe:
        return load_recipe(folder.recipe, changes)

    return Side(
        folder.path.name,
        tomllib.loads(resolved(load())) if changes else read_tables(folder),
        hashes(manifest.get("plugins", {})),
        recorded_hooks(folder),
        load,
        manifest,
        read_data(folder),
        tuple(str(change) for change in read_record(folder.path).changes),
    )


def side_of(recipe: Recipe) -> Side:
    """The side of a recipe that is loaded already."""
    record = plugin_record(recipe)
    hooks = {name: entry["hooks"] for name, entry in record.items()}
    tables = tomllib.loads(resolved(recipe))
    return Side(recipe.name, tables, hashes(record), hooks, lambda: recipe)


def with_data(one: Side, other: Side) -> Side:
    """The first side with the data that it reads now, when it is a recipe and the other a run.

    Data that cannot be read are told on stderr and left out.
    """
    if one.environment is not None or not other.data:
        return one
    try:
        return replace(one, data=DataNow(pick_device("cpu")).of(one.recipe))
    except GanlabError as error:
        print(f"the data of {one.name} are not compared: {error}", file=sys.stderr)
        return one


def difference(a: Side, b: Side) -> list[Change]:
    """All changes from a to b: settings, plugins, options, order of plugins, code, environment."""
    one, other = ({key: v for key, v in s.tables.items() if key != "plugins"} for s in (a, b))
    mine, theirs = a.tables["plugins"], b.tables["plugins"]
    found = list(_changes(one, other, "", "settings"))
    found += _of_plugins(mine, theirs)
    found += _order(a, b)
    shared = {n: (h, b.plugins[n]) for n, h in a.plugins.items() if n in b.plugins}
    found += [
        Change("changed", f"plugins.{name}", f"code {x[:12]}", f"code {y[:12]}", "code")
        for name, (x, y) in shared.items()
        if x != y
    ]
    found += [Change("removed", "changed in the run", c, None, "settings")
              for c in a.changes if c not in b.changes]  # fmt: skip
    found += [Change("added", "changed in the run", None, c, "settings")
              for c in b.changes if c not in a.changes]  # fmt: skip
    if a.data and b.data:
        found += _of_data(a.data, b.data)
    if a.environment is not None and b.environment is not None:
        found += _environment(a.environment, b.environment)
    return found


def hashes(record: dict[str, Any]) -> dict[str, str]:
    """The sha256 of each plugin's code in what `plugin_record` returns."""
    return {name: str(entry["sha256"]) for name, entry in record.items()}


def _of_plugins(mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*mine, *theirs]):
        key = f"plugins.{name}"
        if name not in theirs:
            yield Change("removed", key, _toml(mine[name]), None, "plugins")
        elif name not in mine:
            yield Change("added", key, None, _toml(theirs[name]), "plugins")
        else:
            yield from _changes(mine[name], theirs[name], f"{key}.", "plugins")


def _of_data(a: Data, b: Data) -> Iterator[Change]:
    """Sections of the data that differ, and training images that were only renamed."""
    for section, words in differences(a, b).items():
        before, after = (
            described({s: entry for s, entry in digests(data).items() if s == section}) or "none"
            for data in (a, b)
        )
        yield Change("changed", f"data.{section}", before, f"{after}: {words}", "data")
    if words := renamed(a, b):
        yield Change("changed", "data.training", "names", f"{words}; order and pixels stay", "data")


def _changes(a: dict[str, Any], b: dict[str, Any], prefix: str, group: Group) -> Iterator[Change]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            values = [_toml(side[name]) if name in side else None for side in (a, b)]
            yield Change("changed", f"{prefix}{name}", values[0], values[1], group)


def _order(a: Side, b: Side) -> Iterator[Change]:
    """Chained hooks in which the plugins that both recipes have are in different orders."""
    for hook in CHAINED:
        both = {name for s in (a, b) for name, hooks in s.hooks.items() if hook in hooks}
        both &= a.tables["plugins"].keys() & b.tables["plugins"].keys()
        orders = [[name for name in s.tables["plugins"] if name in both] for s in (a, b)]
        if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
            one, other = (" -> ".join(order) for order in orders)
            yield Change("changed", f"order of {hook}", one, other, "plugins")


def _environment(a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    yield from _changes(a.get("versions", {}), b.get("versions", {}), "versions.", "environment")
    names = ("device_name", "platform", "threads", "git_commit")
    one, other = ({n: m[n] for n in names if m.get(n) is not None} for m in (a, b))
    yield from _changes(one, other, "", "environment")
    if a.get("code") != b.get("code"):
        codes = [f"{manifest.get('code')}"[:12] for manifest in (a, b)]
        yield Change("changed", "ganlab's own code", codes[0], codes[1], "code")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return tomlkit.item(value).as_string()


def check_two(
    a: Path | str, b: Path | str, overrides: Sequence[str] = (), data: Path | None = None
) -> tuple[Side, Side]:
    """Read both sides of a difference.

    :param overrides, data: as for `side`, for both.
    :raises RecipeError: naming the argument that is neither a recipe nor a run.
    """
    one, other = side(a, overrides, data), side(b, overrides, data)
    for each in (one, other):
        if each.environment is not None and not each.data:
            print(
                f"the data are not compared: the run folder of {each.name} does not list them",
                file=sys.stderr,
            )
    return with_data(one, other), with_data(other, one)
