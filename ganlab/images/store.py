"""A store of many images as one block of bytes; crops are cut by index arithmetic."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from ganlab import disk
from ganlab.files import append, remove_stale, write_text
from ganlab.images.files import ImageError
from ganlab.images.resampling import to_float
from ganlab.speed.device import sent

_MAGIC = b"ganlab store 4\0\0"
_TAIL = struct.Struct("<q32s16s")
# hashing costs about a second per GB, so an image of a larger file is checked when it is first used
_HASHED_BYTES = 64 * 2**20
_PIECE = 256 * 2**20
_INDEX = ("sizes", "names", "digests", "remarks", "left_out")


class NoRoom(ImageError):  # noqa: N818  # it names an outcome
    """The disk of the cache folder cannot hold decoded images."""


class Entry(NamedTuple):
    """An image for a store, with its name."""

    name: str
    image: Tensor | None
    """uint8 [3, H, W]; None for an image that is left out."""
    remark: str = ""
    """Why it is left out, or what a user must know about its pixels."""


Images = Callable[[int], Iterable[tuple[str, Tensor] | Entry]]
"""A function that gives named images, each uint8 [3, H, W], from the image of a number on.

Images that are left out are counted too."""


class ImageStore:
    """RGB images of any sizes, kept as 8-bit pixels in RAM, in a mapped file or on a device.

    A crop takes the same time from a hundred images and from a hundred thousand. In a mapped file
    a crop reads only its own pixels. Pixels are stored as [H, W, 3], image after image, so each row
    of a crop is one piece of the disk.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        sizes: list[tuple[int, int]],
        names: list[str],
        digests: list[str],
        remarks: dict[str, str] | None = None,
        left_out: dict[str, str] | None = None,
    ) -> None:
        """:param pixels: the concatenation of all images, each [H, W, 3], flattened.

        :param sizes: (H, W) of each image.
        :param digests: `image_digest` of each image.
        :param remarks: what a user must know about the pixels of an image, by its name.
        :param left_out: names of images that are not in the store, and why.
        """
        self.remarks, self.left_out = remarks or {}, left_out or {}
        self.digests = dict(zip(names, digests, strict=True))
        self.names = names
        self.sizes = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
        lengths = self.sizes.prod(1) * 3
        self._shortest = int(self.sizes.min()) if sizes else 0
        self._starts = lengths.cumsum(0) - lengths
        self._pixels = pixels
        self._resident: Tensor | None = None
        self._drawn: tuple[Tensor, Tensor, int] | None = None
        self._file: Path | None = None
        self._unchecked = torch.zeros(len(names), dtype=torch.bool)
        """Images of a large file whose pixels were not yet compared with their digests."""
        if int(lengths.sum()) != pixels.size:
            raise ValueError(f"{pixels.size} bytes do not hold images of these sizes")

    @classmethod
    def of(cls, images: Iterable[tuple[str, Tensor]]) -> "ImageStore":
        """A store in RAM of named images, each uint8 [3, H, W]."""
        rows, sizes, names, digests = [], [], [], []
        for name, image in images:
            rows.append(_flat(name, image))
            sizes.append((image.shape[1], image.shape[2]))
            names.append(name)
            digests.append(_digest(sizes[-1], rows[-1]))
        pixels = np.concatenate(rows) if rows else np.empty(0, np.uint8)
        return cls(pixels, sizes, names, digests)

    @classmethod
    def open(cls, path: Path) -> "ImageStore":
        """Map a saved store; its index is checked, and below 64 MiB all of it.

        An image of a larger file is checked when it is first used.

        :raises ImageError: when the file is missing, incomplete or damaged.
        """
        try:
            index, length = _read_index(path)
            # read-only: a private writable map of a large file may be refused for lack of memory
            pixels = np.memmap(path, np.uint8, mode="r", shape=(length,))
            store = cls(pixels, *(index[key] for key in _INDEX))
            store._file = path
            store._unchecked |= length > _HASHED_BYTES
            return store
        except (OSError, ValueError, KeyError, TypeError, struct.error) as fault:
            raise ImageError(f"{path}: not a complete image store ({fault}); delete it.") from None

    @classmethod
    def cached(
        cls, path: Path, images: Images, needed: Callable[[], int] | None = None
    ) -> "ImageStore":
        """The store saved at `path`; `save` makes it first if it is missing or damaged.

        Among several processes one makes it and the others wait.

        :param needed: gives the bytes that the images take; asked before the store is made.
        :raises NoRoom: when the disk has not so much room; nothing is written then.
        """
        try:
            return cls.open(path)
        except ImageError:
            pass
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(path.name + ".lock")):
                try:
                    return cls.open(path)
                except ImageError:
                    remove_stale(path.parent)
                    if needed:
                        _require_room(path, needed())
                    cls.save(path, images)
                    return cls.open(path)
        except (OSError, NotImplementedError) as fault:  # the latter: there are no locks
            reason = getattr(fault, "strerror", None) or fault
            raise ImageError(
                f"{path.parent}: cannot keep decoded images ({reason}); set GANLAB_CACHE to a "
                "folder that is writable, has room, and is on a disk with locks."
            ) from None

    @staticmethod
    def save(path: Path, images: Images) -> None:
        """Write named images, each uint8 [3, H, W], as a file for `open`, completely or not at all.

        Images are written one by one and never all held in RAM. If the process is killed, the next
        one continues from the images already written.
        """
        part, notes = path.with_name(path.name + ".part"), path.with_name(path.name + ".notes")
        known = _written_before(part, notes)
        with append(part) as file, append(notes) as lines:
            for entry in images(len(known)):
                note, row = _noted(Entry(*entry))
                known.append(note)
                file.write(row.data)
                file.flush()
                # after the pixels: a note means that they are written
                lines.write(json.dumps(known[-1]).encode() + b"\n")
                lines.flush()
            # the index comes last, because the sizes are known only then
            text = json.dumps(_index(known)).encode()
            file.write(text + _TAIL.pack(len(text), hashlib.sha256(text).digest(), _MAGIC))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        notes.unlink()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_bytes(self) -> int:
        return self._pixels.size

    @property
    def device(self) -> torch.device:
        """The device on which crops are cut."""
        return torch.device("cpu") if self._resident is None else self._resident.device

    def image(self, index: int) -> Tensor:
        """One whole image, uint8 [3, H, W], on the CPU."""
        self._check([index])
        height, width = self.sizes[index].tolist()
        start = int(self._starts[index])
        flat = self._pixels[start : start + height * width * 3]
        return torch.from_numpy(flat.reshape(height, width, 3).transpose(2, 0, 1).copy())

    def smallest(self) -> tuple[str, int, int]:
        """Name, height and width of the image with the shortest side."""
        index = int(self.sizes.amin(1).argmin())
        height, width = self.sizes[index].tolist()
        return self.names[index], height, width

    def to(self, device: torch.device) -> "ImageStore":
        """Copy the pixels to a device, so that crops are cut there. Returns self."""
        if device.type == "cpu":
            return self
        self._check(range(len(self)))
        self._resident = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
        for piece, start in zip(self._resident.split(_PIECE), count(0, _PIECE), strict=False):
            # in pieces, so that a mapped file is never completely in RAM
            piece.copy_(torch.from_numpy(np.array(self._pixels[start : start + len(piece)])))
        return self

    def crops(
        self,
        batch_size: int,
        size: int,
        generator: torch.Generator | None,
        device: torch.device,
        flips: bool = True,
        turns: bool = True,
    ) -> Tensor:
        """Cut random square crops.

        Every image is equally likely, whatever its size. So is every position in it, and each of
        the 2 (flips), 4 (turns) or 8 (both) orientations of the crop.

        :param size: side in pixels.
        :param generator: a generator on the CPU; None uses torch's default one. The draws do not
            depend on `device`, `flips` or `turns`.
        :returns: float32 [batch_size, 3, size, size] in 0..1, on `device`.
        :raises ValueError: when an image (`smallest()`) has a side shorter than `size`.
        """
        if size > self._shortest:
            raise ValueError(
                f"a crop of {size} pixels does not fit into an image of {self._shortest}"
            )
        which = torch.randint(len(self), (batch_size,), generator=generator)
        if self._unchecked.any():
            self._check(which.tolist())
        # float64, so that every position of the largest image can be reached
        place = torch.rand(2, batch_size, generator=generator, dtype=torch.float64)
        pose = torch.randint(8, (batch_size,), generator=generator)
        pose &= (4 if turns else 0) | (2 if turns else 0) | (1 if flips else 0)
        self._drawn = which, place, size
        window = self._windows(which, place, pose, size)
        cut = self._cut_on_host if self._resident is None else self._cut_on_device
        return to_float(sent(cut(window, size), device))

    def drawn(self) -> list[str]:
        """The crops of the last call of `crops`: name of the image, and the crop's (left, top)."""
        if self._drawn is None:
            return []
        which, place, size = self._drawn
        corners = (place * (self.sizes[which].t() - size + 1)).long().t().tolist()
        return [
            f"{self.names[index]} at ({left}, {top})"
            for index, (top, left) in zip(which.tolist(), corners, strict=True)
        ]

    def _check(self, which: Iterable[int]) -> None:
        """Compare images with their digests, each once in a process.

        :raises ImageError: naming the image that has changed; the file is deleted, so that the next
            command decodes the images again.
        """
        new = [index for index in dict.fromkeys(which) if self._unchecked[index]]
        if not new:
            return
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            same = list(pool.map(self._is_as_saved, new))
        for index, sound in zip(new, same, strict=True):
            if not sound and self._file:
                with suppress(OSError):
                    self._file.unlink()
                raise ImageError(
                    f"{self._file}: the pixels of {self.names[index]} have changed since they were "
                    "decoded (a flipped bit?); give the same command again, and they are decoded "
                    "anew"
                )
        self._unchecked[new] = False

    def _is_as_saved(self, index: int) -> bool:
        height, width = self.sizes[index].tolist()
        start = int(self._starts[index])
        row = self._pixels[start : start + height * width * 3]
        return _digest((height, width), row) == self.digests[self.names[index]]

    def _windows(self, which: Tensor, place: Tensor, pose: Tensor, size: int) -> Tensor:
        """First byte, step per row and step per column of each crop, int64 [3, N].

        A flip is a negative step; a transposition swaps the two steps. Bit 0 of `pose` mirrors;
        bits 1 and 2 together turn by 0, 90, 180 or 270 degrees.
        """
        height, width = self.sizes[which].unbind(1)
        top = (place[0] * (height - size + 1)).long()
        left = (place[1] * (width - size + 1)).long()
        row, column = 3 * width, torch.full_like(width, 3)
        start = self._starts[which] + top * row + left * column
        quarter = pose >= 4
        half = (pose & 2) > 0
        # a quarter turn is a transposition and a mirroring; half a turn mirrors both ways
        up, back = half, half ^ quarter ^ ((pose & 1) > 0)
        row, column = torch.where(quarter, column, row), torch.where(quarter, row, column)
        start = start + (size - 1) * (row * up + column * back)
        return torch.stack([start, torch.where(up, -row, row), torch.where(back, -column, column)])

    def _cut_on_host(self, windows: Tensor, size: int) -> Tensor:
        # a strided view for each crop: three times faster than collecting pixels by index
        crops = np.empty((windows.shape[1], 3, size, size), np.uint8)
        for crop, (start, row, column) in zip(crops, windows.t().tolist(), strict=True):
            crop[:] = np.ndarray(crop.shape, np.uint8, self._pixels, start, (1, row, column))
        return torch.from_numpy(crops)

    def _cut_on_device(self, windows: Tensor, size: int) -> Tensor:
        assert self._resident is not None
        start, row, column = sent(windows, self._resident.device)[:, :, None, None, None]
        steps = torch.arange(size, device=start.device)
        channel = torch.arange(3, device=start.device)[:, None, None]
        return self._resident.take(start + row * steps[:, None] + column * steps + channel)


