"""`ganlab data verify` of shards: every image read whole, and compared with the index."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from ganlab.commands.many import beside
from ganlab.commands.shard_images import (
    READERS,
    counts,
    members_of,
)
from ganlab.errors import GanlabError, printable
from ganlab.images.files import ImageError
from ganlab.images.listing import images_of
from ganlab.images.ranges import Ranges, is_address
from ganlab.images.shards import (
    INDEX,
    Row,
    ShardIndex,
    has_shards,
)
from ganlab.terminal import Terminal


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
    found = VerifiedShards(place, counts(index), len(index))
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
        known = {(m.name, m.offset_data, m.size) for m in members_of(place / name)}

    def examine(row: Row) -> tuple[str, str]:
        if known is not None and (row.name, row.offset, row.size) not in known:
            return row.name, "the shard has no such member there; make the index again"
        try:
            index.image(shard, row)
        except ImageError as error:
            return row.name, str(error).removeprefix(f"{index.told(shard, row)}: ")
        return row.name, ""

    for member, fault in beside(examine, index.rows(shard), 2 * READERS):
        if fault:
            found.faults[f"{name}: {printable(member)}"] = fault
