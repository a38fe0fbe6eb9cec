"""Tar shards of images with an index of offsets, so that any image is one range read.

A shard is a tar file as webdataset writes it. Beside `a.tar` lies `a.npy`, its index: an array with
a row for each image, which numpy alone can read. `index.json` lists the shards with the digests of
their indexes; it is written last, and its digest stands for the whole set. Nothing is unpickled.
"""

import hashlib
import json
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ganlab.errors import printable
from ganlab.files import whole, write_text
from ganlab.images.files import AlphaPolicy, ImageError, cache_folder, read_image
from ganlab.images.listing import name_rank
from ganlab.images.ranges import Ranges
from ganlab.images.source import ImageBytes

INDEX = "index.json"
SUFFIX = ".tar"
FORMAT = "ganlab shards 1"
MOST_BYTES = 2**30  # of one image file; more is refused before it is read
_LONGEST_LIST = 2**30  # bytes of index.json
_LARGEST_INDEX = 2**31  # bytes of the index of one shard
_TABLES = 256  # indexes of shards whose head is kept; each takes about a kilobyte


class Row(NamedTuple):
    """What the index says of one image."""

    name: str
    """Its member in the tar: the path below the folder that was packed."""
    offset: int
    """The first byte of its file in the tar."""
    size: int
    """Bytes of its file."""
    width: int
    height: int
    """In pixels, turned as its EXIF orientation says."""
    sha256: bytes
    """Of its file."""

    @property
    def rank(self) -> float:
        """`name_rank` of its name. The rows of a shard are sorted by it."""
        return name_rank(self.name)


