"""The file in which a run is handed on. Writing is repeatable; reading trusts nothing in it.

It is a zip of plain files without folders. `pack.json` has the digest of every other file.
"""

import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from ganlab.errors import RecipeError, printable
from ganlab.files import sha256, whole
from ganlab.recipe.file import MAX_BYTES
from ganlab.runs.data import file_sha256

FORMAT = 1
CONTENTS = "pack.json"
MIB = 2**20
GIB = 2**30
# the largest size in bytes of each file that may be in an archive
_LARGEST = {
    CONTENTS: MIB,
    "recipe.toml": MAX_BYTES,
    "manifest.json": 4 * MIB,
    "status.json": MIB,
    "data.json": 64 * MIB,
    "changes.jsonl": 16 * MIB,
    "stats.jsonl": GIB,
    "scores.jsonl": GIB,
    "timing.jsonl": GIB,
    "verdicts.jsonl": 16 * MIB,
    "generator.safetensors": 8 * GIB,
    "best.safetensors": 8 * GIB,
}
PLUGIN_FILE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\.py")
LARGEST_PLUGIN = MIB
_REQUIRED = ("recipe.toml", "manifest.json", "stats.jsonl")
_MOST_FILES = 256
# what zipfile raises for damaged archives of all kinds
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
)


class WeightsRecord(BaseModel):
    """What is known of a file of weights."""

    iteration: int
    sha256: str
    """Of the names, dtypes, shapes and bytes of the tensors."""


class Contents(BaseModel):
    """`pack.json`: what an archive holds."""

    format: int
    name: str = Field(max_length=255)
    """The name of the run folder."""
    files: dict[str, str]
    """The sha256 of every other file."""
    weights: dict[str, WeightsRecord] = {}
    """By the name of the weights file; also of weights that are not in the archive."""


def write_archive(path: Path, contents: Contents, files: Mapping[str, bytes]) -> None:
    """Write an archive, whole or not at all. Equal files give equal bytes (with equal zlib).

    :param contents: its `files` are filled in here.
    """
    digests = {name: sha256(files[name]) for name in sorted(files)}
    about = contents.model_copy(update={"files": digests}).model_dump()
    with whole(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, CONTENTS, (json.dumps(about, indent=2) + "\n").encode())
        for name in digests:
            _add(archive, name, files[name])


def unpack(path: Path, folder: Path) -> Contents:
    """Check every part of an archive, and write its files into a folder.

    Names, kinds and sizes are checked before anything is written. Digests are checked too.

    :param folder: exists and is empty.
    :raises RecipeError: when the file is not an archive of ours, or is damaged.
    """
    if not path.is_file():
        fault = "it is a folder" if path.is_dir() else "no such file"
        raise RecipeError(f"{path}: {fault}; give a file that `ganlab pack` wrote")
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise _refused(path, f"not a zip file, or damaged: {error}") from None
    with archive:
        for member in _members(path, archive):
            with (folder / member.filename).open("wb") as file:
                for block in _read(path, archive, member):
                    file.write(block)
    contents = _contents(path, folder)
    _check_digests(path, folder, contents)
    return contents


def _members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > _MOST_FILES:
        raise _refused(path, f"{len(members)} files; at most {_MOST_FILES} are allowed")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        largest = _largest(name)
        if largest is None:
            raise _refused(path, f"it holds {name!r}, and no such file belongs into it")
        if name.lower() in seen:
            raise _refused(path, f"it holds {name!r} twice")
        seen.add(name.lower())
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refused(path, f"{name} is a link or another special file")
        if member.flag_bits & 1:
            raise _refused(path, f"{name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(path, f"{name} is compressed in a way that is not allowed")
        if member.file_size > largest:
            raise _refused(path, f"{name} has {member.file_size} bytes; at most {largest}")
    if lacking := [name for name in (CONTENTS, *_REQUIRED) if name not in seen]:
        raise _refused(path, f"it lacks {', '.join(lacking)}")
    return members


def _largest(name: str) -> int | None:
    """The largest allowed size of a file in bytes; None when no file may have this name."""
    return _LARGEST.get(name) or (LARGEST_PLUGIN if PLUGIN_FILE.fullmatch(name) else None)


def _read(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a member; its real size counts, not the size that the archive states."""
    left = _largest(member.filename) or 0
    try:
        with archive.open(member) as source:
            while block := source.read(MIB):
                left -= len(block)
                if left < 0:
                    raise EOFError("larger than stated")
                yield block
    except (*_DAMAGE, OSError) as error:
        raise _refused(path, f"damaged: {member.filename}: {error}") from None


def _contents(path: Path, folder: Path) -> Contents:
    try:
        contents = Contents.model_validate_json((folder / CONTENTS).read_bytes())
    except ValidationError as error:
        raise _refused(path, f"its {CONTENTS} is wrong: {error.errors()[0]['msg']}") from None
    if contents.format != FORMAT:
        raise _refused(path, f"format {contents.format}; this ganlab reads format {FORMAT}")
    return contents


def _check_digests(path: Path, folder: Path, contents: Contents) -> None:
    there = {file.name for file in folder.iterdir()} - {CONTENTS}
    if unequal := sorted(there ^ contents.files.keys()):
        raise _refused(path, f"{CONTENTS} and the archive differ in {unequal[0]!r}")
    for name, digest in contents.files.items():
        if file_sha256(folder / name) != digest:
            raise _refused(
                path, f"{name} was changed after the run was packed (its sha256 differs)"
            )


def _refused(path: Path, fault: str) -> RecipeError:
    return RecipeError(f"{path}: {printable(fault)}; ask for a new file from `ganlab pack`")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    member.create_system = 3  # Unix, on every system
    # weights hardly get smaller
    packed = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
    member.compress_type = packed
    archive.writestr(member, content)
