"""`ganlab data pack`, `index` and `verify`: shards made, indexed and checked."""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from rich.progress import track

from ganlab.commands.many import beside, listed, tell
from ganlab.disk import size, telling_disk
from ganlab.errors import GanlabError, printable
from ganlab.files import remove_stale, whole, write_text
from ganlab.images.files import SUFFIXES, ImageError, read_image
from ganlab.images.listing import images_of, name_rank
from ganlab.images.ranges import Ranges, is_address
from ganlab.images.shards import (
    INDEX,
    MOST_BYTES,
    Row,
    ShardIndex,
    has_shards,
    index_name,
    read_rows,
    write_index,
    write_list,
)
from ganlab.images.source import ImageBytes
from ganlab.terminal import Terminal

_READERS = min(os.cpu_count() or 1, 16)
_NOTE = "packing.txt"  # how a set that is not whole yet was begun
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


class _Examined(NamedTuple):
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
class _Left:
    """What goes into no shard, and what must be told of the rest."""

    packing: Packing
    faults: dict[str, str] = field(default_factory=dict)
    small: list[str] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)

    def sound(self, found: Iterable[_Examined]) -> Iterator[_Examined]:
        """Those that go into a shard."""
        for one in found:
            if self.takes(one):
                yield one

    def takes(self, one: _Examined) -> bool:
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
                "\n  ".join([f"{_images(len(faults))} cannot be read:", *faults[:_SHOWN]])
                + f"{more}\nmend or remove them, or leave them out with --skip-broken"
            )
        tell(self.remarks)
        yield from (f"left out: {fault}" for fault in faults)
        if self.small:
            yield (
                f"left out: {_images(len(self.small))} with a side shorter than "
                f"{self.packing.min_side} pixels ({printable(min(self.small))})"
            )


# --- pack ----------------------------------------------------------------------------------------


def pack_folder(folder: Path, out: Path, packing: Packing) -> Iterator[str]:
    """Pack the images of a folder into shards; yields lines for the user.

    Equal images under equal names give equal bytes. The images are in the order of a hash of their
    names, so that each shard is a random part. When it was interrupted, it goes on after the last
    whole shard. A few images are in memory at a time, and of the others their names.

    :raises GanlabError: when an image cannot be read, the disk is too small, or `out` holds
        something else. Nothing there counts as packed without index.json, which is written last.
    """
    files = {path.relative_to(folder).as_posix(): path for path in listed(folder)}
    files = dict(sorted(files.items(), key=lambda item: (name_rank(item[0]), item[0])))
    _begin(out, packing)
    with _alone(out):
        remove_stale(out)
        left = _Left(packing)
        done, later = _finished(out, files, left)
        _require_room(out, later)
        found = left.sound(_shown(_read_ahead(later), len(later)))
        names = [*done, *_packed(out, found, len(done), packing.shard_bytes)]
        lines = [*left.told()]
        if not names:
            raise GanlabError(f"{folder}: none of its images goes into a shard; nothing was packed")
        with telling_disk(out / INDEX):
            write_list(out, names)
            (out / _NOTE).unlink(missing_ok=True)
    yield from lines
    yield _made(out)


