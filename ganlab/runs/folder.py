"""The run folder: created once, never overwritten, used by one process at a time."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from ganlab.disk import NotWritten, telling_disk
from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.files import claim, finite, new_folder, remove_stale, whole, write_json, write_text
from ganlab.names import check_name
from ganlab.plugin import Plugin, hooks_of
from ganlab.recipe.file import read_alone
from ganlab.recipe.model import Recipe, resolved
from ganlab.runs.data import Data, digests
from ganlab.runs.links import FOLDERS, check_plain
from ganlab.runs.reading import read_json, tell_once
from ganlab.runs.record import check_recipe, new_id, of_recipe, read_record
from ganlab.runs.reference import find_run
from ganlab.system import is_running

_DATA = TypeAdapter(Data)
LOOKING_SECONDS = 0.5
"""How long to wait for a lock: `ganlab runs` takes it for a moment to see whether it is free."""
STATUS_BYTES = 2048
"""At least; a block of the disk is larger anyway."""


class InUse(GanlabError):  # noqa: N818  # it names a state
    """Another process has locked a run folder."""


class NoLocks(GanlabError):  # noqa: N818  # it names a lack
    """A folder cannot be locked: on a network, for example."""


class RunFolder:
    """`runs/<recipe>-<n>/`: recipe.toml, manifest.json, data.json, status.json, stats.jsonl, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path

    recipe = property(lambda self: self.path / "recipe.toml")
    manifest = property(lambda self: self.path / "manifest.json")
    data = property(lambda self: self.path / "data.json")
    changes = property(lambda self: self.path / "changes.jsonl")
    status = property(lambda self: self.path / "status.json")
    stats = property(lambda self: self.path / "stats.jsonl")
    timing = property(lambda self: self.path / "timing.jsonl")
    scores = property(lambda self: self.path / "scores.jsonl")
    verdicts = property(lambda self: self.path / "verdicts.jsonl")
    pictures = property(lambda self: self.path / "pictures")
    log = property(lambda self: self.path / "log.txt")
    holder = property(lambda self: self.path / ".holder.json")
    report = property(lambda self: self.path / "report.html")
    samples = property(lambda self: self.path / "samples")
    checkpoints = property(lambda self: self.path / "checkpoints")

    def weights(self, which: str = "last") -> Path:
        """The generator's weights: the last, or the best by the recipe's metric."""
        return self.path / ("generator.safetensors" if which == "last" else "best.safetensors")

    def tracked(self, tracker: str) -> Path:
        """How far a tracker has come with this run."""
        return self.path / f"tracked-{tracker}.json"

    def bundle(self, iteration: int) -> Path:
        """The folder with which an iteration that was not finite can be taken again."""
        return self.path / f"nonfinite-{iteration:07d}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder; the lock is freed when the process ends, also after a crash.

        :raises InUse: when another process has locked it; the message says which.
        :raises NoLocks: when the file system has no locks, or the folder cannot be written to.
        """
        with self._locked(LOOKING_SECONDS):
            host, now = socket.gethostname(), f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            with suppress(OSError):  # it is only told
                write_json(self.holder, {"process": os.getpid(), "host": host, "since": now})
            try:
                yield
            finally:
                with suppress(OSError):
                    self.holder.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, patience: float) -> Iterator[None]:
        lock = FileLock(self.path / ".lock", timeout=patience)
        try:
            lock.acquire()
        except Timeout:
            raise InUse(f"{self.path} is in use by {self._by_whom()}") from None
        except (OSError, NotImplementedError) as fault:
            reason = getattr(fault, "strerror", None) or fault
            raise NoLocks(
                f"{self.path}: cannot be locked ({reason}), so two processes could write to one "
                "run. Network folders often have no locks: choose a folder on another disk with "
                "--runs, or copy the run there"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _by_whom(self) -> str:
        told = read_json(self.holder)
        if not told:
            return "another process"
        process, host, since = (printable(str(told.get(k))) for k in ("process", "host", "since"))
        return f"process {process} on {host} since {since}"

    def remove_stale(self) -> None:
        """Remove the temporary files that killed processes have left. The caller has the lock."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            remove_stale(folder)

    def is_in_use(self) -> bool:
        """Whether another process has locked the folder."""
        try:
            with self._locked(0):
                return False
        except InUse:
            return True
        except NoLocks:  # a folder in which nothing may be written; else nobody can have locked it
            told = read_json(self.holder)
            here, process = told.get("host") == socket.gethostname(), told.get("process")
            return bool(told) and not (here and type(process) is int and not is_running(process))

    def write_status(self, state: str, **figures: Any) -> None:
        """Write status.json, with blanks at its end: room for how the run ends on a full disk.

        :raises NotWritten: when it cannot be written.
        """
        text = _status_text(state, **figures)
        with telling_disk(self.status, len(text)):
            write_text(self.status, text)

    def write_last_status(self, state: str, message: str, **figures: Any) -> None:
        """Write how the run ended; on a full disk over the file that is there, in its room."""
        try:
            self.write_status(state, message=message, **figures)
        except NotWritten:
            with suppress(OSError), self.status.open("rb+") as file:
                room = len(file.read())
                short = {k: v for k, v in figures.items() if k in ("exit_code", "iteration", "of")}
                content = _status_text(state, message=message, **short).encode()
                if len(content) > room:
                    content = _status_text(state, message="", **short).encode()
                file.seek(0)
                file.write(content.rstrip().ljust(room))

    def read_status(self) -> dict[str, Any]:
        """The contents of status.json, without scores that were not finite.

        The state "running" becomes "killed" when no process has the folder in use.
        """
        status = read_json(self.status)
        if status.get("state") == "running" and not self.is_in_use():
            status["state"] = "killed"
        for name in ("scores", "bicubic"):
            if name in status:
                status[name] = {k: v for k, v in status[name].items() if v is not None}
        return status


