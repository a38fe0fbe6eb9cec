"""Images on their way into shards: read whole, taken or left out, and told."""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rich.progress import track

from ganlab.commands.many import tell
from ganlab.disk import size
from ganlab.errors import GanlabError, printable
from ganlab.images.files import SUFFIXES, ImageError, read_image
from ganlab.images.ranges import Ranges
from ganlab.images.shards import (
    Row,
    ShardIndex,
)
from ganlab.images.source import ImageBytes
from ganlab.terminal import Terminal

READERS = min(os.cpu_count() or 1, 16)
_SHOWN = 20  # faults in one message


@dataclass(frozen=True, slots=True)
class Packing:
    """How shards are made."""

    shard_bytes: int = 128 * 2**20
    """Largest size of a shard; one with a single image may be larger."""
    min_side: int = 1
    """Images with a shorter side are left out."""
    skip_broken: bool = False
    """Leave out what cannot be read; else that is an error."""

    @property
    def told(self) -> str:
        return f"--shard-size {self.shard_bytes // 2**20} --min-side {self.min_side}"


class Examined(NamedTuple):
    """An image file that was read whole."""

    name: str
    content: bytes
    width: int = 0
    height: int = 0
    fault: str = ""
    remark: str = ""

    def row(self, offset: int) -> Row:
        digest = hashlib.sha256(self.content).digest()
        return Row(self.name, offset, len(self.content), self.width, self.height, digest)


@dataclass(slots=True)
class LeftOut:
    """What goes into no shard, and what must be told of the rest."""

    packing: Packing
    faults: dict[str, str] = field(default_factory=dict)
    small: list[str] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)

    def sound(self, found: Iterable[Examined]) -> Iterator[Examined]:
        """Those that go into a shard."""
        for one in found:
            if self.takes(one):
                yield one

    def takes(self, one: Examined) -> bool:
        if one.fault:
            self.faults[one.name] = one.fault
        elif min(one.width, one.height) < self.packing.min_side:
            self.small.append(one.name)
        else:
            self.remarks |= {one.name: one.remark} if one.remark else {}
            return True
        return False

    def told(self) -> Iterator[str]:
        """Lines for the user.

        :raises GanlabError: when something cannot be read, and may not be left out.
        """
        faults = [f"{printable(name)}: {fault}" for name, fault in sorted(self.faults.items())]
        if faults and not self.packing.skip_broken:
            more = f"\n  and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
            raise GanlabError(
                "\n  ".join([f"{some_images(len(faults))} cannot be read:", *faults[:_SHOWN]])
                + f"{more}\nmend or remove them, or leave them out with --skip-broken"
            )
        tell(self.remarks)
        yield from (f"left out: {fault}" for fault in faults)
        if self.small:
            yield (
                f"left out: {some_images(len(self.small))} with a side shorter than "
                f"{self.packing.min_side} pixels ({printable(min(self.small))})"
            )


def examined(name: str, content: bytes) -> Examined:
    remarks: list[str] = []
    try:
        image = read_image(ImageBytes(name, content), remarks=remarks)
    except ImageError as error:
        return Examined(name, b"", fault=str(error).removeprefix(f"{name}: "))
    _, height, width = image.shape
    return Examined(name, content, width, height, remark="; ".join(remarks))


def made(folder: Path) -> str:
    index = ShardIndex.open(Ranges(folder))
    return f"{folder}: {counts(index)}"


def counts(index: ShardIndex) -> str:
    shards = f"{len(index.names):,} shard{'' if len(index.names) == 1 else 's'}"
    return f"{some_images(len(index))} in {shards}, {size(index.num_bytes)}"


def some_images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def shown(found: Iterable[Examined], number: int) -> Iterable[Examined]:
    console = Terminal(stderr=True)
    quiet = not console.is_terminal
    return track(found, "reading images", number, console=console, disable=quiet)


def members_of(shard: Path, others: dict[str, int] | None = None) -> list[tarfile.TarInfo]:
    """The images of a shard, by their heads alone; `others` gets the counts of what is none."""
    found = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in SUFFIXES and member.isreg() and not member.issparse():
                    found.append(member)
                elif others is not None and not member.isdir():
                    kind = suffix or "without suffix"
                    others[kind] = others.get(kind, 0) + 1
    except (tarfile.TarError, OSError, ValueError) as error:
        raise GanlabError(
            f"{shard}: cannot be read as a tar file ({error}); copy or make it anew. A compressed "
            "one must be unpacked, since no part of it can be read alone"
        ) from None
    return found
