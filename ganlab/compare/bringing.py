"""Brings the files of a run from a worker that does not see the folder of runs.

While the run goes on, its worker sends the files that have changed. So a run whose worker is lost
goes on from the newest checkpoint that has arrived, and looks like any other run meanwhile.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ganlab.errors import GanlabError, printable
from ganlab.files import new_folder, whole
from ganlab.runs.folder import RunFolder, claimed
from ganlab.runs.reference import runs_in
from ganlab.toolbox.executor import Sent

SEND_SECONDS = 2.0
"""Between two looks at what has changed."""

_NAME = re.compile(r"(\w[\w.+-]*/){0,3}\w[\w.+-]*", re.ASCII)
_Seen = tuple[int, int, int]


def files_in(folder: Path) -> dict[str, bytes]:
    """The files of a run folder, by their paths in it, without locks and temporary files."""
    return {name: (folder / name).read_bytes() for name in _names(folder)}


def _names(folder: Path) -> Iterator[str]:
    """The names of the files; checkpoints first, so that the logs are never older than they."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    names = [p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts)]
    yield from sorted(names, key=lambda name: (not name.startswith("checkpoints/"), name))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files of a run: the checkpoints after the logs, and last the digests that they need.

    :raises GanlabError: for a name that leads out of the folder.
    """
    order = sorted(files, key=lambda name: (name.endswith(".sha256"), name.endswith(".pt"), name))
    for name in order:
        if not _NAME.fullmatch(name):
            raise GanlabError(f"a worker sent a file of the name {printable(name)}; refused")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with whole(folder / name) as file:
            file.write(files[name])


class Sender(threading.Thread):
    """Sends what changes in the one run of a folder, on the worker's side."""

    def __init__(self, parent: Path, send: Callable[[Sent], object]) -> None:
        super().__init__(name="sender", daemon=True)
        self._parent, self._send = parent, send
        self._seen: dict[str, _Seen] = {}
        self._ended = threading.Event()
        self._fault: Exception | None = None

    def run(self) -> None:
        try:
            while not self._ended.wait(SEND_SECONDS):
                self._look()
            self._look()
        except Exception as error:
            self._fault = error

    def finish(self) -> None:
        """Send what is left, and wait until it is sent.

        :raises Exception: what sending has raised, now or before.
        """
        self._ended.set()
        self.join()
        if self._fault:
            raise self._fault

    def know(self, folder: Path) -> None:
        """Take what is in the folder now as sent."""
        self._seen = {name: _seen(folder / name) for name in _names(folder)}

    def _look(self) -> None:
        for folder in runs_in(self._parent):
            if not (folder / "data.json").exists():  # a run that has not begun would be no use
                continue
            changed, names = {}, []
            for name in _names(folder):
                try:
                    found = _seen(folder / name)
                    if self._seen.get(name) != found:
                        changed[name] = (folder / name).read_bytes()
                except FileNotFoundError:  # replaced or deleted just now
                    continue
                self._seen[name] = found
                names.append(name)
            if changed or self._seen.keys() - names:
                self._seen = {name: self._seen[name] for name in names}
                self._send(Sent(changed, tuple(names)))


def _seen(file: Path) -> _Seen:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass
class Receiver:
    """Writes what was sent into the folder of runs, on the side of the command.

    It has the folder locked, since the worker's lock is on another disk.
    """

    parent: Path
    stem: str
    """The name of a new run, without its number."""
    folder: Path | None
    _life: ExitStack = field(default_factory=ExitStack)
    _is_locked: bool = False

    def take(self, sent: Sent) -> None:
        """Write what was sent. A new run gets its name and appears whole.

        :raises InUse: when another process has locked the run.
        """
        if self.folder is None:
            with new_folder(self.parent) as made:
                write_files(made, sent.files)
                self.folder = claimed(made, self.parent, None, self.stem)
            self._lock(self.folder)
            return
        self._lock(self.folder)
        write_files(self.folder, sent.files)
        for name in set(_names(self.folder)) - {*sent.names}:
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Free the lock."""
        self._life.close()

    def _lock(self, folder: Path) -> None:
        if not self._is_locked:
            self._life.enter_context(RunFolder(folder).lock())
            self._is_locked = True
