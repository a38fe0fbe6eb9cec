"""Finds the class of a plugin, from its name or from a .py file beside the recipe.

The entry-point group `ganlab` is the registry: every installed distribution can add to it. Only
the plugins that a recipe names are imported.
"""

import hashlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from ganlab.errors import RecipeError
from ganlab.plugin import Plugin
from ganlab.recipe.file import Origin, did_you_mean

GROUP = "ganlab"


@dataclass(frozen=True, slots=True)
class PluginSource:
    """The origin of a plugin's code, as the manifest records it."""

    name: str
    distribution: str
    version: str
    file: Path
    sha256: str
    beside_recipe: bool = False


@cache
def installed() -> dict[str, EntryPoint]:
    """Every installed plugin by name.

    :raises RecipeError: when two distributions offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise RecipeError(
                f"two installed distributions offer a plugin named '{point.name}': "
                f"{_distribution(other)[0]} and {_distribution(point)[0]}; uninstall one"
            )
    return found


def find_plugin(use: str, origin: Origin, folder: Path) -> tuple[type[Plugin], PluginSource]:
    """The class for a recipe's `use`: an installed name, or './file.py' beside the recipe.

    :param folder: the recipe's folder. Files are run only from there, and reported on stderr.
    :raises RecipeError: when the plugin does not exist, or is not exactly one Plugin class.
    """
    if use.endswith(".py"):
        return _from_file(use, origin, folder.resolve())
    point = installed().get(use)
    if point is None:
        near = did_you_mean(use, installed())
        raise RecipeError(
            f"{origin}: no plugin named '{use}'{near or '.'} "
            "`ganlab plugins` lists what is installed."
        )
    try:
        plugin = point.load()
    except Exception as error:
        raise RecipeError(
            f"{origin}: plugin '{use}' of {_distribution(point)[0]} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (inspect.isclass(plugin) and issubclass(plugin, Plugin)):
        raise RecipeError(f"{origin}: '{use}' ({point.value}) is not a class derived from Plugin")
    file = Path(inspect.getfile(plugin))
    return plugin, PluginSource(use, *_distribution(point), file, _sha256(file))


@cache  # reading the metadata of a distribution takes a millisecond
def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")


def _from_file(use: str, origin: Origin, folder: Path) -> tuple[type[Plugin], PluginSource]:
    file = (folder / use).resolve()
    if not file.is_relative_to(folder):
        raise RecipeError(
            f"{origin}: '{use}' lies outside the recipe's folder; a recipe runs code from its "
            "own folder only. Copy the file there, or install it as a plugin"
        )
    if not file.is_file():
        near = did_you_mean(file.name, (p.name for p in folder.glob("*.py")))
        raise RecipeError(f"{origin}: no file '{use}' beside the recipe{near}")
    digest = _sha256(file)
    _say(f"runs code from {file}, sha256 {digest}")
    module = _import(file, f"_ganlab_{file.stem}_{digest[:12]}", origin)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Plugin)
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise RecipeError(
            f"{origin}: '{use}' must define exactly one class derived from Plugin; it has {names}"
        )
    return classes[0], PluginSource(file.stem, "", "", file, digest, beside_recipe=True)


@cache  # once per line: a comparison reads the same recipes many times
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _import(file: Path, name: str, origin: Origin) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic's postponed annotations and Dynamo look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(
            f"{origin}: '{file.name}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
