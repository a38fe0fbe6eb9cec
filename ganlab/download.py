"""One published file from its address to the disk: whole and checked, or not there.

`ganlab data fetch` and `ganlab weights fetch` are the only commands that use it. Beside it only
`ganlab hub` and shards at an address open a connection. What has arrived lies in NAME.part beside
the file's place. After a cut, a later fetch asks the server for the rest alone.
"""

import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ganlab import __version__
from ganlab.disk import append_whole, size, telling_disk
from ganlab.errors import GanlabError, first_line, printable
from ganlab.files import sha256_of_file, write_json
from ganlab.published import PublishedFile
from ganlab.system import sync_folder

_BLOCK = 2**20  # bytes
_PATIENCE = 60.0  # seconds without a byte, after which a connection counts as cut
_ATTEMPTS = 5  # in a row without a new byte
_BUSY = (408, 429, 500, 502, 503, 504)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Cut(Exception):  # noqa: N818  # it names an outcome
    """The connection ended too early, or the server was busy: worth another attempt."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who hears of a download."""

    tell: Callable[[str], None]
    """Gets a sentence for the user."""
    progress: Callable[[int, int], None]
    """Gets the bytes that are here, and those of the whole file."""
    pause: Callable[[float], None] = time.sleep
    """Waits a number of seconds before another attempt."""


def download(file: PublishedFile, target: Path, watcher: Watcher, copies: int = 1) -> str:
    """Fetch a file, and check its size and digest; returns its sha256.

    :param copies: how often the disk must hold it: twice, when it is unpacked beside itself.
    :raises GanlabError: naming the address, what went wrong and what to do. What has arrived stays,
        unless it is not the file that was asked for.
    """
    _check_address(file.source)
    with telling_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _alone(part):
        transfer = _Transfer(file, part, watcher, copies)
        transfer.run()
        with telling_disk(part):
            found = sha256_of_file(part)
        if not found.startswith(file.sha256.lower()):
            transfer.forget()
            raise GanlabError(
                f"{file.source}: what came is not the expected file: its sha256 is {found}, and "
                f"should be {file.sha256} (from {file.sha256_from}); it was removed. Fetch it "
                "again: if it has the same sha256 then, the file at this address has changed"
            )
        with telling_disk(target):
            transfer.finish(target)
    return found


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Context in which no other process fetches the same file."""
    lock = FileLock(part.with_name(f"{part.name}.lock"))
    with telling_disk(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise GanlabError(
                f"{part}: another ganlab is fetching this file; wait for it"
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            Path(lock.lock_file).unlink()
        lock.release()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the server says of the bytes that follow."""

    response: Any
    begin: int
    """The place in the file of the first byte that follows."""
    total: int
    """Bytes of the whole file; 0 when the server does not say."""
    version: str = ""
    """The server's mark for this version of the file; "" when it has none."""


