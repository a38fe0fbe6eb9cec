"""`ganlab data verify`: reads every image of a folder, and compares it with a list of digests."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from ganlab.commands.many import beside, listed
from ganlab.errors import GanlabError
from ganlab.files import MANIFEST, sha256_of_file, whole
from ganlab.images.files import ImageError, read_image
from ganlab.images.store import image_digest
from ganlab.terminal import Terminal

# as sha256sum writes it: a backslash in front when the name has escapes
_LINE = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)")
_LONGEST_LINE = 2**16  # bytes
_READERS = min(os.cpu_count() or 1, 16)


@dataclass(slots=True)
class Verified:
    """What was found in a folder. Names are those below the folder."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)
    """Name -> sha256 of the file."""
    faults: dict[str, str] = field(default_factory=dict)
    """Name -> what is wrong with it."""
    twins: list[tuple[str, str]] = field(default_factory=list)
    """Images whose pixels are also those of an earlier image, and that image."""
    written: Path | None = None
    """The file of digests, if it was written now."""
    known: dict[str, str] | None = None
    """What the list of digests says; None without one."""

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "images": len(self.digests),
            "manifest": self.known is not None,
            "faults": self.faults,
            "duplicates": self.twins,
        }


def verify_folder(folder: Path, manifest: Path | None = None, write: bool = False) -> Verified:
    """Read every image of a folder whole; find the faults of all of them.

    A file of digests, `SHA256SUMS` in the folder or `manifest`, tells which images have changed,
    are missing or are new. `sha256sum -c SHA256SUMS` checks it too. A few images are in memory at a
    time, and of the others their names and digests.

    :param write: write the file of digests from what is there now. It is not compared then.
    :raises GanlabError: when the folder holds no image, or the file of digests cannot be read or
        written.
    """
    file = manifest or folder / MANIFEST
    found = Verified(folder)
    files = listed(folder)
    if not write and (manifest or file.exists()):
        found.known = dict(_lines(file))
    console = Terminal(stderr=True)
    read = beside(lambda path: (path, *_examined(path)), files, 2 * _READERS)
    seen: dict[str, str] = {}
    for path, digest, pixels, fault in track(
        read, "reading images", len(files), console=console, disable=not console.is_terminal
    ):
        name = path.relative_to(folder).as_posix()
        found.digests[name] = digest
        if fault:
            found.faults[name] = fault
        elif (first := seen.setdefault(pixels, name)) != name:
            found.twins.append((name, first))
    _compare(found)
    if write:
        _write(file, found.digests)
        found.written = file
    return found


def lines(found: Verified) -> Iterator[str]:
    """What was found, in lines for the user."""
    for name, fault in found.faults.items():
        yield f"{found.folder / name}: {fault}"
    for name, first in found.twins:
        yield f"note: {found.folder / name}: its pixels are those of {first}"
    number = f"{len(found.digests):,} image{'' if len(found.digests) == 1 else 's'}"
    if found.faults:
        yield f"{number}, {len(found.faults):,} with a fault"
    elif found.known is None:
        yield f"{number} read whole, no fault"
    else:
        yield f"{number} read whole and as the digests say"
    if found.written:
        yield f"digests written to {found.written}"


def _examined(path: Path) -> tuple[str, str, str]:
    """The sha256 of a file, the digest of its pixels, and its fault."""
    try:
        image = read_image(path)  # first: it refuses what is no file, such as a pipe
        return sha256_of_file(path), image_digest(image), ""
    except ImageError as error:
        fault = str(error).removeprefix(f"{path}: ")
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    try:
        return sha256_of_file(path), "", fault
    except OSError:
        return "", "", fault


def _compare(found: Verified) -> None:
    """Add to the faults what differs from the list of digests."""
    if found.known is None:
        return
    for name, digest in found.known.items():
        if name not in found.digests:
            found.faults[name] = "is missing"
        elif digest != found.digests[name] and name not in found.faults:
            found.faults[name] = "has changed since its digest was written"
    for name in found.digests.keys() - found.known.keys() - found.faults.keys():
        found.faults[name] = "is new: the digests do not list it"


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Name and sha256 of each line of a file of digests."""
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(_LONGEST_LINE):
                number += 1
                text = line.rstrip(b"\r\n")
                if not text or text.startswith(b"#"):
                    continue
                if not (parts := _LINE.fullmatch(text)):
                    raise GanlabError(
                        f"{file}, line {number}: not a sha256 and a name; mend the line, or write "
                        "the file anew with --write"
                    )
                name = _unescaped(parts[3]) if parts[1] else parts[3]
                yield os.fsdecode(name.removeprefix(b"./")), parts[2].decode()
    except OSError as fault:
        raise GanlabError(f"{file}: cannot be read ({fault.strerror or fault})") from None


def _write(file: Path, digests: dict[str, str]) -> None:
    try:
        with whole(file) as stream:
            for name, digest in digests.items():
                raw = os.fsencode(name)
                escaped = _escaped(raw)
                mark = b"\\" if escaped != raw else b""
                stream.write(mark + digest.encode() + b"  " + escaped + b"\n")
    except OSError as fault:
        raise GanlabError(
            f"{file}: cannot be written ({fault.strerror or fault}); give another place with "
            "--manifest"
        ) from None


def _escaped(name: bytes) -> bytes:
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")


def _unescaped(name: bytes) -> bytes:
    codes = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
    return re.sub(rb"\\.", lambda found: codes.get(found[0], found[0]), name)
