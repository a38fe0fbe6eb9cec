"""Finds the class of a plugin, from its name or from a .py file beside the recipe.

The entry-point group `ganlab` is the registry: every installed distribution can add to it. Only
the plugins that a recipe names are imported.
"""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

from ganlab.errors import RecipeError
from ganlab.files import sha256
from ganlab.monitoring.blame import described, is_interruption
from ganlab.plugin import Plugin
from ganlab.recipe.file import Origin, as_typed, did_you_mean
from ganlab.recipe.trust import Code, is_in_a_run
from ganlab.registry import entry_points

GROUP = "ganlab"
READS_FOLDER = "ganlab.reads_folder"
"""The group of those plugins that have `Plugin.reads_folder`; known without an import of all."""
MOST_BYTES = 2**20  # of a plugin file


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
    """Every installed plugin by name; of several with one name the first."""
    return {point.name: point for point in reversed(offered())}


@cache
def clashes() -> dict[str, list[str]]:
    """The names that several distributions offer for different classes, with the distributions."""
    found: dict[str, dict[str, str]] = {}
    for point in offered():
        found.setdefault(point.name, {}).setdefault(point.value, _distribution(point)[0])
    return {name: list(values.values()) for name, values in found.items() if len(values) > 1}


@cache
def offered() -> list[EntryPoint]:
    """Every plugin that an installed distribution offers, those with the name of another too."""
    return entry_points(GROUP)


def folder_readers() -> list[str]:
    """The names of the installed plugins that read a folder of images, sorted."""
    return sorted({point.name for point in entry_points(READS_FOLDER)} & installed().keys())


class _Offered(EntryPoint):
    """A class that is offered without a distribution."""

    def load(self) -> type[Plugin]:
        found: type[Plugin] = vars(self)["plugin"]
        return found


@contextmanager
def offering(plugins: Mapping[str, type[Plugin]]) -> Iterator[None]:
    """Context in which recipes may name these classes, as if their distribution were installed."""
    registry, points = installed(), {}
    for name, plugin in plugins.items():
        points[name] = _Offered(name, f"{plugin.__module__}:{plugin.__qualname__}", GROUP)
        vars(points[name])["plugin"] = plugin
    before = registry.copy()
    registry.update(points)
    try:
        yield
    finally:
        registry.clear()
        registry.update(before)


def find_plugin(use: str, origin: Origin | str) -> tuple[type[Plugin], PluginSource]:
    """The class of an installed plugin.

    :raises RecipeError: when there is none of this name, or it is not a Plugin class.
    """
    point = installed().get(use)
    if point is None:
        near = did_you_mean(use, installed())
        raise RecipeError(
            f"{origin}: no plugin named '{use}'{near or '.'} "
            "`ganlab plugins` lists what is installed."
        )
    place = f"{origin}: plugin '{use}' of {' '.join(_distribution(point))}"
    if others := clashes().get(use):
        raise RecipeError(
            f"{origin}: two installed distributions offer a plugin named '{use}': "
            f"{' and '.join(others)}; uninstall one"
        )
    try:
        plugin = point.load()
    except BaseException as error:  # SystemExit too
        if is_interruption(error):
            raise
        raise _not_imported(place, error) from error
    if not (inspect.isclass(plugin) and issubclass(plugin, Plugin)):
        raise RecipeError(f"{place} ({point.value}) is not a class derived from Plugin")
    file = Path(inspect.getfile(plugin))
    digest = sha256(file.read_bytes())
    return plugin, PluginSource(use, *_distribution(point), file, digest)


def origin_of(plugin: type[Plugin]) -> str:
    """Where a plugin's code comes from: its distribution and version, or else its file."""
    value = f"{plugin.__module__}:{plugin.__qualname__}"
    for point in installed().values():
        if point.value == value:
            return " ".join(_distribution(point))
    file = getattr(sys.modules.get(plugin.__module__), "__file__", None)
    return as_typed(Path(file)) if file else plugin.__module__


def _not_imported(place: str, error: BaseException) -> RecipeError:
    told = RecipeError(f"{place} cannot be imported: {described(error)}")
    told.traceback = "".join(traceback.format_exception(error))
    return told


@cache  # reading the metadata of a distribution takes a millisecond
def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")


def read_code(use: str, origin: Origin, recipe: Path) -> Code:
    """Read the plugin file that a recipe names as './file.py'. Nothing of it is run.

    The path starts at the folder of the file that states it. The plugin file must lie in the folder
    of `recipe`, the one that the user named, or below it: a recipe that it extends may be anywhere,
    but brings no code from there.

    :raises RecipeError: when there is no such file, or it lies elsewhere, also by way of a link.
    """
    folder = (origin.file or recipe).parent
    root = recipe.parent.resolve()
    try:
        file = (folder / use).resolve()
        found = file.is_file()
    except (OSError, ValueError, RuntimeError):  # a character that no path has; links in a circle
        raise RecipeError(f"{origin}: {use!r} is not the path of a file") from None
    if not file.is_relative_to(root):
        raise RecipeError(
            f"{origin}: '{use}' is {file}, outside the folder of {recipe.name}; a recipe runs code "
            "from its own folder only. Copy the file there and name the copy, or install it as a "
            "package with a plugin"
        )
    if not found:
        near = did_you_mean(file.name, (p.name for p in folder.glob("*.py")))
        raise RecipeError(f"{origin}: no file '{use}' beside the recipe{near}")
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RecipeError(f"{origin}: '{use}' is too large; a plugin file has at most 1 MiB")
    return Code(file, content, is_in_a_run(file, root))


def class_of(code: Code, use: str, origin: Origin) -> tuple[type[Plugin], PluginSource]:
    """Run the code of a plugin file, which is reported on stderr, and take its class.

    :raises RecipeError: when it cannot run, or does not define exactly one Plugin class.
    """
    digest = code.sha256
    _say(f"runs code from {code.file}, sha256 {digest}")
    module = _import(code, f"_ganlab_{code.file.stem}_{digest[:12]}", origin)
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
    return classes[0], PluginSource(code.file.stem, "", "", code.file, digest, beside_recipe=True)


@cache  # once per line: a comparison reads the same recipes many times
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _import(code: Code, name: str, origin: Origin) -> ModuleType:
    """Run exactly the bytes that were hashed: no cached bytecode, no file changed meanwhile."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, code.file)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic's postponed annotations and Dynamo look it up there
    try:
        exec(compile(code.content, code.file, "exec", dont_inherit=True), vars(module))
    except BaseException as error:  # SystemExit too
        del sys.modules[name]
        if is_interruption(error):
            raise
        raise _not_imported(f"{origin}: '{code.file.name}'", error) from error
    return module
