"""Writes JPEG and WebP files by Pillow, from strips; the whole picture is in memory in 8 bits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ganlab.images.files import ImageError, replacing
from ganlab.images.png import Strip

QUALITY = 95
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe")
_LARGEST = {"JPEG": 65_535, "WEBP": 16_383}
"""Pixels of a side that the format can hold."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"subsampling": "4:4:4", "optimize": True},  # colours in full resolution
    "WEBP": {"method": 4},
}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def format_of(path: Path) -> str:
    """The format that the suffix of a file to write stands for: JPEG, WEBP or PNG."""
    if path.suffix.lower() in JPEG_SUFFIXES:
        return "JPEG"
    return "WEBP" if path.suffix.lower() == ".webp" else "PNG"


def require_room(path: Path, height: int, width: int) -> None:
    """Check that a picture fits into the format of its file.

    :raises ImageError: when a side is too long.
    """
    most = _LARGEST.get(kind := format_of(path))
    if most and max(height, width) > most:
        raise ImageError(
            f"{path}: {width} x {height} pixels; {kind} holds at most {most:,} a side; write PNG."
        )


def write_lossy(
    path: Path,
    size: tuple[int, int],
    strips: Iterable[Strip],
    quality: int,
    profile: bytes | None = None,
) -> None:
    """Write a JPEG or WebP file, by its suffix; completely or not at all.

    :param size: height and width of the picture.
    :param strips: uint8, from top to bottom; no strip is taken beyond the last row.
    :param quality: 1 to 100.
    :param profile: the ICC profile of the colours.
    :raises ImageError: when the file cannot be written; an older file at `path` is then kept.
    """
    height, width = size
    canvas: Image.Image | None = None
    top = 0
    for strip in strips:
        mode = _MODES[strip.rows.shape[0]]
        if canvas is None:
            canvas = Image.new(mode, (width, height))
        rows = strip.rows.permute(1, 2, 0).contiguous().numpy()
        canvas.paste(Image.fromarray(rows[:, :, 0] if mode == "L" else rows), (0, top))
        top += len(rows)
        if top >= height:
            break
    assert canvas is not None
    kind = format_of(path)
    known = {"icc_profile": profile} if profile else {}
    with replacing(path) as file:
        canvas.save(file, format=kind, quality=quality, **_OPTIONS[kind], **known)
