"""`ganlab data index`: the indexes of shards that another tool made."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from ganlab.commands.many import beside
from ganlab.commands.shard_images import (
    READERS,
    Examined,
    LeftOut,
    Packing,
    examined,
    made,
    members_of,
)
from ganlab.disk import size, telling_disk
from ganlab.errors import GanlabError
from ganlab.images.files import ImageError
from ganlab.images.ranges import Ranges
from ganlab.images.shards import (
    INDEX,
    MOST_BYTES,
    index_name,
    write_index,
    write_list,
)


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
    left = LeftOut(packing)
    others: dict[str, int] = {}
    indexed: list[str] = []
    (folder / INDEX).unlink(missing_ok=True)  # it would not describe the indexes to come
    for name in names:
        members = members_of(folder / name, others)
        offsets = iter([member.offset_data for member in members])
        rows = [
            one.row(offset)
            for one, offset in zip(_read_members(folder, name, members), offsets, strict=True)
            if left.takes(one)
        ]
        if rows:
            with telling_disk(folder / index_name(name)):
                write_index(folder / index_name(name), rows)
            indexed.append(name)
    lines = [*left.told()]
    if not indexed:
        raise GanlabError(f"{folder}: the shards hold no image that can be used")
    with telling_disk(folder / INDEX):
        write_list(folder, indexed)
    yield from lines
    if others:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(others.items()))
        yield f"no images, left alone: {kinds}"
    yield made(folder)


def _read_members(folder: Path, shard: str, members: list[tarfile.TarInfo]) -> Iterator[Examined]:
    ranges = Ranges(folder)

    def read(member: tarfile.TarInfo) -> Examined:
        name = f"{shard}: {member.name}"
        if member.size > MOST_BYTES:
            return Examined(name, b"", fault=f"has more than {size(MOST_BYTES)}")
        try:
            content = ranges.read(shard, member.offset_data, member.size)
        except ImageError as error:
            return Examined(name, b"", fault=str(error))
        found = examined(name, content)
        return found if found.fault else found._replace(name=member.name)

    return beside(read, members, 2 * READERS)