def image_digest(image: Tensor) -> str:
    """The sha256 of an image's size and pixels, uint8 [3, H, W]; the first 32 hexadecimal digits.

    A grey image, [1, H, W], has the digest of the colour image of three equal channels.
    """
    colour = image.expand(3, -1, -1)
    return _digest(colour.shape[1:], _flat("image", colour))


def _digest(size: Sequence[int], row: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256("{} x {}\0".format(*size).encode())
    digest.update(row.data)
    return digest.hexdigest()[:32]


def _noted(entry: Entry) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The line of an image in the notes of an unfinished store, and its pixels."""
    image = torch.empty(3, 0, 0, dtype=torch.uint8) if entry.image is None else entry.image
    row, size = _flat(entry.name, image), [*image.shape[1:]]
    note = {"name": entry.name, "size": size, "digest": _digest(size, row)}
    told = "left_out" if entry.image is None else "remark"
    return note | ({told: entry.remark} if entry.remark else {}), row


def _index(notes: list[dict[str, Any]]) -> dict[str, Any]:
    held = [note for note in notes if "left_out" not in note]
    return {
        **{f"{key}s": [note[key] for note in held] for key in ("size", "name", "digest")},
        "remarks": {note["name"]: note["remark"] for note in held if "remark" in note},
        "left_out": {note["name"]: note["left_out"] for note in notes if "left_out" in note},
    }


def _require_room(path: Path, needed: int) -> None:
    """Refuse to begin a store that its disk cannot hold; what an earlier process wrote counts."""
    part = path.with_name(path.name + ".part")
    there = part.stat().st_size if part.is_file() else 0
    free = shutil.disk_usage(path.parent).free
    if needed - there > free:
        needs, has = disk.size(needed - there), disk.size(free)
        raise NoRoom(
            f"{path.parent}: the decoded images need {needs}, and {has} are free there; set "
            "GANLAB_CACHE to a folder on a larger disk"
        )


def _written_before(part: Path, notes: Path) -> list[dict[str, Any]]:
    """The complete images of an unfinished store. Everything after them is cut off."""
    known: list[dict[str, Any]] = []
    length = 0
    lines = notes.read_bytes().splitlines() if notes.is_file() else []
    with append(part) as file:
        left = os.fstat(file.fileno()).st_size
        for line in lines:
            try:
                note = json.loads(line)
                height, width = map(int, note["size"])
                row = np.frombuffer(file.read(min(3 * height * width, left)), np.uint8)
                if (
                    row.size != 3 * height * width
                    or _digest((height, width), row) != note["digest"]
                ):
                    break
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                break  # the process was killed while it wrote this line, or it is damaged
            known.append(note)
            length += row.size
        file.truncate(length)
    write_text(notes, "".join(json.dumps(note) + "\n" for note in known))
    return known


def _flat(name: str, image: Tensor) -> NDArray[np.uint8]:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"{name}: a store takes uint8 [3, H, W], not {tuple(image.shape)}")
    return image.permute(1, 2, 0).contiguous().numpy().reshape(-1)


def _read_index(path: Path) -> tuple[dict, int]:
    """The index of a saved store, and the number of bytes of pixels before it."""
    with path.open("rb") as file:
        end = file.seek(0, 2) - _TAIL.size
        file.seek(max(end, 0))
        length, digest, magic = _TAIL.unpack(file.read())
        if magic != _MAGIC or not 0 < length <= end:
            raise ValueError("its end is missing or damaged")
        file.seek(end - length)
        text = file.read(length)
        if hashlib.sha256(text).digest() != digest:
            raise ValueError("its index has changed since it was saved")
        index = json.loads(text)
        pixels = end - length
        if pixels <= _HASHED_BYTES:
            file.seek(0)
            for size, digest in zip(index["sizes"], index["digests"], strict=True):
                row = np.frombuffer(file.read(3 * size[0] * size[1]), np.uint8)
                if _digest(size, row) != digest:
                    raise ValueError("its pixels have changed since it was saved")
    return index, pixels
