"""Faults of a disk, made on purpose: at the n-th operation on the files of a folder.

`Disk` stands between Python and the system. It counts each open, write, sync, rename, removal and
new folder below one folder. At the n-th it calls `strike`, which raises an error or ends the
process. It also keeps a journal, from which `after_exit` and `after_power_cut` make the folder as
it would be if the process, or the machine, had stopped after any number of operations.

Writes are counted where they reach the system, not where they enter a buffer. What a library
writes without Python is seen when its file is renamed, as data that nobody has synced. Only for
Linux, which tells the path of an open file.
"""

import builtins
import fcntl
import io
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

WRITING = frozenset("wax+")


class Operation(NamedTuple):
    """One change of the folder; `path` and `other` are relative to it."""

    kind: str
    path: str = ""
    node: int = 0
    """Number of the file: it stays the same when the file is renamed."""
    data: Any = None


class Disk:
    """Context in which operations below `root` are counted, noted, and struck.

    :param strike: called with the number of each operation, counted from 1, and its kind, before
        the operation. It may raise, or end the process.
    """

    def __init__(self, root: Path, strike: Callable[[int, str], None] = lambda *_: None) -> None:
        self.root = os.path.realpath(root)
        self.strike = strike
        self.count = 0
        self.journal: list[Operation] = []
        self._nodes: dict[tuple[int, int], int] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # an operation and its note belong together

    def note(self, kind: str, path: str = "", data: Any = None) -> None:
        """Note something in the journal that is no operation, such as an acknowledgement."""
        self.journal.append(Operation(kind, path, data=data))

    @contextmanager
    def between(self) -> Iterator["Disk"]:
        changed: dict[str, Any] = {
            "open": self._os_open, "fsync": self._fsync, "write": self._os_write,
            "replace": self._rename, "rename": self._rename, "unlink": self._unlink,
            "remove": self._unlink, "mkdir": self._mkdir, "rmdir": self._rmdir,
            "truncate": self._truncate, "ftruncate": self._truncate,
        }  # fmt: skip
        self._real = {name: getattr(os, name) for name in changed} | {"file": io.open}
        opened = [patch.object(module, "open", self._open) for module in (io, builtins)]
        with patch.multiple(os, **changed), opened[0], opened[1]:
            yield self

    @contextmanager
    def operation(self, kind: str) -> Iterator[None]:
        """Context of one operation and of its note in the journal."""
        with self._lock:
            self.count += 1
            self.strike(self.count, kind)
            yield

    def _below(self, path: Any) -> str | None:
        """The path relative to the root; None when it is elsewhere."""
        try:
            path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        except OSError:
            return None
        whole = os.path.abspath(os.fsdecode(path))
        folder, name = os.path.split(whole)
        whole = os.path.join(os.path.realpath(folder), name)
        return os.path.relpath(whole, self.root) if whole.startswith(self.root + os.sep) else None

    def _node(self, file: Any) -> int:
        """The number of a file, given by its path or descriptor."""
        found = os.stat(file)
        key = (found.st_dev, found.st_ino)
        if key not in self._nodes:
            self._nodes[key] = next(self._numbers)
        return self._nodes[key]

    def _opened(self, descriptor: int, path: str) -> None:
        """Note a file that has been opened for writing: new, emptied or as it was."""
        node = self._node(descriptor)
        self.journal.append(Operation("name", path, node))
        self.note_length(descriptor, os.fstat(descriptor).st_size)

    def _os_open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        below = self._below(path)
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if below is None or not writes or os.path.isdir(path) or "dir_fd" in options:
            return self._real["open"](path, flags, *rest, **options)
        with self.operation("open"):
            descriptor = self._real["open"](path, flags, *rest, **options)
            self._opened(descriptor, below)
            return descriptor

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None,
              errors: Any = None, newline: Any = None, closefd: bool = True,
              opener: Any = None) -> Any:  # fmt: skip
        below = self._below(file) if WRITING & set(mode) else None
        if below is None:
            return self._real["file"](
                file, mode, buffering, encoding, errors, newline, closefd, opener
            )
        if isinstance(file, int) or opener is not None:  # then os.open has been counted
            raw = _Raw(self, file, mode, closefd, opener)
        else:
            with self.operation("open"):
                raw = _Raw(self, file, mode)
                self._opened(raw.fileno(), below)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline)
        text.mode = mode  # type: ignore[misc]
        return text

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        below = self._below(number)
        if below is None and os.readlink(f"/proc/self/fd/{number}") != self.root:
            return self._real["fsync"](descriptor)
        with self.operation("fsync"):
            self._real["fsync"](descriptor)
            if os.path.isdir(f"/proc/self/fd/{number}"):
                self.journal.append(Operation("sync folder", below or "."))
            else:
                self.journal.append(Operation("sync", node=self._node(number)))

    def _os_write(self, descriptor: int, data: Any) -> int:
        below = self._below(descriptor)
        if below is None or below.endswith("(deleted)"):
            return self._real["write"](descriptor, data)
        with self.operation("write"):
            at = _end_or_place(descriptor)
            count = self._real["write"](descriptor, data)
            self.wrote(descriptor, at, bytes(data)[:count])
            return count

    def _truncate(self, file: Any, length: int) -> None:
        below = self._below(file)
        if below is None:
            return self._real["truncate"](file, length)
        with self.operation("truncate"):
            self._real["truncate"](file, length)
            self.note_length(file, length)

    def note_length(self, file: Any, length: int) -> None:
        self.journal.append(Operation("length", node=self._node(file), data=length))

    def wrote(self, descriptor: int, at: int, data: bytes) -> None:
        node = self._node(descriptor)
        self.journal.append(Operation("write", node=node, data=(at, data)))

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        one, other = self._below(source), self._below(target)
        if one is None or other is None:
            return self._real["replace"](source, target, **options)
        with self.operation("rename"):
            if os.path.isfile(source):
                self._notice(source, one)
            self._forget(target)
            self._real["replace"](source, target, **options)
            self.journal.append(Operation("rename", one, data=other))

    def _notice(self, file: Any, path: str) -> None:
        """Note the content of a file that was written without Python."""
        found = os.stat(file)
        if (found.st_dev, found.st_ino) in self._nodes:
            return
        descriptor = self._real["open"](file, os.O_RDONLY)
        try:
            self._opened(descriptor, path)
            with self._real["file"](descriptor, "rb", closefd=False) as content:
                self.wrote(descriptor, 0, content.read())
        finally:
            os.close(descriptor)

    def _unlink(self, path: Any, **options: Any) -> None:
        self._changed("unlink", path, options)

    def _rmdir(self, path: Any, **options: Any) -> None:
        self._changed("rmdir", path, options)

    def _mkdir(self, path: Any, *mode: Any, **options: Any) -> None:
        self._changed("mkdir", path, options, *mode)

    def _changed(self, kind: str, path: Any, options: dict[str, Any], *rest: Any) -> None:
        folder = options.get("dir_fd")
        whole = (
            path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        )
        below = self._below(whole)
        if below is None:
            return self._real[kind](path, *rest, **options)
        with self.operation(kind):
            if kind == "unlink":
                self._forget(whole)
            self._real[kind](path, *rest, **options)
            self.journal.append(Operation(kind, below))

    def _forget(self, file: Any) -> None:
        """Forget the number of a file that goes: the system will give its inode to another."""
        with suppress(OSError):
            found = os.lstat(file)
            self._nodes.pop((found.st_dev, found.st_ino), None)