class _Shard(BaseModel):
    """A line of index.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*\.tar$")
    bytes: int = Field(ge=0, lt=2**62)
    images: int = Field(ge=1, lt=2**40)
    smallest: tuple[int, int, str]
    """Width, height and name of the image with the shortest side."""
    ranks: tuple[float, float]
    """Of the first and the last row."""
    index: str = Field(pattern="^[0-9a-f]{64}$")
    """The sha256 of its index."""


class _Listing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: str
    shards: list[_Shard] = Field(min_length=1)


class _Table(NamedTuple):
    """The index of one shard as a file of this machine."""

    file: Path
    kind: np.dtype
    length: int
    begin: int
    """The byte at which its rows begin."""


class ShardIndex:
    """The index of a set of shards: which images there are, and where.

    What is in memory grows with the number of shards, not with that of images. The index of a shard
    is read where it lies; one at an address is copied into ganlab's cache folder when it is first
    needed.
    """

    def __init__(self, ranges: Ranges, shards: list[_Shard]) -> None:
        self.ranges = ranges
        self.names = [shard.name for shard in shards]
        self.counts = np.array([shard.images for shard in shards], np.int64)
        """The number of images of each shard."""
        self.num_bytes = sum(shard.bytes for shard in shards)
        self.digests = {shard.name: shard.index for shard in shards}
        self._ranks = np.array([shard.ranks for shard in shards], np.float64)
        self.smallest = min((shard.smallest for shard in shards), key=lambda s: (min(s[:2]), s))
        """Width, height and name of the image with the shortest side."""
        self._is_sound = bytearray(len(shards))
        self._locks = [threading.Lock() for _ in range(16)]  # no index is fetched twice
        self._table = lru_cache(_TABLES)(self._opened_table)

    @classmethod
    def open(cls, ranges: Ranges) -> "ShardIndex":
        """Read the list of shards.

        :raises ImageError: when it is missing or damaged.
        """
        place = ranges.name_of(INDEX)
        if isinstance(ranges.place, Path):
            _require_list(ranges.place)
        try:
            listing = _Listing.model_validate_json(ranges.whole(INDEX, _LONGEST_LIST))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ImageError(
                f"{place}: is no list of shards ({where}: {first['msg']}); make it again with "
                "`ganlab data index FOLDER`"
            ) from None
        if listing.format != FORMAT:
            raise ImageError(
                f"{place}: has the format {printable(listing.format)!r}; this ganlab reads "
                f"{FORMAT!r}"
            )
        return cls(ranges, listing.shards)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def row(self, shard: int, number: int) -> Row:
        """A row of a shard's index.

        :raises ImageError: when the index is missing or damaged.
        """
        table = self._table(shard)
        begin, size = table.begin + number * table.kind.itemsize, table.kind.itemsize
        with table.file.open("rb", buffering=0) as file:
            file.seek(begin)
            return _row(np.frombuffer(file.read(size), table.kind)[0])

    def rows(self, shard: int) -> Iterator[Row]:
        """All rows of a shard's index, those of the smallest ranks first."""
        table = self._table(shard)
        with table.file.open("rb") as file:
            file.seek(table.begin)
            for _ in range(table.length):
                yield _row(np.frombuffer(file.read(table.kind.itemsize), table.kind)[0])

    def below(self, share: float) -> NDArray[np.int64]:
        """How many images of each shard have a rank below `share`: its first rows."""
        first, last = self._ranks.T
        found = np.where(last < share, self.counts, 0)
        for shard in np.flatnonzero((first < share) & (last >= share)).tolist():
            found[shard] = self._first_not_below(shard, share)
        return found

    def smallest_ranks(self, number: int) -> list[tuple[int, Row]]:
        """The images with the smallest ranks of all, with their shards."""
        found: list[tuple[float, int, Row]] = []
        for shard in np.argsort(self._ranks[:, 0], kind="stable").tolist():
            if len(found) == number and (not found or self._ranks[shard, 0] > found[-1][0]):
                break
            rows = [self.row(shard, n) for n in range(min(number, int(self.counts[shard])))]
            found = sorted([*found, *((row.rank, shard, row) for row in rows)])[:number]
        return [(shard, row) for _, shard, row in found]

    def image(
        self,
        shard: int,
        row: Row,
        keep_grey: bool = False,
        alpha: AlphaPolicy = "white",
        remarks: list[str] | None = None,
    ) -> Tensor:
        """Read an image by one range read, check its digest, and decode it: see `read_image`.

        :raises ImageError: naming the image and its shard.
        """
        content = self.content(shard, row)
        image = read_image(ImageBytes(self.told(shard, row), content), keep_grey, alpha, remarks)
        if image.shape[1:] != (row.height, row.width):
            raise ImageError(
                f"{self.told(shard, row)}: has {image.shape[2]} x {image.shape[1]} pixels, and "
                f"{row.width} x {row.height} in the index; make the index again"
            )
        return image

    def content(self, shard: int, row: Row) -> bytes:
        """The file of an image, checked.

        :raises ImageError: when its bytes are not those of the index.
        """
        if row.size > MOST_BYTES:
            raise ImageError(f"{self.told(shard, row)}: has {row.size:,} bytes; make it smaller")
        content = self.ranges.read(self.names[shard], row.offset, row.size)
        if hashlib.sha256(content).digest() != row.sha256:
            raise ImageError(
                f"{self.told(shard, row)}: its bytes {row.offset:,} to {row.offset + row.size:,} "
                "are not those that the index describes: the shard has changed since, or is "
                "damaged; copy it anew, or make the index again"
            )
        return content

    def told(self, shard: int, row: Row) -> str:
        """An image, as messages call it."""
        return f"{self.ranges.name_of(self.names[shard])}: {printable(row.name)}"

    def _first_not_below(self, shard: int, share: float) -> int:
        numbers = range(int(self.counts[shard]))
        return bisect_left(numbers, share, key=lambda number: self.row(shard, number).rank)

    def _opened_table(self, shard: int) -> _Table:
        file = self._file_of(shard)
        try:
            if not self._is_sound[shard]:
                with file.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
                if found != self.digests[self.names[shard]]:
                    raise ValueError(f"is not the index that {INDEX} names")
                self._is_sound[shard] = 1
            table = _head(file)
            if table.length != self.counts[shard]:
                raise ValueError(f"has {table.length:,} rows, and {INDEX} says another number")
            return table
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ImageError(
                f"{printable(str(file))}: {reason}; copy it anew, or make it again with "
                "`ganlab data index FOLDER`"
            ) from None

    def _file_of(self, shard: int) -> Path:
        """The index of a shard on this machine; it is fetched first if it is elsewhere."""
        name = index_name(self.names[shard])
        if isinstance(self.ranges.place, Path):
            return self.ranges.place / name
        digest = self.digests[self.names[shard]]
        kept = cache_folder() / f"shard-{digest}.npy"
        with self._locks[shard % len(self._locks)]:
            if not kept.exists():
                self._fetch(name, digest, kept)
        return kept

    def _fetch(self, name: str, digest: str, kept: Path) -> None:
        content = self.ranges.whole(name, _LARGEST_INDEX)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ImageError(
                f"{self.ranges.name_of(name)}: is not the index that {INDEX} names; copy the "
                "shards to the server anew"
            )
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with whole(kept) as file:
                file.write(content)
        except OSError as error:
            raise ImageError(
                f"{kept}: cannot be written ({error.strerror or error}); set GANLAB_CACHE to a "
                "folder that is writable and has room"
            ) from None


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Some images of all shards, numbered through: the rows from `begins` on."""

    begins: NDArray[np.int64]
    """For each shard, the first row that belongs to the part."""
    ends: NDArray[np.int64]
    """For each shard, the number of images of the part in it and in those before it."""

    @classmethod
    def of(cls, index: ShardIndex, begins: NDArray[np.int64]) -> "ShardPart":
        return cls(begins, (index.counts - begins).cumsum())

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, number: int) -> tuple[int, int]:
        """Shard and row of an image of the part."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        before = int(self.ends[shard - 1]) if shard else 0
        return shard, int(self.begins[shard]) + number - before


