"""Parts of files in a folder or at an address, each by one read; a cut connection is tried again.

Files of this machine are read as they are. Addresses are read by fsspec, and need the package of
their protocol. Any thread may read.
"""

import threading
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ganlab.errors import GanlabError, first_line, printable
from ganlab.images.files import ImageError

_NEEDS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}
_EXTRAS = {"aiohttp": "ganlab[shards]", "s3fs": "ganlab[s3]"}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
PAUSE = 0.5  # seconds before the second attempt; twice as many before each later one
_BUSY = (408, 425, 429)  # and 500 and above: worth another attempt
_NO_RANGES = "sends whole files only, not the part that was asked for; use another server"


class Refused(GanlabError):  # noqa: N818  # it names an outcome
    """An address that cannot be used here: its protocol, or a package that is missing."""

    exit_code = 2


class _NoRanges(Exception):  # noqa: N818  # it names an outcome
    """The server does not answer with the range that was asked for."""


def is_address(place: Path | str) -> bool:
    """Whether a place is an address, such as `https://host/folder`, not a folder."""
    return isinstance(place, str) and "://" in place


class Ranges:
    """The files of one folder or address, read in parts.

    :param place: a folder, or an address of the protocols https, s3, or http on this machine.
    :param patience: seconds after which an answer that is not whole counts as cut.
    :param attempts: how often a read is tried before it is an error.
    """

    def __init__(self, place: Path | str, patience: float = 60, attempts: int = 5) -> None:
        self.place = place if isinstance(place, Path) else place.rstrip("/")
        self.patience, self.attempts = patience, attempts
        self.reads = self.cuts = 0
        """How many reads were begun, and how many of them were cut."""
        self._closed = threading.Event()
        self._lock = threading.Lock()
        if isinstance(self.place, str):
            _require_usable(self.place)

    def name_of(self, name: str) -> str:
        """A file of the place, as messages call it."""
        return printable(f"{self.place}/{name}")

    def read(self, name: str, start: int, size: int) -> bytes:
        """Exactly `size` bytes of a file, from byte `start` on.

        :raises ImageError: when they cannot be read, or the file ends before.
        """
        found = self._tried(name, start, size, whole=False)
        if len(found) != size:
            raise ImageError(
                f"{self.name_of(name)}: has {len(found):,} of the {size:,} bytes from byte "
                f"{start:,} on; the file is not the one that the index describes: copy it anew, "
                "or make the index again"
            )
        return found

    def whole(self, name: str, most: int) -> bytes:
        """A whole file, of at most `most` bytes.

        :raises ImageError: when it cannot be read, or is larger.
        """
        found = self._tried(name, 0, most + 1, whole=True)
        if len(found) > most:
            raise ImageError(f"{self.name_of(name)}: is larger than {most:,} bytes")
        return found

    def close(self) -> None:
        """End the attempts that wait for their turn."""
        self._closed.set()

    def _tried(self, name: str, start: int, size: int, whole: bool) -> bytes:
        with self._lock:
            self.reads += 1
        if isinstance(self.place, Path):
            return self._from_disk(self.place / name, start, size)
        url = f"{self.place}/{quote(name) if self.place.startswith('http') else name}"
        for attempt in range(1, self.attempts + 1):
            found, fault = self._attempt(url, start, size, whole)
            if not fault:
                return found
            with self._lock:
                self.cuts += 1
            # at the end of a process nobody waits for the answer any more
            if not threading.main_thread().is_alive() or self._closed.is_set():
                break
            if attempt < self.attempts:
                self._closed.wait(PAUSE * 2 ** (attempt - 1))
        raise ImageError(
            f"{self.name_of(name)}: {fault}, {attempt} times in a row; is the server up, and "
            "quick enough? A run goes on from its newest checkpoint with `ganlab resume`"
        )

    def _from_disk(self, file: Path, start: int, size: int) -> bytes:
        try:
            with file.open("rb", buffering=0) as stream:
                stream.seek(start)
                parts = []
                while size and (part := stream.read(size)):
                    parts.append(part)
                    size -= len(part)
                return b"".join(parts)
        except OSError as error:
            raise ImageError(
                f"{printable(str(file))}: cannot be read ({error.strerror or error})"
            ) from None

    def _attempt(self, url: str, start: int, size: int, whole: bool) -> tuple[bytes, str]:
        """What was fetched; or in words why another attempt is worth it.

        :raises ImageError: when it is not.
        """
        try:
            return self._fetched(url, start, size, whole), ""
        except FileNotFoundError:
            raise ImageError(f"{printable(url)}: no such file") from None
        except PermissionError as error:
            raise ImageError(f"{self.place}: access is refused ({first_line(error)})") from None
        except _NoRanges:
            raise ImageError(f"{self.place}: the server {_NO_RANGES}") from None
        except TimeoutError:  # asyncio's is the same
            return b"", f"no whole answer within {self.patience:g} seconds"
        except Exception as error:  # of aiohttp or botocore, which are not imported here
            status = getattr(error, "status", None)
            if isinstance(status, int) and 400 <= status < 500 and status not in _BUSY:
                raise ImageError(f"{printable(url)}: the server answers {status}") from None
            cut = f"the connection was cut ({type(error).__name__}: {first_line(error)})"
            return b"", f"the server answers {status}" if status else cut

    def _fetched(self, url: str, start: int, size: int, whole: bool) -> bytes:
        found: bytes = self._system.cat_file(url, start=start, end=start + size)
        if len(found) < size and not whole:
            raise ConnectionError(f"{len(found):,} of {size:,} bytes came")
        return found

    @property
    def _system(self) -> Any:
        with self._lock:
            return self._opened

    @cached_property
    def _opened(self) -> Any:
        import fsspec

        protocol = urlsplit(str(self.place)).scheme
        if protocol == "s3":
            return fsspec.filesystem(protocol)
        import aiohttp

        return fsspec.filesystem(
            protocol,
            skip_instance_cache=True,
            headers={"Accept-Encoding": "identity"},
            client_kwargs={
                "timeout": aiohttp.ClientTimeout(total=self.patience),
                "raise_for_status": _require_part,
                "trust_env": True,  # a proxy
            },
        )


async def _require_part(response: Any) -> None:
    """Refuse a whole file before its content comes: a shard has some hundred megabytes."""
    asked = response.request_info.headers.get("Range", "")
    first, _, last = asked.removeprefix("bytes=").partition("-")
    length = response.content_length
    if response.status == 200 and asked:
        if first != "0" or length is None or length > int(last) + 1:
            raise _NoRanges
    elif response.status == 206 and length and length > int(last) - int(first) + 1:
        raise _NoRanges


def _require_usable(place: str) -> None:
    parts = urlsplit(place)
    shown = printable(place)
    if parts.scheme not in _NEEDS:
        known = ", ".join(sorted(_NEEDS))
        raise Refused(f"{shown}: reads folders and {known}, not {printable(parts.scheme)}")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise Refused(f"{shown}: http is allowed on this machine only; use https")
    package = _NEEDS[parts.scheme]
    if find_spec(package) is None:
        raise Refused(f"{shown}: needs the package {package}: pip install '{_EXTRAS[package]}'")
