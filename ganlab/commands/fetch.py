"""What `ganlab data fetch` and `ganlab weights fetch` share: consent, progress, noted digests."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ganlab.disk import size, telling_disk
from ganlab.download import Watcher, download
from ganlab.errors import RecipeError
from ganlab.files import sha256_of_file, write_json
from ganlab.published import PublishedFile
from ganlab.recipe.trust import state_folder
from ganlab.terminal import Terminal

LARGE = 100 * 2**20
"""Bytes from which on the user is asked before a download."""


def size_of(num_bytes: int) -> str:
    """A published size in words."""
    return size(num_bytes) if num_bytes else "size not stated"


def told(file: PublishedFile, place: Path) -> Iterator[str]:
    """The lines that a user reads before a file is fetched."""
    yield f"{file.file_name}, {'about ' if file.is_rounded else ''}{size_of(file.size)}"
    yield f"  from:    {file.source}"
    yield f"  licence: {file.licence}"
    if file.sha256:
        yield f"  sha256:  {file.sha256} (from {file.sha256_from})"
    else:
        yield "  sha256:  nobody states one; that of the first fetch is noted, and compared later"
    yield f"  to:      {place}"


def require_consent(sizes: list[int], is_given: bool) -> None:
    """Ask before a large download; refuse it where nobody can be asked.

    :param sizes: of the files in bytes; 0 for one that nobody states.
    :raises RecipeError: naming --yes.
    """
    if is_given or (all(sizes) and sum(sizes) < LARGE):
        return
    known = [size(sum(sizes))] if any(sizes) else []
    unknown = [] if all(sizes) else ["a file of unknown size"]
    what = " and ".join(known + unknown)
    if not sys.stdin.isatty():
        raise RecipeError(f"to fetch {what}, type the same command again with --yes")
    if not click.confirm(f"fetch {what}?", err=True):
        raise RecipeError("nothing was fetched")


def fetch(file: PublishedFile, target: Path, copies: int = 1) -> str:
    """Fetch a file to its place, with progress on stderr; returns its sha256.

    A file of the right digest that is there already is left as it is. If nobody states its digest,
    that of the first fetch on this machine is noted, and later fetches must have the same.

    :param copies: how often the disk must hold it.
    """
    noted = _notes().get(file.source, "")
    if noted and not file.sha256:
        whence = f"its first fetch here; if you trust the new file, remove its line in {_file()}"
        file = replace(file, sha256=noted, sha256_from=whence)
    if is_there(file, target):
        return file.sha256
    with _watching(file.file_name) as watcher:
        found = download(file, target, watcher, copies)
    if not file.sha256:
        with telling_disk(_file()):
            _file().parent.mkdir(parents=True, exist_ok=True)
            write_json(_file(), _notes() | {file.source: found})
    return found


def is_there(file: PublishedFile, target: Path) -> bool:
    """Whether a file of the stated digest is in its place."""
    return bool(file.sha256) and target.is_file() and sha256_of_file(target) == file.sha256


@contextmanager
def _watching(name: str) -> Iterator[Watcher]:
    """Context with a bar on a terminal, and lines for what the user should know."""
    console = Terminal(stderr=True)
    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    label = TextColumn("{task.description}", markup=False)
    is_seen = console.is_terminal
    with Progress(label, *columns, console=console, disable=not is_seen, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield Watcher(
            tell=lambda text: console.print(f"{name}: {text}", soft_wrap=True),
            progress=lambda have, total: bar.update(task, completed=have, total=total or None),
        )


def _file() -> Path:
    return state_folder() / "fetched.json"


def _notes() -> dict[str, str]:
    """Source -> sha256 of its first fetch, for files whose digest nobody states."""
    with suppress(OSError, ValueError):
        notes = json.loads(_file().read_bytes())
        if isinstance(notes, dict):
            return {k: v for k, v in notes.items() if isinstance(v, str)}
    return {}