class _Raw(io.FileIO):
    """A file below the root of a `Disk`."""

    def __init__(self, disk: Disk, file: Any, mode: str, *rest: Any) -> None:
        self.disk = disk
        super().__init__(file, mode.replace("b", "").replace("t", ""), *rest)

    def write(self, data: Any) -> int:
        with self.disk.operation("write"):
            at = _end_or_place(self.fileno())
            count = super().write(data) or 0
            self.disk.wrote(self.fileno(), at, bytes(data)[:count])
            return count

    def truncate(self, size: int | None = None) -> int:
        with self.disk.operation("truncate"):
            length = super().truncate(size)
            self.disk.note_length(self.fileno(), length)
            return length


def _end_or_place(descriptor: int) -> int:
    """Where the next write goes: to the end of a file that is opened for appending."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        return os.fstat(descriptor).st_size
    return os.lseek(descriptor, 0, os.SEEK_CUR)


ROOT = 0
_Entries = dict[str, int]
"""Name -> number of the file or folder, in one folder."""


class Files:
    """Names and contents: as programs see them, and as they were last synced."""

    def __init__(self) -> None:
        self.folders: dict[int, _Entries] = {ROOT: {}}
        self.synced_folders: dict[int, _Entries] = {ROOT: {}}
        self.contents: dict[int, bytearray] = {}
        self.synced_contents: dict[int, bytes] = {}

    def apply(self, one: Operation) -> None:
        getattr(self, "_" + one.kind.replace(" ", "_"), lambda _: None)(one)

    def _folder(self, path: str) -> int:
        number = ROOT
        for part in Path(path).parts:
            number = self.folders[number][part]
        return number

    def _place(self, path: str) -> tuple[_Entries, str]:
        folder, name = os.path.split(path)
        return self.folders[self._folder(folder)], name

    def _name(self, one: Operation) -> None:
        entries, name = self._place(one.path)
        entries[name] = one.node
        self.contents.setdefault(one.node, bytearray())

    def _length(self, one: Operation) -> None:
        content = self.contents[one.node]
        content[:] = content[: one.data].ljust(one.data, b"\0")

    def _write(self, one: Operation) -> None:
        at, data = one.data
        content = self.contents.setdefault(one.node, bytearray())
        content[len(content) :] = bytes(max(0, at - len(content)))
        content[at : at + len(data)] = data

    def _sync(self, one: Operation) -> None:
        self.synced_contents[one.node] = bytes(self.contents[one.node])

    def _sync_folder(self, one: Operation) -> None:
        number = self._folder("" if one.path == "." else one.path)
        self.synced_folders[number] = dict(self.folders[number])

    def _rename(self, one: Operation) -> None:
        source, name = self._place(one.path)
        target, other = self._place(one.data)
        target[other] = source.pop(name)

    def _mkdir(self, one: Operation) -> None:
        entries, name = self._place(one.path)
        entries[name] = -len(self.folders)  # files have positive numbers
        self.folders[entries[name]] = {}

    def _unlink(self, one: Operation) -> None:
        entries, name = self._place(one.path)
        del entries[name]

    _rmdir = _unlink


def replayed(journal: list[Operation]) -> Iterator[Files]:
    """The files before the first operation and after each; one object, which changes."""
    files = Files()
    yield files
    for one in journal:
        files.apply(one)
        yield files


State = dict[str, bytes | None]
"""Path -> content; None is a folder."""


def after_exit(files: Files) -> State:
    """What stays when the process ends at once: all that it has told the system."""
    return _state(files.folders, lambda number: bytes(files.contents[number]))


def after_power_cut(files: Files, names: str, rng: random.Random | None = None) -> State:
    """What stays when the machine stops: the contents that were synced.

    A file that was never synced is empty.

    :param names: "synced" keeps the names in folders as of their last sync; "all" every name.
    :param rng: with it, each file is at random as it was last synced or as it was last written.
    """

    def content(number: int) -> bytes:
        if rng is not None and rng.random() < 0.5:
            return bytes(files.contents[number])
        return files.synced_contents.get(number, b"")

    return _state(files.folders if names == "all" else files.synced_folders, content)


def _state(folders: dict[int, _Entries], content: Callable[[int], bytes]) -> State:
    state: State = {}

    def walk(number: int, path: str) -> None:
        for name, inner in sorted(folders.get(number, {}).items()):
            state[path + name] = None if inner < 0 else content(inner)
            if inner < 0:
                walk(inner, f"{path}{name}/")

    walk(ROOT, "")
    return state


def write_state(state: State, folder: Path) -> None:
    """Write a state into an empty folder."""
    folder.mkdir(parents=True)
    for path, content in sorted(state.items()):
        if content is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
