"""What is different here from where a packed run was made: versions, machine, code, settings."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ganlab.commands.pack import paths_of
from ganlab.errors import RecipeError
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.recipe.file import Origin
from ganlab.recipe.model import Recipe, resolved
from ganlab.runs.archive import Contents
from ganlab.runs.environment import installed_packages

Model = TypeVar("Model", bound=BaseModel)


class PluginRecord(BaseModel):
    """What a manifest says of a plugin."""

    sha256: str = ""
    distribution: str = ""
    version: str = ""


class DataChange(BaseModel):
    """That a run was resumed with other data."""

    iteration: int


class Manifest(BaseModel):
    """The parts of a manifest that are compared. It may be a stranger's."""

    versions: dict[str, str] = {}
    packages: dict[str, str] = {}
    platform: str = ""
    device: str = "cpu"
    device_name: str = ""
    threads: int = 1
    code: str = ""
    plugins: dict[str, PluginRecord] = {}
    data_changes: list[DataChange] = []


def read_stranger(model: type[Model], file: Path) -> Model:
    """Read a JSON file of which nothing is known.

    :raises RecipeError: when it is not what the model says.
    """
    try:
        return model.model_validate_json(file.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = "".join(f"{part}: " for part in fault["loc"])
        raise RecipeError(f"{file}: damaged: {place}{fault['msg']}") from None


def of_environment(there: Manifest, here: dict[str, Any]) -> Iterator[str]:
    """The differences of versions, machine and ganlab's own code, one sentence each.

    :param here: as `describe_environment` returns it.
    """
    yield from _changes(there.versions, here["versions"])
    others = {n: v for n, v in there.packages.items() if n not in there.versions}
    if changed := list(_changes(others, installed_packages())):
        yield f"{len(changed)} more packages: {'; '.join(changed)}"
    mine = {
        "platform": here["platform"],
        "kind of device": here["device"].partition(":")[0],
        "device": here["device_name"],
        "CPU threads": here["threads"],
    }
    theirs = {
        "platform": there.platform,
        "kind of device": there.device.partition(":")[0],
        "device": there.device_name,
        "CPU threads": there.threads,
    }
    yield from _changes(theirs, mine)
    if there.code != here["code"]:
        yield f"ganlab's own code: {there.code[:12]} there, {here['code'][:12]} here"


def of_plugins(
    folder: Path, tables: dict[str, Any], manifest: Manifest, contents: Contents
) -> Iterator[str]:
    """The plugins whose code is not the recorded code, one sentence each. No file is imported.

    :param tables: of the plugins, as the recipe has them.
    """
    files = file_plugins(folder, tables, contents)
    for name, options in tables.items():
        record = manifest.plugins.get(name, PluginRecord())
        use = options.get("use", name) if isinstance(options, dict) else name
        if name in files:
            digest, version = files[name], ""
        elif use in installed():
            _, source = find_plugin(use, Origin(folder))
            digest, version = source.sha256, f" of {source.distribution} {source.version}"
        else:
            yield f"plugin {name}: of {record.distribution} {record.version}, not installed here"
            continue
        if digest != record.sha256:
            theirs = f" of {record.distribution} {record.version}" if record.distribution else ""
            there, here = f"{record.sha256[:12]}{theirs}", f"{digest[:12]}{version}"
            yield f"plugin {name}: code {there} there, {here} here"


def file_plugins(folder: Path, tables: dict[str, Any], contents: Contents) -> dict[str, str]:
    """The sha256 of each plugin whose code is in the archive, by its name.

    :raises RecipeError: when a plugin's file is not in the archive under the plugin's name.
    """
    found = {}
    for name, options in tables.items():
        use = options.get("use") if isinstance(options, dict) else None
        if not str(use).endswith(".py"):
            continue
        if use != f"./{name}.py" or f"{name}.py" not in contents.files:
            raise RecipeError(
                f"{folder / 'recipe.toml'}: plugins.{name}: its code, {use}, is not in the file; "
                "ask for a new file from `ganlab pack`"
            )
        found[name] = contents.files[f"{name}.py"]
    return found


def of_settings(tables: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    """The values of the recipe that are others here, through --set or other defaults.

    :param tables: the packed recipe, whole.
    """
    places = {f"plugins.{name}.{option}" for name, option in paths_of(recipe)}
    there = {key: value for key, value in _flat(tables).items() if key not in places}
    here = {
        key: v for key, v in _flat(tomllib.loads(resolved(recipe))).items() if key not in places
    }
    yield from _changes(there, here)
    yield from (
        f"{key.removeprefix('plugins.')}: not set there, {_shown(here[key])} here"
        for key in here
        if key not in there
    )


def _changes(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    for name, value in there.items():
        if name not in here:
            yield f"{name.removeprefix('plugins.')} {_shown(value)} there, absent here"
        elif here[name] != value:
            shown = f"{_shown(value)} there, {_shown(here[name])} here"
            yield f"{name.removeprefix('plugins.')} {shown}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _flat(table: Any, key: str = "") -> dict[str, Any]:
    """The values of nested tables, by their dotted keys; an empty table counts as a value."""
    if not isinstance(table, dict) or (key and not table):
        return {key: table}
    return {
        inner: value
        for name, part in table.items()
        for inner, value in _flat(part, f"{key}.{name}" if key else name).items()
    }