def _begin(out: Path, packing: Packing) -> None:
    """Make the folder, or go on in one that was begun in the same way.

    :raises GanlabError: when it holds something else.
    """
    note = out / _NOTE
    if (out / INDEX).exists():
        raise GanlabError(
            f"{out}: is packed already; `ganlab data verify {out}` checks it. Give another folder"
        )
    if note.is_file():
        begun = note.read_text(encoding="utf-8", errors="replace").strip()
        if begun != packing.told:
            raise GanlabError(
                f"{out}: was begun with {printable(begun)}; give the same to go on, or another "
                "folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GanlabError(f"{out}: is not empty; give a new folder for the shards")
    with telling_disk(note):
        out.mkdir(parents=True, exist_ok=True)
        write_text(note, f"{packing.told}\n")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Context in which no other process packs into the folder."""
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    with telling_disk(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise GanlabError(f"{out}: another ganlab is packing into it; wait for it") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _finished(
    out: Path, files: dict[str, Path], left: _Left
) -> tuple[list[str], list[tuple[str, Path]]]:
    """The shards that an earlier process finished, and the files that come after them.

    A shard counts if it holds the next of the files as they are now, but for those that are left
    out.
    """
    order = list(files.items())
    places = {name: place for place, name in enumerate(files)}
    done: list[str] = []
    at = 0
    for number in count():
        name = _shard_name(number)
        try:
            rows = read_rows(out / index_name(name))
            written = (out / index_name(name)).stat().st_mtime_ns
            whole_size = (out / name).stat().st_size
        except (OSError, ValueError):
            break
        found = [places.get(row.name, -1) for row in rows]
        if found != sorted(found) or found[0] < at or whole_size < rows[-1].offset + rows[-1].size:
            break
        if not all(_is_older(files[row.name], row, written) for row in rows):
            break
        between = [order[place] for place in sorted({*range(at, found[-1])} - {*found})]
        if any(map(left.takes, _read_ahead(between))):
            break
        done.append(name)
        at = found[-1] + 1
    return done, order[at:]


def _is_older(file: Path, row: Row, written: int) -> bool:
    """Whether a file has the size of its row, and was not changed after that was written."""
    stat = file.stat()
    return stat.st_size == row.size and max(stat.st_mtime_ns, stat.st_ctime_ns) <= written


def _require_room(out: Path, later: list[tuple[str, Path]]) -> None:
    needed = sum(file.stat().st_size + 3 * tarfile.BLOCKSIZE for _, file in later)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise GanlabError(
            f"{out}: the shards need {size(needed)}, and {size(free)} are free there; make room, "
            "or give a folder on another disk"
        )


def _read_ahead(files: Iterable[tuple[str, Path]]) -> Iterator[_Examined]:
    def read(item: tuple[str, Path]) -> _Examined:
        name, file = item
        try:
            if file.stat().st_size > MOST_BYTES:
                return _Examined(name, b"", fault=f"has more than {size(MOST_BYTES)}")
            content = file.read_bytes()
        except OSError as error:
            return _Examined(name, b"", fault=f"cannot be read ({error.strerror or error})")
        return _examined(name, content)

    return beside(read, files, 2 * _READERS)


def _examined(name: str, content: bytes) -> _Examined:
    remarks: list[str] = []
    try:
        image = read_image(ImageBytes(name, content), remarks=remarks)
    except ImageError as error:
        return _Examined(name, b"", fault=str(error).removeprefix(f"{name}: "))
    _, height, width = image.shape
    return _Examined(name, content, width, height, remark="; ".join(remarks))


def _packed(out: Path, found: Iterator[_Examined], first: int, most: int) -> Iterator[str]:
    """Write shards, each whole with its index; yields their names."""
    waiting = next(found, None)
    for number in count(first):
        if waiting is None:
            return
        name = _shard_name(number)
        rows: list[Row] = []
        with (
            telling_disk(out / name),
            whole(out / name) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar,
        ):
            while waiting and (not rows or _padded(tar.offset + _room(waiting)) <= most):
                rows.append(_added(tar, waiting))
                waiting = next(found, None)
        with telling_disk(out / index_name(name)):
            write_index(out / index_name(name), rows)
        yield name


def _added(tar: tarfile.TarFile, one: _Examined) -> Row:
    head = _head(one)
    offset = tar.offset + len(head.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    tar.addfile(head, BytesIO(one.content))
    return one.row(offset)


def _head(one: _Examined) -> tarfile.TarInfo:
    """The head of a member: no times and no owners, so that equal images give equal bytes."""
    head = tarfile.TarInfo(one.name)
    head.size = len(one.content)
    return head


def _room(one: _Examined) -> int:
    """Bytes of a member."""
    head = _head(one).tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return len(head) + -(-len(one.content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _padded(length: int) -> int:
    """The size of a tar file with members of this length: two empty blocks end it."""
    return -(-(length + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _shard_name(number: int) -> str:
    return f"shard-{number:06}.tar"


def _made(folder: Path) -> str:
    index = ShardIndex.open(Ranges(folder))
    return f"{folder}: {_told(index)}"


def _told(index: ShardIndex) -> str:
    shards = f"{len(index.names):,} shard{'' if len(index.names) == 1 else 's'}"
    return f"{_images(len(index))} in {shards}, {size(index.num_bytes)}"


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _shown(found: Iterable[_Examined], number: int) -> Iterable[_Examined]:
    console = Terminal(stderr=True)
    quiet = not console.is_terminal
    return track(found, "reading images", number, console=console, disable=quiet)


# --- index ---------------------------------------------------------------------------------------


def index_shards(folder: Path, packing: Packing) -> Iterator[str]:
    """Write the indexes of shards that another tool made; yields lines for the user.

    Every image is read whole. Members that are no images are left alone; none is unpickled.

    :raises GanlabError: when there are no shards, or something cannot be read.
    """
    names = sorted(path.name for path in folder.glob("*.tar"))
    if not names:
        compressed = next(iter([*folder.glob("*.tar.*"), *folder.glob("*.tgz")]), None)
        raise GanlabError(
            f"{compressed}: is compressed, so no part of it can be read alone; unpack it with "
            "gunzip or its like, and index the .tar"
            if compressed
            else f"{folder}: no shards in it; a shard is a file that ends in .tar"
        )
    left = _Left(packing)
    others: dict[str, int] = {}
    made: dict[str, list[Row]] = {}
    (folder / INDEX).unlink(missing_ok=True)  # it would not describe the indexes to come
    for name in names:
        members = _members(folder / name, others)
        offsets = iter([member.offset_data for member in members])
        rows = [
            one.row(offset)
            for one, offset in zip(_read_members(folder, name, members), offsets, strict=True)
            if left.takes(one)
        ]
        if rows:
            with telling_disk(folder / index_name(name)):
                write_index(folder / index_name(name), rows)
            made[name] = []
    lines = [*left.told()]
    if not made:
        raise GanlabError(f"{folder}: the shards hold no image that can be used")
    with telling_disk(folder / INDEX):
        write_list(folder, made)
    yield from lines
    if others:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(others.items()))
        yield f"no images, left alone: {kinds}"
    yield _made(folder)


def _members(shard: Path, others: dict[str, int] | None = None) -> list[tarfile.TarInfo]:
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


def _read_members(folder: Path, shard: str, members: list[tarfile.TarInfo]) -> Iterator[_Examined]:
    ranges = Ranges(folder)

    def read(member: tarfile.TarInfo) -> _Examined:
        name = f"{shard}: {member.name}"
        if member.size > MOST_BYTES:
            return _Examined(name, b"", fault=f"has more than {size(MOST_BYTES)}")
        try:
            content = ranges.read(shard, member.offset_data, member.size)
        except ImageError as error:
            return _Examined(name, b"", fault=str(error))
        found = _examined(name, content)
        return found if found.fault else found._replace(name=member.name)

    return beside(read, members, 2 * _READERS)


# --- verify --------------------------------------------------------------------------------------


@dataclass(slots=True)
class VerifiedShards:
    """What was found in a set of shards."""

    place: Path | str
    told: str = ""
    """The numbers of images and shards."""
    images: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    """Shard, or shard and member -> what is wrong with it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.place),
            "images": self.images,
            "manifest": True,
            "faults": self.faults,
            "duplicates": [],
        }


