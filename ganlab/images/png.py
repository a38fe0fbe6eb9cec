"""Writes a PNG file strip by strip, so that the whole picture is never in memory.

Strips are filtered and compressed independently: each is a run of deflate blocks that ends at a
byte (a sync flush), so strips can be packed in several threads, and joined they are one stream. No
common library writes PNG files in this way. Format: PNG, third edition, www.w3.org/TR/png-3;
deflate and zlib: RFC 1951 and RFC 1950.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganlab.images.files import replacing

STRIP = 2**19  # bytes of pixels; smaller strips compress less well
COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # of a PNG file, by its number of channels
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Strip:
    """Neighbouring rows of a picture, uint8 [C, h, W] or uint16, on the CPU."""

    rows: Tensor
    above: Tensor
    """The row above, [C, 1, W]; zeros at the top of the picture."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A strip as it stands in a file."""

    shape: tuple[int, int, int]
    """Channels, rows, width."""
    bits: int
    """Of each value."""
    filtered: bytes
    """The strip before compression: the file has a check sum of it."""
    deflated: bytes


def strips(bands: Iterable[Tensor]) -> Iterator[Strip]:
    """Cut a picture into strips.

    :param bands: the picture's parts from top to bottom, uint8 or uint16 [C, rows, W].
    """
    above: Tensor | None = None
    for band in bands:
        row = band.shape[0] * band.shape[2] * band.dtype.itemsize
        above = torch.zeros_like(band[:, :1]) if above is None else above
        for rows in band.split(max(1, STRIP // row), dim=1):
            yield Strip(rows, above)
            above = rows[:, -1:].clone()  # a view would keep the whole band in memory


def pack(strip: Strip) -> Packed:
    """Filter and compress a strip; needs no other strip, so it may run in any thread."""
    rows = _to_bytes(strip.rows)
    pixel = strip.rows.shape[0] * strip.rows.dtype.itemsize
    filtered = _filtered(rows, _to_bytes(strip.above), pixel).tobytes()
    # level and strategy of Pillow, for files as small as its own
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    deflated = deflate.compress(filtered) + deflate.flush(zlib.Z_SYNC_FLUSH)
    channels, height, width = strip.rows.shape
    return Packed((channels, height, width), 8 * strip.rows.dtype.itemsize, filtered, deflated)


def write_strips(
    path: Path, height: int, packed: Iterable[Packed], profile: bytes | None = None
) -> None:
    """Write a PNG file, completely or not at all.

    :param height: of the picture.
    :param packed: the picture's strips from top to bottom; no strip is taken beyond its last row.
    :param profile: the ICC profile of the colours.
    :raises ImageError: when the file cannot be written; an older file at `path` is then kept.
    :raises ValueError: when the strips have too few rows.
    """
    check, missing = zlib.adler32(b""), height
    with replacing(path) as file:
        for strip in packed:
            if missing == height:
                file.write(_head(strip, height, profile))
            file.write(_chunk(b"IDAT", strip.deflated))
            check = zlib.adler32(strip.filtered, check)
            missing -= strip.shape[1]
            if missing <= 0:
                break
        else:
            raise ValueError(f"{path}: the picture lacks {missing} rows")
        # an empty last block of deflate, then the check sum
        file.write(_chunk(b"IDAT", b"\x03\x00" + struct.pack(">I", check)))
        file.write(_chunk(b"IEND", b""))


def _head(strip: Packed, height: int, profile: bytes | None) -> bytes:
    channels, _, width = strip.shape
    sizes = struct.pack(">IIBBBBB", width, height, strip.bits, COLOUR_TYPE[channels], 0, 0, 0)
    named = b"ICC profile\0\0" + zlib.compress(profile) if profile else b""
    meaning = _chunk(b"iCCP", named) if profile else b""
    stream = b"\x78\x9c"  # the head of a zlib stream
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", sizes) + meaning + _chunk(b"IDAT", stream)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _to_bytes(rows: Tensor) -> Bytes:
    """The bytes of each row as in a PNG file: [C, h, W] -> [h, W * C * bytes of a value]."""
    values = rows.permute(1, 2, 0).contiguous().numpy()
    return values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(len(values), -1)


def _filtered(rows: Bytes, above: Bytes, pixel: int) -> Bytes:
    """Each row as differences to its neighbours, after the number of the filter.

    Of the five filters of PNG each row gets the one with the least sum of absolute differences,
    the rule that the standard advises.

    :param above: [1, width in bytes].
    :param pixel: bytes of a pixel.
    """
    up = np.concatenate([above, rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:], corner[:, pixel:] = rows[:, :-pixel], up[:, :-pixel]
    mean = (left & up) + ((left ^ up) >> 1)  # rounded down, without a ninth bit
    guesses = (np.zeros_like(rows), left, up, mean, _paeth(left, up, corner))
    differences = np.stack([rows - guess for guess in guesses])
    sizes = np.abs(differences.view(np.int8)).view(np.uint8).sum(2, dtype=np.int64)
    best = sizes.argmin(0)
    chosen = differences[best, np.arange(len(rows))]
    return np.concatenate([best.astype(np.uint8)[:, None], chosen], axis=1)


def _paeth(left: Bytes, up: Bytes, corner: Bytes) -> Bytes:
    """Of three neighbours the one that is nearest to left + up - corner."""
    a, b, c = (neighbour.astype(np.int16) for neighbour in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    first = (to_left <= to_up) & (to_left <= to_corner)
    return np.where(first, left, np.where(to_up <= to_corner, up, corner))
