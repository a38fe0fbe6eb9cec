"""The run folder: created once, never overwritten, used by one process at a time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.files import remove_stale, write_json, write_text
from ganlab.plugin import Plugin, hooks_of
from ganlab.recipe.file import read_alone
from ganlab.recipe.model import Recipe, resolved
from ganlab.runs.data import Data, digests
from ganlab.runs.links import FOLDERS, check_plain
from ganlab.runs.reading import read_json, tell_once

_DATA = TypeAdapter(Data)


class RunFolder:
    """`runs/<recipe>-<n>/`: recipe.toml, manifest.json, data.json, status.json, stats.jsonl, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path

    recipe = property(lambda self: self.path / "recipe.toml")
    manifest = property(lambda self: self.path / "manifest.json")
    data = property(lambda self: self.path / "data.json")
    status = property(lambda self: self.path / "status.json")
    stats = property(lambda self: self.path / "stats.jsonl")
    timing = property(lambda self: self.path / "timing.jsonl")
    scores = property(lambda self: self.path / "scores.jsonl")
    verdicts = property(lambda self: self.path / "verdicts.jsonl")
    pictures = property(lambda self: self.path / "pictures")
    log = property(lambda self: self.path / "log.txt")
    report = property(lambda self: self.path / "report.html")
    samples = property(lambda self: self.path / "samples")
    checkpoints = property(lambda self: self.path / "checkpoints")

    def weights(self, which: str = "last") -> Path:
        """The generator's weights: the last, or the best by the recipe's metric."""
        return self.path / ("generator.safetensors" if which == "last" else "best.safetensors")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder; the lock is freed when the process ends, also after a crash.

        :raises GanlabError: when another process has locked it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise GanlabError(f"{self.path} is in use by another process") from None
        try:
            yield
        finally:
            lock.release()

    def remove_stale(self) -> None:
        """Remove the temporary files that killed processes have left. The caller has the lock."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            remove_stale(folder)

    def is_in_use(self) -> bool:
        """Whether another process has locked the folder."""
        try:
            with self.lock():
                return False
        except GanlabError:
            return True

    def write_status(self, state: str, **figures: Any) -> None:
        write_json(self.status, {"state": state, **figures})

    def read_status(self) -> dict[str, Any]:
        """The contents of status.json, without scores that were not finite."""
        status = read_json(self.status)
        for name in ("scores", "bicubic"):
            if name in status:
                status[name] = {k: v for k, v in status[name].items() if v is not None}
        return status


@contextmanager
def new_run_folder(recipe: Recipe, parent: Path, name: str | None = None) -> Iterator[RunFolder]:
    """Create the folder of a new run, with the resolved recipe and its plugin files.

    An error inside the `with` block removes the folder again.

    :raises RecipeError: when `name` exists already or is not a plain name.
    """
    if name is not None and (Path(name).name != name or name in ("", ".", "..")):
        raise RecipeError(f"--name {name}: it must be a plain folder name")
    found = parent.is_dir()
    parent.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(_claim(parent, name, recipe.name))
    for part in (folder.samples, folder.checkpoints):
        part.mkdir()
    for key, source in recipe.sources.items():
        if source.beside_recipe:
            shutil.copyfile(source.file, folder.path / f"{key}.py")
    write_text(folder.recipe, resolved(recipe))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder.path)
        if not found:
            with suppress(OSError):  # not empty: another run has begun there
                parent.rmdir()
        raise


def open_run_folder(path: Path | str) -> RunFolder:
    """Open the folder of a run, given as a path or as a name under runs/.

    :raises RecipeError: when it is not a run folder, or a link is in it.
    """
    for candidate in (Path(path), Path("runs") / path):
        if (candidate / "recipe.toml").is_file():
            check_plain(candidate)
            return RunFolder(candidate)
    raise RecipeError(f"{path}: not a run folder (it has no recipe.toml); `ganlab runs` lists them")


def _claim(parent: Path, name: str | None, stem: str) -> Path:
    """Create a folder that did not exist; if two processes try one name, only one gets it."""
    if name is not None:
        try:
            (parent / name).mkdir()
        except FileExistsError:
            raise RecipeError(
                f"--name {name}: {parent / name} exists, and runs are never overwritten; "
                "choose another name"
            ) from None
        return parent / name
    number = 1
    while True:
        path = parent / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def plugin_record(recipe: Recipe) -> dict[str, Any]:
    """What the manifest says of each plugin: distribution, version, hash, hooks, path options.

    With hooks and path options, commands on a finished run know what a plugin does, and need none
    of its code.
    """
    record = {}
    for name, source in recipe.sources.items():
        plugin = recipe.plugins[name]
        record[name] = asdict(source) | {
            "file": source.file.name,
            "hooks": hooks_of(type(plugin)),
            "paths": [option for option, _ in paths_in(plugin)],
        }
    return record


def paths_in(plugin: Plugin) -> Iterator[tuple[str, Path]]:
    """The options of a plugin that are paths."""
    for key, info in type(plugin).model_fields.items():
        if isinstance(value := getattr(plugin, key), Path):
            yield info.alias or key, value


def read_tables(folder: RunFolder) -> dict[str, Any]:
    """The recipe of a run as TOML tables, settings with a later default included; no code is run.

    :raises RecipeError: when it is not valid TOML, or extends another recipe.
    """
    tables = read_alone(folder.recipe)
    defaults = {
        key: info.default for key, info in Recipe.model_fields.items() if not info.is_required()
    }
    for name, options in tables.setdefault("plugins", {}).items():
        if not isinstance(options, dict):
            raise RecipeError(f"{folder.recipe}: plugins.{name}: a plugin has a table of options")
    return defaults | tables


def recorded_hooks(folder: RunFolder) -> dict[str, list[str]]:
    """The hooks that each plugin of a run implements, as recorded; an older run records none."""
    return _recorded(folder, "hooks")


def recorded_paths(folder: RunFolder) -> dict[str, list[str]]:
    """The options of each plugin that are paths, as recorded; an older run records none."""
    return _recorded(folder, "paths")


def _recorded(folder: RunFolder, what: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    plugins = read_json(folder.manifest).get("plugins")
    for name, record in plugins.items() if isinstance(plugins, dict) else ():
        names = record.get(what) if isinstance(record, dict) else None
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            found[name] = names
    return found


def read_data(folder: RunFolder) -> Data:
    """The data of a run as digests.

    Empty where data.json is missing or damaged, or lists other items than the manifest says.
    """
    try:
        found = _DATA.validate_python(read_json(folder.data), strict=True)
        fault = ""
    except ValidationError:
        found, fault = {}, "damaged"
    recorded = read_json(folder.manifest).get("data")
    if found and recorded not in (None, digests(found)):
        fault = "it lists other items than those of manifest.json"
    if fault:
        tell_once(f"{printable(str(folder.data))}: {fault}; the data of the run are unknown")
        return {}
    return found
