"""`ganlab data pack`: a folder of images made into shards."""

import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from ganlab.commands.many import beside, listed
from ganlab.commands.shard_images import (
    READERS,
    Examined,
    LeftOut,
    Packing,
    examined,
    made,
    shown,
)
from ganlab.disk import size, telling_disk
from ganlab.errors import GanlabError, printable
from ganlab.files import remove_stale, whole, write_text
from ganlab.images.listing import name_rank
from ganlab.images.shards import (
    INDEX,
    MOST_BYTES,
    Row,
    index_name,
    read_rows,
    write_index,
    write_list,
)

_NOTE = "packing.txt"  # how a set that is not whole yet was begun


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
        left = LeftOut(packing)
        done, later = _finished(out, files, left)
        _require_room(out, later)
        found = left.sound(shown(_read_ahead(later), len(later)))
        names = [*done, *_packed(out, found, len(done), packing.shard_bytes)]
        lines = [*left.told()]
        if not names:
            raise GanlabError(f"{folder}: none of its images goes into a shard; nothing was packed")
        with telling_disk(out / INDEX):
            write_list(out, names)
            (out / _NOTE).unlink(missing_ok=True)
    yield from lines
    yield made(out)


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
    out: Path, files: dict[str, Path], left: LeftOut
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


def _read_ahead(files: Iterable[tuple[str, Path]]) -> Iterator[Examined]:
    def read(item: tuple[str, Path]) -> Examined:
        name, file = item
        try:
            if file.stat().st_size > MOST_BYTES:
                return Examined(name, b"", fault=f"has more than {size(MOST_BYTES)}")
            content = file.read_bytes()
        except OSError as error:
            return Examined(name, b"", fault=f"cannot be read ({error.strerror or error})")
        return examined(name, content)

    return beside(read, files, 2 * READERS)


def _packed(out: Path, found: Iterator[Examined], first: int, most: int) -> Iterator[str]:
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


def _added(tar: tarfile.TarFile, one: Examined) -> Row:
    head = _head(one)
    offset = tar.offset + len(head.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    tar.addfile(head, BytesIO(one.content))
    return one.row(offset)


def _head(one: Examined) -> tarfile.TarInfo:
    """The head of a member: no times and no owners, so that equal images give equal bytes."""
    head = tarfile.TarInfo(one.name)
    head.size = len(one.content)
    return head


def _room(one: Examined) -> int:
    """Bytes of a member."""
    head = _head(one).tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return len(head) + -(-len(one.content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _padded(length: int) -> int:
    """The size of a tar file with members of this length: two empty blocks end it."""
    return -(-(length + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _shard_name(number: int) -> str:
    return f"shard-{number:06}.tar"
