"""stdout and stderr that survive their reader: a closed terminal, `| head`, a full disk."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ganlab.errors import visible

_READER_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)


class Lasting:
    """A text stream that drops its text from the first error on, instead of raising it.

    What a terminal obeys is escaped: a message may quote a stranger.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.obeyed = _Obeyed(self)
        self.fault: OSError | None = None
        """The error. None also where the reader is gone: then nobody misses the text."""

    def write(self, text: str) -> int:
        return self.pass_on(visible(text))

    def pass_on(self, text: str) -> int:
        """Write a text as it is: what a terminal obeys in it is ours."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fall_silent(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        if error.errno not in _READER_GONE:
            self.fault = self.fault or error
        # what is still buffered goes there too, else Python ends with exit code 120
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Obeyed:
    """The same stream for the colours of a table, which a terminal shall obey."""

    def __init__(self, stream: Lasting) -> None:
        self._lasting, self.write = stream, stream.pass_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lasting, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Context in which an error of stdout or stderr ends no command.

    Text that is lost on stderr is only progress; the log of a run has it too. When text is lost on
    stdout for another reason than a missing reader, `lost_output` says so.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_lasting(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def lost_output() -> str:
    """A sentence when results were lost on stdout, such as on a full disk; else ""."""
    if sys.stdout is not None:
        sys.stdout.flush()
    fault = getattr(sys.stdout, "fault", None)
    return f"stdout: the results could not be written: {fault.strerror or fault}" if fault else ""


def _lasting(stream: Any) -> Any:
    return stream if stream is None or isinstance(stream, Lasting) else Lasting(stream)


def _open_closed() -> None:
    """Open what the caller closed of stdin, stdout and stderr (`2>&-`), but for nothing.

    Otherwise the next file to be opened has that number, and gets the messages of C libraries.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
