"""Errors of the disk as one message: the file, the bytes needed and free, and what helps."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ganlab.errors import GanlabError
from ganlab.files import append

_ROOM = {
    number
    for name in ("ENOSPC", "EDQUOT", "EFBIG")
    if (number := getattr(errno, name, None)) is not None
}
_REMEDIES = {
    errno.ENOSPC: "make room there",
    getattr(errno, "EDQUOT", None): "your quota is used up: remove files of yours",
    errno.EFBIG: "files may not be that large here (see `ulimit -f`)",
    errno.EROFS: "the disk allows no writing: mount it anew",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
    errno.EIO: "the disk or its connection fails: see the log of the system",
    errno.ENOENT: "the folder is gone: put it back",
}


class NotWritten(GanlabError, OSError):  # noqa: N818  # it names an outcome
    """A file could not be written; exit code 1. An older one of its name is still there."""


@contextmanager
def telling_disk(path: Path, needed: int = 0) -> Iterator[None]:
    """Context of writing a file, in which an error of the disk becomes one message.

    :param needed: bytes that the file takes, as far as they are known.
    :raises NotWritten: instead of another OSError.
    """
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        raise NotWritten(_words(path, error, needed)) from error


def append_whole(path: Path, content: bytes) -> None:
    """Append bytes to a file, all of them or none.

    :raises NotWritten: when they could not be written; the file is then as before.
    """
    with telling_disk(path, len(content)), append(path) as file:
        number = file.fileno()
        before, left = os.fstat(number).st_size, memoryview(content)
        try:
            while left:  # a buffer would be written after all when the file is closed
                left = left[os.write(number, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(number, before)
            raise


def _words(path: Path, error: OSError, needed: int) -> str:
    told = f"{path}: could not be written: {error.strerror or error}"
    if error.errno in _ROOM:
        need = f"{size(needed)} needed, " if needed else ""
        with suppress(OSError):
            told += f"; {need}{size(shutil.disk_usage(path.parent).free)} free in {path.parent}"
    remedy = _REMEDIES.get(error.errno)
    return f"{told}; {remedy}" if remedy else told


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count:,} bytes"
