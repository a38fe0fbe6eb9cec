"""Which files of a folder are images, and what is left out and why."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from ganlab.files import MANIFEST
from ganlab.images.files import SUFFIXES, ImageError
from ganlab.published import how_to_get

_SHOWN = 8  # reasons in a sentence
_NAMES = 3

Identity = tuple[int, int] | str


@dataclass(slots=True)
class Listing:
    """The images of a folder, sorted by path, and what lies beside them."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names below the folder. A folder that is left out is one name."""

    def told(self) -> str:
        """One sentence: the number of images, and what was left out, by count and example.

        For example `photos: 4 images; left out: 2 .gif (a.gif), 1 hidden (.DS_Store)`.
        """
        number = len(self.images)
        text = f"{self.folder}: {number:,} image{'' if number == 1 else 's'}"
        reasons = sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
        parts = [f"{len(names):,} {reason} ({min(names)})" for reason, names in reasons[:_SHOWN]]
        if rest := sum(len(names) for _, names in reasons[_SHOWN:]):
            parts.append(f"{rest:,} for other reasons")
        text += f"; left out: {', '.join(parts)}" if parts else ""
        return text.encode(errors="backslashreplace").decode()  # a name need not be text


def told_remarks(remarks: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each kind of remark on pictures: `2 images: CMYK ... (a.jpg, b.jpg)`.

    :param remarks: name of a picture -> what a user must know about its pixels.
    """
    kinds: dict[str, list[str]] = {}
    for name, remark in remarks.items():
        kinds.setdefault(remark, []).append(name)
    for remark, names in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        number = f"{len(names):,} image{'' if len(names) == 1 else 's'}"
        shown = ", ".join(names[:_NAMES]) + (" ..." if len(names) > _NAMES else "")
        yield f"{number}: {remark} ({shown})".encode(errors="backslashreplace").decode()


def name_rank(name: str) -> float:
    """A number in 0..1 for an image, which depends only on its path below the folder.

    An image is held out if its number is below the share that is held out. So images that are added
    or removed move no other image to the other side.

    :param name: the path, with "/" between its parts.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7]) / 2**56


def short_names(paths: Sequence[PurePath]) -> list[str]:
    """What pictures are called: the names of their files, with folders only where two are equal."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(paths)
    return ["-".join(path.relative_to(common).parts) for path in paths]


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, nested folders included, sorted by path.

    Files are chosen by suffix (`SUFFIXES`, upper or lower case). Hidden files and folders
    (".name") and what is no regular file are left out. Links are followed, but each folder and
    each file is listed once; see `images_of`.

    :raises ImageError: when the folder does not exist or holds no image.
    """
    return images_of(folder).images


def images_of(folder: Path) -> Listing:
    """All image files below a folder, and what is left out, by reason.

    The folder itself is walked first, then links in the order of their paths. So a file that is
    reached in two ways has the path without a link, and a link to a parent ends at once.

    :raises ImageError: when the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "no such folder"
        how = "" if folder.exists() else how_to_get(folder)
        raise ImageError(f"{folder}: {fault}; give the folder that holds the images{how}.")
    walk = _Walk(folder)
    walk.all()
    found = walk.found
    found.images.sort()
    if not found.images:
        _, _, left_out = found.told().partition("; left out: ")
        raise ImageError(
            f"{folder}: no image in it or below it; ganlab reads {' '.join(sorted(SUFFIXES))}"
            + (f" (left out: {left_out})." if left_out else ".")
        )
    return found


class _Walk:
    """One walk through a folder. Never opens a file, so a pipe or a device cannot stop it."""

    def __init__(self, folder: Path) -> None:
        self.found = Listing(folder)
        self._seen: set[Identity] = set()
        self._links: list[Path] = []

    def all(self) -> None:
        self._folders(self.found.folder)
        # found in a folder that a link leads to: they come after the links found before
        while self._links:
            links, self._links = sorted(self._links), []
            files = [link for link in links if not link.is_dir()]
            if any(link.is_file() for link in files):
                self._seen |= {_identity(file) for file in self.found.images}
            for link in links:
                self._follow(link)

    def _folders(self, top: Path) -> None:
        waiting = deque([top])
        while waiting:
            folder = waiting.popleft()
            try:
                if self._is_known(folder):
                    self._leave_out("reached before", folder)
                    continue
                with os.scandir(folder) as entries:
                    waiting += self._subfolders(entries)
            except OSError as fault:
                self._leave_out(f"unreadable: {fault.strerror}", folder)

    def _subfolders(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[Path]:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                self._leave_out("hidden", path)
            elif entry.is_symlink():
                self._links.append(path)
            elif entry.is_dir():
                yield path
            else:
                self._file(path, entry.is_file())

    def _follow(self, link: Path) -> None:
        try:
            if not link.exists():
                self._leave_out("link that leads nowhere", link)
            elif link.is_dir():
                self._folders(link)
            elif link.is_file() and _is_image(link) and self._is_known(link):
                self._leave_out("reached before", link)
            else:
                self._file(link, link.is_file())
        except OSError as fault:  # a link to itself
            self._leave_out(f"unreadable: {fault.strerror}", link)

    def _file(self, path: Path, is_regular: bool) -> None:
        if not is_regular:
            self._leave_out("no regular file", path)
        elif _is_image(path):
            self.found.images.append(path)
        elif path.name != MANIFEST:
            self._leave_out(path.suffix.lower() or "without suffix", path)

    def _is_known(self, path: Path) -> bool:
        """Whether a folder or file was reached before; from now on it is."""
        identity = _identity(path)
        known = identity in self._seen
        self._seen.add(identity)
        return known

    def _leave_out(self, reason: str, path: Path) -> None:
        self.found.left_out.setdefault(reason, []).append(str(path.relative_to(self.found.folder)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _identity(path: Path) -> Identity:
    """What is equal for two paths to one file or folder."""
    stat = path.stat()
    # some network file systems have no numbers of files
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)
