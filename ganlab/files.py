"""Files are written whole or not at all, and never through a link.

Each is written under a temporary name beside its place, synced to the disk, and then renamed. The
temporary name is random and short: nobody can foretell it, and it fits where the file's own name
does. It also says which process made it, so that what a killed process left can be removed.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from ganlab.system import is_running, sync_folder

MANIFEST = "SHA256SUMS"
"""The name of a file of digests in a folder of images: `ganlab data verify` compares with it."""

_TEMPORARY = re.compile(r"\.ganlab-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")
_mine: set[str] = set()
"""The temporary names in use by this process."""


@contextmanager
def whole(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Context with an open file, which becomes `path` at the end, if no error has occurred.

    A file that is there already is replaced, and a link is replaced too, not followed. At an error
    the older file is kept.

    :param mode: "wb", or "w" for text in UTF-8.
    :raises OSError: with its errno, such as that of a full disk.
    """
    name = _temporary_name()
    temporary = path.with_name(name)
    _mine.add(name)
    try:
        with temporary.open(mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        _mine.discard(name)


@contextmanager
def whole_by_name(path: Path) -> Iterator[Path]:
    """Context with the name of a file that another program writes; as `whole` otherwise.

    It has the suffix of `path`. What the program leaves is removed at an error.
    """
    with new_folder(path.parent) as folder:
        part = folder / f"part{path.suffix}"
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    sync_folder(path.parent)


def append(path: Path) -> BinaryIO:
    """Open a file that grows in place, for reading too; one that is absent is made.

    :raises OSError: for a link, for a file that has another name too (a hard link), and for what is
        no regular file: who made it could have other files changed.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # not on every system
        flags |= getattr(os, name, 0)
    if path.is_symlink():  # said in words; the flags refuse one that appears after this line
        raise OSError(errno.ELOOP, "it is a link", str(path))
    number = os.open(path, flags, 0o666)
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(number)
        what = "a hard link" if stat.S_ISREG(found.st_mode) else "not a regular file"
        raise OSError(errno.EMLINK, f"it is {what}", str(path))
    return os.fdopen(number, "r+b")


@contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """Context with a new folder under a temporary name, for `claim`; removed if still there."""
    temporary = parent / _temporary_name()
    _mine.add(temporary.name)
    try:
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _mine.discard(temporary.name)


def claim(folder: Path, target: Path) -> None:
    """Give a folder that is not empty its name. If several processes try one name, one gets it.

    :raises FileExistsError: when the name is taken.
    """
    if os.path.lexists(target):
        raise FileExistsError(target)
    for inner, _, _ in os.walk(folder):
        sync_folder(Path(inner))
    try:
        folder.rename(target)
    except OSError:  # which one depends on the system
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        raise
    sync_folder(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `whole` does."""
    with whole(path, "w") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as `whole` does. A number that is not finite becomes null."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def sha256(content: bytes | str) -> str:
    """The sha256 of bytes, or of a text in UTF-8, in hexadecimal digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_file(file: Path) -> str:
    """The sha256 of a file. It is read in pieces: VGG19 is half a gigabyte."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """A value for JSON, with None in the place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_stale(folder: Path) -> list[Path]:
    """Remove the temporary files and folders in a folder whose process is gone, and return them.

    Those of other machines are left, since nobody here knows about their processes.
    """
    gone = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if not found or found[1] != _here() or path.name in _mine:
                continue
            number = int(found[2])
            if number == os.getpid() or not is_running(number):
                with suppress(OSError):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    gone.append(path)
    return gone


def _temporary_name() -> str:
    return f".ganlab-{_here()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


@cache
def _here() -> str:
    """Eight digits for this machine and, in containers, this space of process numbers."""
    space = ""
    with suppress(OSError):  # Linux
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    return sha256(f"{socket.gethostname()} {space}")[:8]
