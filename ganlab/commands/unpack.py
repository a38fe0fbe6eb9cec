"""The images of one folder out of an archive that a stranger made.

Nothing in the archive is believed: only plain files with harmless names and the suffix of an image
are taken, each from the one folder, and their number must be the published one.
"""

import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from ganlab.disk import telling_disk
from ganlab.errors import GanlabError, RecipeError, first_line, printable
from ganlab.files import MANIFEST, claim, new_folder, write_text
from ganlab.images.files import SUFFIXES
from ganlab.names import check_name
from ganlab.published import Archive
from ganlab.system import as_one_name

_BLOCK = 2**20  # bytes
_MOST_FILES = 100_000
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError,
    NotImplementedError, RuntimeError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive."""

    path: PurePosixPath
    is_plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Make a folder of the archive's images, with their digests in SHA256SUMS; whole or not at all.

    :param path: the archive; zip or tar, also compressed.
    :raises GanlabError: when it is damaged, or holds something else than it should.
    """
    with telling_disk(folder), new_folder(folder.parent) as new:
        digests = _written(path, archive, new)
        listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        write_text(new / MANIFEST, listed)
        claim(new, folder)


def _written(path: Path, archive: Archive, folder: Path) -> dict[str, str]:
    """Write the images into a folder that is empty; returns name -> sha256."""
    wanted, elsewhere = PurePosixPath(archive.inside).parts, Counter[str]()
    digests: dict[str, str] = {}
    seen: set[str] = set()
    left = 4 * path.stat().st_size + 2**26  # bytes; images hardly get smaller in an archive
    with closing(_members(path)) as members:
        for member in members:
            if member.path.suffix.lower() not in SUFFIXES:
                continue
            if member.path.parent.parts[-len(wanted) :] != wanted:
                elsewhere[str(member.path.parent)] += 1
                continue
            name = _checked(path, member, seen)
            digests[name] = _copied(path, member, folder / name, left)
            left -= (folder / name).stat().st_size
    if len(digests) != archive.num_images:
        others = f"; elsewhere: {_shown(elsewhere)}" if elsewhere else ""
        raise _refused(
            path, f"{len(digests)} images in {archive.inside}, and {archive.num_images} are "
            f"published{others}"
        )  # fmt: skip
    return digests


def _copied(path: Path, member: _Member, file: Path, most: int) -> str:
    """Write a file of the archive; returns its sha256."""
    digest = hashlib.sha256()
    with telling_disk(file), file.open("xb") as stream:
        for block in _blocks(path, member):
            most -= len(block)
            if most < 0:
                raise _refused(path, "it unpacks to far more than images take")
            digest.update(block)
            stream.write(block)
    return digest.hexdigest()


def _members(path: Path) -> Generator[_Member, None, None]:
    """The files of an archive one after the other; each is read before the next is asked for."""
    with _damage_told(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                for number, info in enumerate(zipped.infolist()):
                    _check_number(path, number)
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    plain = kind in (0, stat.S_IFREG) and not info.flag_bits & 1
                    if not info.is_dir():
                        name, opener = PurePosixPath(info.filename), partial(zipped.open, info)
                        yield _Member(name, plain, opener)
            return
        with tarfile.open(path) as tarred:
            for number, entry in enumerate(tarred):
                _check_number(path, number)
                plain = entry.isreg() and not entry.issparse()
                if not entry.isdir():
                    name, extract = PurePosixPath(entry.name), partial(tarred.extractfile, entry)
                    yield _Member(name, plain, extract)


def _check_number(path: Path, number: int) -> None:
    if number >= _MOST_FILES:
        raise _refused(path, f"more than {_MOST_FILES:,} files")


def _checked(path: Path, member: _Member, seen: set[str]) -> str:
    """The name under which a file may be written."""
    name = member.path.name
    if ".." in member.path.parts or member.path.is_absolute():
        raise _refused(path, f"{member.path} leads out of it")
    if not member.is_plain:
        raise _refused(path, f"{member.path} is a link, encrypted, or another special file")
    try:
        check_name(name, "")
    except RecipeError:
        raise _refused(path, f"{name!r} is no name that every system allows") from None
    if as_one_name(name.lower()) in seen:
        raise _refused(path, f"two images are called {name}")
    seen.add(as_one_name(name.lower()))
    return name


def _blocks(path: Path, member: _Member) -> Iterator[bytes]:
    with _damage_told(path):
        content = member.open()
    assert content is not None, "a plain file has content"
    with content:
        while True:
            with _damage_told(path):
                block = content.read(_BLOCK)
            if not block:
                return
            yield block


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except GanlabError:
        raise
    except _DAMAGE as error:
        raise _refused(path, f"damaged: {first_line(error)}") from None


def _shown(folders: Counter[str]) -> str:
    return ", ".join(f"{number} in {name or '.'}" for name, number in folders.most_common(3))


def _refused(path: Path, fault: str) -> GanlabError:
    return GanlabError(f"{path}: {printable(fault)}; no folder was made of it")