def _status_text(state: str, **figures: Any) -> str:
    found = finite({"state": state, **figures})
    return json.dumps(found, indent=2, allow_nan=False).ljust(STATUS_BYTES) + "\n"


@contextmanager
def new_run_folder(
    recipe: Recipe, parent: Path, name: str | None = None, about: dict[str, Any] | None = None
) -> Iterator[RunFolder]:
    """Create the folder of a new run, with all that is known before its data are read.

    That is the resolved recipe, its plugin files, and a manifest with a new id, all of them or
    none. An error inside the `with` block removes the folder again, until the record is complete.

    :param about: what the manifest says besides.
    :raises RecipeError: when `name` exists already or is not a plain name.
    """
    if name is not None:
        check_name(name, "--name")
    found = parent.is_dir()
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent)
    with new_folder(parent) as made:
        _require_locks(made, parent)
        _record_beginning(RunFolder(made), recipe, about or {})
        folder = RunFolder(claimed(made, parent, name, recipe.name))
    try:
        yield folder
    except BaseException:
        if not is_complete(folder):
            shutil.rmtree(folder.path)
        if not found:
            with suppress(OSError):  # not empty: another run has begun there
                parent.rmdir()
        raise


def _require_locks(made: Path, parent: Path) -> None:
    """Try a lock before the data are decoded, not after that."""
    try:
        with RunFolder(made).lock():
            pass
    except NoLocks as fault:  # it names the folder under its temporary name
        raise NoLocks(str(fault).replace(str(made), str(parent))) from None


def _record_beginning(folder: RunFolder, recipe: Recipe, about: dict[str, Any]) -> None:
    for part in (folder.samples, folder.checkpoints):
        part.mkdir()
    for key, source in recipe.sources.items():
        if source.beside_recipe:
            with whole(folder.path / f"{key}.py") as file:
                file.write(source.file.read_bytes())
    text = resolved(recipe)
    write_text(folder.recipe, text)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder.manifest, {"id": new_id(), "begun": begun, **about, **of_recipe(text)})
    write_text(folder.status, _status_text("running", iteration=0, of=recipe.iterations))


def is_complete(folder: RunFolder) -> bool:
    """Whether the record of a run is complete: what it is made of, and what it reads."""
    manifest = read_json(folder.manifest)
    shapes = [manifest.get(name) for name in ("condition_shape", "real_shape")]
    return isinstance(manifest.get("data"), dict) and all(isinstance(s, list) for s in shapes)


def is_pulled(folder: RunFolder) -> bool:
    """Whether the folder has only the generator of a run, as `ganlab hub pull` makes it."""
    return bool(read_json(folder.manifest).get("pulled"))


def enlarges(folder: RunFolder) -> bool:
    """Whether a run's generator makes images from images; in a toy problem it does not."""
    manifest = read_json(folder.manifest)
    return all(len(manifest.get(name, ())) == 3 for name in ("condition_shape", "real_shape"))


def complete_record(folder: RunFolder, about: dict[str, Any], data: Data) -> None:
    """Add to the manifest what is known once the data are read; the record is complete then.

    A manifest that is gone or damaged is made again.

    :param about: shapes, plugins and environment.
    """
    manifest = read_json(folder.manifest)
    if not read_record(folder.path).known:
        journal = folder.changes.read_text(encoding="utf-8") if folder.changes.is_file() else ""
        manifest = of_recipe(folder.recipe.read_text(encoding="utf-8"), journal)
    write_json(folder.data, data)
    write_json(folder.manifest, manifest | about | {"data": digests(data)})


def open_run_folder(path: Path | str, edited: bool = False) -> RunFolder:
    """Open the folder of a run: a `Path` is the folder itself, a text is a reference to it.

    :param edited: whether the run's recipe.toml may have been edited; what it says is not believed.
    :raises RecipeError: when it is not a run folder, a link is in it, or its recipe.toml was edited
        by hand.
    """
    folder = find_run(path)
    check_plain(folder)
    if not edited:
        check_recipe(folder)
    return RunFolder(folder)


def claimed(made: Path, parent: Path, name: str | None, stem: str) -> Path:
    """Give a new folder its name; if two processes try one name, only one gets it.

    :param stem: without a name, the folder is called `<stem>-<n>`, with the first number n from 1
        that is free.
    """
    if name is not None:
        try:
            claim(made, parent / name)
        except FileExistsError:
            raise RecipeError(
                f"--name {name}: {parent / name} exists, and runs are never overwritten; "
                "choose another name"
            ) from None
        return parent / name
    for number in count(1):
        with suppress(FileExistsError):
            claim(made, parent / f"{stem}-{number}")
            break
    return parent / f"{stem}-{number}"


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