def with_shards(place: str) -> Path | str:
    """The place, when it is an address or a folder with shards; "" when it is one of images."""
    folder = Path(place)
    if is_address(place):
        return place
    if not has_shards(folder):
        return ""
    try:
        images_of(folder)
    except ImageError:
        return folder
    return folder if (folder / INDEX).is_file() else ""


def verify_shards(place: Path | str) -> VerifiedShards:
    """Read every image of all shards whole, and compare it with the index; find all faults.

    :param place: a folder, or an address.
    :raises GanlabError: when there is no list of shards.
    """
    index = ShardIndex.open(Ranges(place))
    found = VerifiedShards(place, _told(index), len(index))
    console = Terminal(stderr=True)
    shards = track(
        range(len(index.names)),
        "reading shards",
        console=console,
        disable=not console.is_terminal,
    )
    for shard in shards:
        try:
            _verify_shard(index, shard, found)
        except GanlabError as error:
            name = index.names[shard]
            found.faults[name] = str(error).removeprefix(f"{index.ranges.name_of(name)}: ")
    return found


def lines(found: VerifiedShards) -> Iterator[str]:
    """What was found, in lines for the user."""
    for name, fault in found.faults.items():
        yield f"{found.place}/{name}: {fault}"
    if found.faults:
        yield f"{found.told}; {len(found.faults):,} with a fault"
    else:
        yield f"{found.told}: read whole and as the index says"


def _verify_shard(index: ShardIndex, shard: int, found: VerifiedShards) -> None:
    name, place = index.names[shard], index.ranges.place
    known = None
    if isinstance(place, Path):
        known = {(m.name, m.offset_data, m.size) for m in _members(place / name)}

    def examine(row: Row) -> tuple[str, str]:
        if known is not None and (row.name, row.offset, row.size) not in known:
            return row.name, "the shard has no such member there; make the index again"
        try:
            index.image(shard, row)
        except ImageError as error:
            return row.name, str(error).removeprefix(f"{index.told(shard, row)}: ")
        return row.name, ""

    for member, fault in beside(examine, index.rows(shard), 2 * _READERS):
        if fault:
            found.faults[f"{name}: {printable(member)}"] = fault
