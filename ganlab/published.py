"""What others publish and ganlab can fetch: files of weights and sets of images, as facts.

A plugin declares the files of weights that it reads (`Plugin.published`). An installed distribution
declares sets of images in the entry-point group `ganlab.data`, a `DataSet` each. Nothing here opens
a connection: of what is declared, only `ganlab data fetch` and `ganlab weights fetch` do.
"""

import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ganlab.registry import entry_points

GROUP = "ganlab.data"
DATA = "data"
"""The folder, below the current one, into which data sets are fetched."""


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file that somebody publishes, and how it is recognised."""

    name: str
    """What users type to fetch it, such as "vgg19"."""
    source: str
    """Its https address."""
    licence: str
    """The terms of its publisher, in a few words."""
    size: int = 0
    """Bytes; 0 when nobody states them."""
    is_rounded: bool = False
    """Whether `size` is rounded to three digits, as web pages show it."""
    sha256: str = ""
    """Its digest, 64 hexadecimal digits; "" when nobody states it."""
    sha256_from: str = "its publisher"
    """Who states the digest."""
    hosts: tuple[str, ...] = ()
    """Other hosts that the source may lead to when no digest is known. A name stands for the hosts
    below it too: "hf.co" for "cdn.hf.co"."""

    @property
    def file_name(self) -> str:
        """The last part of the source."""
        return self.source.rpartition("/")[2]

    @property
    def largest(self) -> int:
        """The most bytes that agree with the stated size."""
        return self.size + self.size // 100 * self.is_rounded

    def has_size(self, found: int) -> bool:
        """Whether a number of bytes agrees with the size that is stated, if one is."""
        return not self.size or abs(found - self.size) <= self.largest - self.size

    def may_come_from(self, host: str) -> bool:
        """Whether the source may lead to this host also when no digest is known."""
        return any(f".{host}".endswith(f".{name}") for name in self.hosts)


@dataclass(frozen=True, slots=True)
class Archive:
    """A published archive, zip or tar, and the folder of images that is taken out of it."""

    file: PublishedFile
    inside: str
    """The folder in the archive, such as "Flickr2K/Flickr2K_HR"; all else in it is left out."""
    folder: str
    """The name of the folder that is made."""
    num_images: int


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set of images that somebody publishes."""

    name: str
    about: str
    """What it is, and who made it: the paper."""
    page: str
    """The page of its publisher, for people."""
    archives: tuple[Archive, ...]

    @property
    def size(self) -> int:
        """Bytes of all its archives; 0 when that of one is unknown."""
        sizes = [archive.file.size for archive in self.archives]
        return sum(sizes) if all(sizes) else 0


@cache
def data_sets() -> dict[str, DataSet]:
    """The sets of images that installed distributions declare, by name.

    A declaration that cannot be read is told on stderr, and left out.
    """
    found = {}
    for point in sorted(entry_points(GROUP), key=lambda point: point.name):
        try:
            declared = point.load()
        except Exception as error:  # the code is a stranger's
            declared = error
        if isinstance(declared, DataSet):
            found[declared.name] = declared
        else:
            print(f"the data set {point.name} ({point.value}) is left out: it is no DataSet, or "
                  f"cannot be imported: {declared!r}", file=sys.stderr)  # fmt: skip
    return found


def how_to_get(folder: Path) -> str:
    """The command that makes a folder of images which is missing, as part of a message.

    :returns: such as "; `ganlab data fetch Set5` gets it", or "" when no data set makes a folder of
        this name.
    """
    for name, data in data_sets().items():
        if folder.name in [archive.folder for archive in data.archives]:
            return f"; `{fetching(name, folder.parent)}` gets it"
    return ""


def fetching(name: str, parent: Path) -> str:
    """The command that fetches a data set into a folder."""
    words = ["ganlab", "data", "fetch", name]
    if parent.resolve() != (Path.cwd() / DATA).resolve():
        words += ["--to", _short(parent)]
    return shlex.join(words)


def _short(path: Path) -> str:
    """A path as one would type it: below the current folder without what leads there."""
    full, here = path.resolve(), Path.cwd().resolve()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)
