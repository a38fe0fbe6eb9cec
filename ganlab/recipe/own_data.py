"""`--data FOLDER`: a recipe on a folder of images in the place of its own data."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomlkit

from ganlab.errors import RecipeError, printable
from ganlab.plugin import Plugin, implements
from ganlab.recipe.discovery import find_plugin, folder_readers
from ganlab.recipe.model import Recipe, load_recipe

_SOURCES = ("sample_real", "sample_batch")


def on_folder(file: Path | str, overrides: Sequence[str], folder: Path | None) -> tuple[str, ...]:
    """The `--set` overrides that put a folder of images in the place of a recipe's data.

    If a plugin of the recipe reads a folder (`reads_folder`), it gets this one, and keeps its
    options but for other paths, which belong to the data of the recipe. Otherwise the plugins that
    draw the samples make room for the installed plugin that reads a folder; it gets the values of
    the options that one of them has too, such as the side of a crop. What was set is told on
    stderr.

    :param overrides: those of the user; they come last, and are all that is returned when `folder`
        is None.
    :raises RecipeError: when the folder is not there, or it is unclear which plugin shall read it.
    """
    if folder is None:
        return tuple(overrides)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise RecipeError(f"--data {printable(str(folder))}: {what}; give your folder of images")
    recipe = load_recipe(file)
    own = [name for name, plugin in recipe.plugins.items() if plugin.reads_folder]
    if len(own) > 1:
        raise RecipeError(
            f"--data: {' and '.join(own)} of this recipe read folders; say which, as in "
            f"--set {own[0]}.{recipe.plugins[own[0]].reads_folder}=FOLDER"
        )
    changes = _another_folder(recipe, own[0], folder) if own else _in_place(recipe, folder)
    typed = " ".join(f"--set {shlex.quote(change)}" for change in changes)
    print(printable(f"--data {folder}: as {typed}"), file=sys.stderr)
    return (*changes, *overrides)


def _another_folder(recipe: Recipe, name: str, folder: Path) -> list[str]:
    """Give a plugin of the recipe another folder."""
    plugin, source = recipe.plugins[name], recipe.sources[name]
    use = source.name
    if source.beside_recipe:
        use = f"./{os.path.relpath(source.file, recipe.file.resolve().parent)}"
    options = {"use": use} if use != name else {}
    stated = plugin.model_dump(mode="json", by_alias=True, exclude_unset=True)
    options |= {k: v for k, v in stated.items() if k not in _paths(plugin)}
    return [f"{name}=false", _table(name, options | {plugin.reads_folder: str(folder)})]


def _in_place(recipe: Recipe, folder: Path) -> list[str]:
    """Put the installed plugin that reads a folder in the place of those that draw samples."""
    readers = folder_readers()
    if len(readers) != 1:
        found = f"several installed plugins read one: {', '.join(readers)}" if readers else (
            "no installed plugin reads one"
        )  # fmt: skip
        raise RecipeError(f"--data: no plugin of this recipe reads a folder, and {found}")
    reader, _ = find_plugin(readers[0], "--data")
    fields = {info.alias or key: info for key, info in reader.model_fields.items()}
    options: dict[str, Any] = {}
    dropped = list(_drawing(recipe))
    for name in dropped:
        plugin = recipe.plugins[name]
        own = {*_paths(plugin), reader.reads_folder}  # they belong to the data of the recipe
        for key, value in plugin.model_dump(mode="json", by_alias=True).items():
            if key in fields and key not in own and value != fields[key].default:
                options[key] = value
    table = _table(readers[0], {reader.reads_folder: str(folder)} | options)
    return [*(f"{name}=false" for name in dropped), table]


def _drawing(recipe: Recipe) -> Iterator[str]:
    """The plugins that draw samples; those that only change drawn ones are wrappers."""
    for name, plugin in recipe.plugins.items():
        hooks = [getattr(type(plugin), hook) for hook in _SOURCES if implements(plugin, hook)]
        if any(not hook.ganlab_impl["wrapper"] for hook in hooks):
            yield name


def _paths(plugin: Plugin) -> set[str]:
    fields = type(plugin).model_fields.items()
    return {info.alias or key for key, info in fields if isinstance(getattr(plugin, key), Path)}


def _table(name: str, options: dict[str, Any]) -> str:
    table = tomlkit.inline_table()
    table.update(options)
    return f"{name}={table.as_string()}"