def index_name(shard: str) -> str:
    """The name of the index of a shard."""
    return f"{shard.removesuffix(SUFFIX)}.npy"


def write_index(file: Path, rows: Iterable[Row]) -> None:
    """Write the index of a shard, whole or not at all; its bytes depend on the rows alone."""
    ordered = sorted(rows, key=lambda row: (row.rank, row.name))
    names = [row.name.encode("utf-8", "surrogateescape") for row in ordered]
    longest = max(map(len, names))
    table = np.zeros(len(ordered), _kind(longest))
    for entry, row, name in zip(table, ordered, names, strict=True):
        entry["offset"], entry["size"] = row.offset, row.size
        entry["width"], entry["height"] = row.width, row.height
        entry["sha256"], entry["name"] = np.void(row.sha256), name
    memory = BytesIO()
    np.lib.format.write_array(memory, table, version=(1, 0), allow_pickle=False)
    with whole(file) as stream:
        stream.write(memory.getbuffer())


def read_rows(file: Path) -> list[Row]:
    """The rows of the index of one shard.

    :raises ValueError: when it is no such index.
    """
    head = _head(file)
    with file.open("rb") as stream:
        stream.seek(head.begin)
        content = stream.read(head.length * head.kind.itemsize)
    return [_row(entry) for entry in np.frombuffer(content, head.kind)]


def write_list(folder: Path, shards: Iterable[str]) -> None:
    """Write index.json for shards whose indexes are there."""
    lines = []
    for name in shards:
        file = folder / index_name(name)
        rows = read_rows(file)
        small = min(rows, key=lambda row: (min(row.width, row.height), row.name))
        lines.append(
            _Shard(
                name=name,
                bytes=(folder / name).stat().st_size,
                images=len(rows),
                smallest=(small.width, small.height, printable(small.name)),
                ranks=(rows[0].rank, rows[-1].rank),
                index=hashlib.sha256(file.read_bytes()).hexdigest(),
            ).model_dump()
        )
    text = ",\n".join(json.dumps(line) for line in lines)
    write_text(folder / INDEX, f'{{"format": "{FORMAT}", "shards": [\n{text}\n]}}\n')


def has_shards(folder: Path) -> bool:
    """Whether a folder holds shards, with or without a list."""
    return any(folder.glob(f"*{SUFFIX}"))


def _require_list(folder: Path) -> None:
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "no such folder"
        raise ImageError(f"{folder}: {fault}; give the folder that holds the shards")
    if not (folder / INDEX).is_file():
        how = (
            f"holds shards, but no {INDEX}; `ganlab data index {folder}` makes it"
            if has_shards(folder)
            else f"holds no shards; `ganlab data pack IMAGES {folder}` makes them of a folder of "
            "images"
        )
        raise ImageError(f"{folder}: {how}")


def _kind(longest: int) -> np.dtype:
    return np.dtype(
        [
            ("offset", "<u8"), ("size", "<u8"), ("width", "<u4"), ("height", "<u4"),
            ("sha256", "V32"), ("name", f"S{longest}"),
        ]
    )  # fmt: skip


def _row(entry: np.void) -> Row:
    return Row(
        name=entry["name"].decode("utf-8", "surrogateescape"),
        offset=int(entry["offset"]),
        size=int(entry["size"]),
        width=int(entry["width"]),
        height=int(entry["height"]),
        sha256=entry["sha256"].tobytes(),
    )


def _head(file: Path) -> _Table:
    """The head of an index.

    :raises ValueError: when it is no index of a shard, or is cut.
    """
    with file.open("rb") as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("is no index of a shard")
        shape, is_fortran, kind = np.lib.format.read_array_header_1_0(stream)
        begin = stream.tell()
        size = stream.seek(0, 2) - begin
    longest = kind["name"].itemsize if kind.names and "name" in kind.names else 0
    if len(shape) != 1 or is_fortran or not longest or kind != _kind(longest):
        raise ValueError("is no index of a shard")
    if size != shape[0] * kind.itemsize:
        raise ValueError("is cut, or longer than it says")
    return _Table(file, kind, shape[0], begin)
