"""A web server on this machine for the tests of downloads, with faults made on purpose."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class Site:
    """What the server answers, and what it was asked."""

    content: bytes = b""
    ranges: bool = True
    """Whether it sends a part of the file when asked for it."""
    mark: str | None = '"one"'
    """The ETag."""
    states_length: bool = True
    compressed: bool = False
    shift: int = 0
    """By how many bytes the part that it sends is wrong."""
    cuts: list[int] = field(default_factory=list)
    """For each request in turn: after how many bytes the connection is cut."""
    statuses: list[int] = field(default_factory=list)
    """For each request in turn: the status of a refusal; 0 for none."""
    leads_to: str = ""
    """Where the path /moved leads."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request, and its "path"."""
    sent: list[int] = field(default_factory=list)
    """The bytes of each answer."""
    address: str = ""


@dataclass
class Folder:
    """A folder that the server shows, and how it fails."""

    root: Path
    faults: Callable[[int], str] = lambda number: ""
    """For each request by its number: "" | "cut" | "slow" | "reset" | a status as digits."""
    ranges: bool = True
    slow_seconds: float = 0.5
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request."""
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self, path: str, part: str) -> int:
        with self._lock:
            self.asked.append((path, part))
            return len(self.asked) - 1


@contextmanager
def showing(folder: Folder) -> Iterator[Folder]:
    """Context in which the files of a folder can be read at `folder.address`, in parts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            fault = folder.faults(folder.number(self.path, asked))
            file = folder.root / unquote(self.path).lstrip("/")
            if fault.isdigit() or not file.is_file():
                self.send_error(int(fault or 404))
                return
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked) if folder.ranges else None
            total = file.stat().st_size
            first, last = (
                (int(found[1]), min(int(found[2]), total - 1)) if found else (0, total - 1)
            )
            with file.open("rb") as stream:
                stream.seek(first)
                body = stream.read(last + 1 - first)
            if fault == "slow":
                time.sleep(folder.slow_seconds)
            if fault == "reset":
                return
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(len(body)))
            if found:
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.end_headers()
            with suppress(OSError):  # who waited too long has gone
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with answering(Handler) as folder.address:
        yield folder


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Context in which a server answers by `handler`; yields its address, without a "/" last."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Context in which the site answers at `site.address`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, *arguments: Any) -> None:
            pass

    with answering(Handler) as site.address:
        yield site


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    site.asked.append(dict(handler.headers.items()) | {"path": handler.path})
    if status := site.statuses.pop(0) if site.statuses else 0:
        handler.send_error(status)
        return
    if handler.path.startswith("/moved"):
        handler.send_response(302)
        handler.send_header("Location", site.leads_to)
        handler.end_headers()
        return
    begin, total = asked_for(handler, site), len(site.content)
    if begin > 0 and begin >= total:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{total}")
        handler.end_headers()
        handler.wfile.write(b"<html>no such part</html>")
        return
    body = site.content[begin:]
    handler.send_response(206 if begin else 200)
    if begin:
        begin += site.shift
        handler.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
    if site.states_length:
        handler.send_header("Content-Length", str(len(body)))
    if site.mark:
        handler.send_header("ETag", site.mark)
    if site.compressed:
        handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    body = body[: site.cuts.pop(0)] if site.cuts else body
    site.sent.append(len(body))
    handler.wfile.write(body)  # the connection is closed after it


def asked_for(handler: BaseHTTPRequestHandler, site: Site) -> int:
    """The first byte that is to be sent."""
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    if not (site.ranges and found) or (condition and condition != site.mark):
        return 0
    return int(found[1])