@dataclass(frozen=True, slots=True)
class _Transfer:
    """Brings NAME.part to its whole length."""

    file: PublishedFile
    part: Path
    watcher: Watcher
    copies: int

    @property
    def have(self) -> int:
        """Bytes that are here."""
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def memo(self) -> Path:
        """The file that says of which version of which file a part is here."""
        return self.part.with_name(f"{self.part.name}.json")

    def run(self) -> None:
        """Try until the file is here, as long as some attempt in five brings new bytes."""
        failures = 0
        while True:
            before = self.have
            try:
                with self._errors_told():
                    return self._attempt()
            except _Cut as cut:
                failures = 1 if self.have > before else failures + 1
                if failures == _ATTEMPTS:
                    raise self._refused(
                        f"{cut}, {_ATTEMPTS} times in a row; {size(self.have)} are here. The same "
                        "command goes on from there"
                    ) from None
                self.watcher.tell(f"{cut}; {size(self.have)} are here; trying again")
            self.watcher.pause(2.0 ** (failures - 1))

    def _attempt(self) -> None:
        answer = self._ask()
        with answer.response:
            self._check_size(answer)
            if self.have != answer.begin:
                self.watcher.tell(
                    "the server does not continue a file, or has another version; from the start"
                )
                self.forget()
            self._begin(answer)
            self._take(answer)

    def _ask(self) -> _Answer:
        """The server's answer to a request for what is not here yet."""
        have, version = self.have, self._version()
        if have and not (version or self.file.sha256):
            have = 0  # the rest might be that of another version
        headers = {"User-Agent": f"ganlab/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": version} if version else {}
        request = urllib.request.Request(self.file.source, headers=headers)
        opener = urllib.request.build_opener(_Redirects(self.file, self.watcher))
        try:
            response = opener.open(request, timeout=_PATIENCE)
        except HTTPError as error:
            if error.code == 416 and _content_range(error.headers) == (-1, have):
                return _Answer(error, have, have, version)  # nothing is lacking
            raise
        return self._understood(response, have)

    def _understood(self, response: Any, have: int) -> _Answer:
        headers = response.headers
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self._refused("the server sends the file compressed, unasked")
        mark = headers.get("ETag", "")
        if not mark or mark.startswith("W/"):  # a weak mark is no promise of equal bytes
            mark = headers.get("Last-Modified", "")
        if response.status != 206:
            return _Answer(response, 0, _number(headers.get("Content-Length", "")), mark)
        begin, total = _content_range(headers)
        if begin != have or not total:
            self.forget()
            raise _Cut("the server sent another part of the file than the one asked for")
        return _Answer(response, begin, total, mark)

    def _begin(self, answer: _Answer) -> None:
        """Refuse to begin what the disk cannot hold; note the version of what will come."""
        needed = self.copies * (answer.total or self.file.size) - answer.begin
        with telling_disk(self.part):
            free = shutil.disk_usage(self.part.parent).free
            if needed > free:
                raise GanlabError(
                    f"{self.part.parent}: {size(needed)} needed, {size(free)} free; make room "
                    "there, or choose a folder on another disk"
                )
            write_json(self.memo, {"source": self.file.source, "version": answer.version})

    def _take(self, answer: _Answer) -> None:
        """Append what comes to the part."""
        have, total = answer.begin, answer.total or self.file.size
        most = answer.total or self.file.largest
        if answer.total and have == answer.total:
            return  # what follows is the text of the server's refusal
        self.watcher.progress(have, total)
        while block := answer.response.read(_BLOCK):
            have += len(block)
            if have > most:
                self.forget()
                raise self._refused(f"the server sends more than {most:,} bytes; nothing was kept")
            append_whole(self.part, block)
            self.watcher.progress(have, total)
        if have < answer.total or not self.file.has_size(have):
            raise _Cut("the connection was cut")

    def _check_size(self, answer: _Answer) -> None:
        if not (answer.total or self.file.size):
            raise self._refused(
                "neither the server nor its publisher says how large the file is, so a cut could "
                "not be told; nothing was fetched"
            )
        if answer.total and not self.file.has_size(answer.total):
            about = "about " if self.file.is_rounded else ""
            raise self._refused(
                f"the server offers {answer.total:,} bytes, and the file has {about}"
                f"{self.file.size:,}: it is not the expected file; nothing was fetched"
            )

    def _version(self) -> str:
        """The server's mark for the version of which a part is here; "" when it is not known."""
        with suppress(OSError, ValueError):
            memo = json.loads(self.memo.read_bytes())
            if isinstance(memo, dict) and memo.get("source") == self.file.source:
                mark = memo.get("version")
                return mark if isinstance(mark, str) and mark.isprintable() else ""
        return ""

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Context of a connection; what goes wrong becomes a message, or a `_Cut`."""
        try:
            yield
        except HTTPError as error:
            answers = f"the server answers {error.code} {printable(str(error.reason))}"
            error.close()
            if error.code == 416:  # the part is longer than the file
                self.forget()
            if error.code in (416, *_BUSY):
                raise _Cut(answers) from None
            raise self._refused(
                f"{answers}; the file may have moved: look on the page of its publisher"
            ) from None
        except URLError as error:
            reason = error.reason if isinstance(error.reason, OSError) else error
            if isinstance(reason, ConnectionResetError | TimeoutError):
                raise _Cut("the connection was cut") from None
            raise self._refused(f"no connection: {first_line(reason)}; {_hint(reason)}") from None
        except (HTTPException, ConnectionError, SSLError, TimeoutError):
            raise _Cut("the connection was cut") from None

    def _refused(self, fault: str) -> GanlabError:
        return GanlabError(f"{self.file.source}: {fault}")

    def forget(self) -> None:
        """Remove what is here."""
        for path in (self.part, self.memo):
            with telling_disk(path):
                path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the whole file its name."""
        with self.part.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.part.replace(target)
        sync_folder(target.parent)
        self.memo.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the file may come from, and tells another host."""

    def __init__(self, file: PublishedFile, watcher: Watcher) -> None:
        self.file, self.watcher = file, watcher

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        begins = f"{self.file.source}: the server leads to"
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        host = printable(after.hostname or "")
        if before.scheme == "https" != after.scheme:
            raise GanlabError(f"{begins} an address that is not https, on {host}; nothing came")
        _check_address(newurl)
        if after.hostname != before.hostname:
            if not (self.file.sha256 or self.file.may_come_from(host)):
                raise GanlabError(
                    f"{begins} another host, {host}, and no digest of the file is known; nothing "
                    "was fetched"
                )
            self.watcher.tell(f"the server leads to another host, {host}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _content_range(headers: Any) -> tuple[int, int]:
    """First byte and total of `bytes 5-9/10`; -1 and 0 for what it does not say."""
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    return (_number(span.partition("-")[0], -1), _number(total)) if unit == "bytes" else (-1, 0)


def _number(text: str, otherwise: int = 0) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else otherwise


def _check_address(address: str) -> None:
    """Refuse an address that is neither https nor on this machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    shown = printable(address.partition("?")[0])
    raise GanlabError(f"{shown}: only https is allowed; nothing was fetched")


def _hint(reason: BaseException) -> str:
    if isinstance(reason, SSLError):
        return "its certificate is not accepted, so nothing was fetched"
    return (
        "is this machine connected? A proxy is taken from the variable https_proxy. The same "
        "command goes on where this one ended"
    )
