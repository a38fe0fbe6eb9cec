"""Reads and writes image files: a file becomes pixels, 8-bit RGB in most cases, or an error."""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ganlab.errors import GanlabError
from ganlab.files import whole

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
)
# a closed list, so that no file can start Ghostscript or a rarely tested decoder
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

AlphaPolicy = Literal["white", "black", "refuse"]

# errors that Pillow raises for damaged files, as found by its own fuzzer and in its decoders
_PILLOW_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(GanlabError):
    """An image or a folder of images cannot be read or written."""


def cache_folder() -> Path:
    """The folder of decoded data sets: $GANLAB_CACHE, or the user's cache folder.

    It may not exist yet. Everything in it can be deleted; it is made again when needed.
    """
    chosen = os.environ.get("GANLAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("ganlab"))


def read_image(path: Path, keep_grey: bool = False, alpha: AlphaPolicy = "white") -> Tensor:
    """Read one image file as 8-bit RGB.

    EXIF orientation is applied. Palettes are looked up; CMYK is converted without colour
    management; 16 bits become 8 by dividing by 257 and rounding (grey; Pillow itself keeps the
    high byte of 16-bit RGB). Refused: animations and pages, float or 32-bit pixels, files above
    Pillow's limit of decoded pixels.

    :param keep_grey: return one channel when the file is grey.
    :param alpha: the colour behind transparent pixels; "refuse" raises an error for images that
        have such pixels. An alpha channel that is opaque everywhere is always dropped.
    :returns: uint8 [3, H, W], or [1, H, W] for a grey file when `keep_grey`.
    :raises ImageError: with file, fault and remedy.
    """
    colour, opacity = _decode(path)
    if opacity is not None:
        if alpha == "refuse":
            raise ImageError(
                f"{path}: has transparent pixels; remove its alpha channel, or choose the colour "
                'behind it: alpha = "white" or "black".'
            )
        colour = _composite(colour, opacity, 255 if alpha == "white" else 0)
    if colour.shape[2] == 1 and not keep_grey:
        colour = colour.repeat(3, axis=2)
    return _to_tensor(colour)


def split_alpha(
    path: Path, keep_grey: bool = False, keep_16_bits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Read one image file as colour and alpha, for callers that keep the transparency.

    :param keep_grey: return one channel when the file is grey.
    :param keep_16_bits: return a grey file of 16 bits as uint16, in 0..65535.
    :returns: uint8 [3, H, W], the colours as stored, also under transparent pixels; and alpha,
        uint8 [1, H, W], 255 = opaque, or None when there is no alpha or it is opaque everywhere.
    :raises ImageError: as `read_image`.
    """
    colour, opacity = _decode(path, keep_16_bits)
    if colour.shape[2] == 1 and not keep_grey:
        colour = colour.repeat(3, axis=2)
    return _to_tensor(colour), None if opacity is None else _to_tensor(opacity)


def loses_16_bits(path: Path) -> bool:
    """Whether a file has colours of 16 bits, of which Pillow keeps the high byte only.

    :raises ImageError: when the file cannot be read as an image.
    """
    with _opened(path) as image:
        parts: list[Any] = getattr(image, "tile", [])
        return not image.mode.startswith("I") and any(";16" in str(p[3]) for p in parts)


def write_png(image: Tensor, path: Path) -> None:
    """Write an image as PNG, completely or not at all.

    :param image: uint8 [C, H, W], C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; or uint16
        [1, H, W] for a grey file of 16 bits.
    :raises ImageError: when the file cannot be written; an older file at `path` is then kept.
    """
    channels = {torch.uint8: (1, 2, 3, 4), torch.uint16: (1,)}.get(image.dtype, ())
    if image.ndim != 3 or image.shape[0] not in channels:
        raise ValueError(
            "write_png takes uint8 [1 to 4, H, W] or uint16 [1, H, W], not "
            f"{image.dtype} {tuple(image.shape)}"
        )
    array = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    with replacing(path) as file:
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, format="PNG")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Context with an open temporary file; it replaces `path` only when it is complete.

    :raises ImageError: when the disk or the rights of the folder do not allow writing.
    """
    try:
        with whole(path) as file:
            yield file
    except OSError as fault:
        raise ImageError(
            f"{path}: cannot be written ({fault.strerror or fault}); "
            "check that the folder exists, is writable and has room."
        ) from None


Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def _decode(path: Path, keep_16_bits: bool = False) -> tuple[Pixels, NDArray[np.uint8] | None]:
    """Colour [H, W, 1 or 3], and alpha [H, W, 1] when some pixel is not opaque."""
    with _opened(path) as image:
        _refuse_unfit(image, path)
        ImageOps.exif_transpose(image, in_place=True)  # else a second copy of the picture
        return _to_pixels(image, path, keep_16_bits)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Context with an open image file, in which Pillow's errors become one `ImageError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            # opening a pipe would wait for ever
            raise ImageError(f"{path}: is a pipe, a socket or a device; give an image file.")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder; give one image file.") from None
    except _PILLOW_FAULTS as fault:
        reason = str(fault).removesuffix(f" {str(path)!r}").rstrip(".") or type(fault).__name__
        raise ImageError(
            f"{path}: cannot be read as an image ({reason}); replace the file or remove it."
        ) from None


def _refuse_unfit(image: Image.Image, path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        # checked here too: Pillow only warns up to twice its limit
        raise ImageError(
            f"{path}: {image.width} x {image.height} pixels are more than {limit:,}; "
            "cut it into smaller images."
        )
    # in a JPEG with more than one picture (MPO) the first is the photo, the second depth or preview
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(
            f"{path}: holds {frames} frames or pages; save the one to use as its own file."
        )


def _to_pixels(
    image: Image.Image, path: Path, keep_16_bits: bool
) -> tuple[Pixels, NDArray[np.uint8] | None]:
    # Pillow may open a 16-bit file in mode I, which has 32 bits
    if image.mode == "F" or (image.mode == "I" and not _fits_16_bits(image)):
        raise ImageError(
            f"{path}: its pixels have mode {image.mode} (float or 32 bits), which has no fixed "
            "white; save it with 8 or 16 bits per channel."
        )
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.uint32)[:, :, None]
        if keep_16_bits:
            return wide.astype(np.uint16), None
        return ((wide + 128) // 257).astype(np.uint8), None
    if image.has_transparency_data:
        return _split(np.asarray(image.convert("RGBA")), grey=image.mode in ("1", "L", "LA", "La"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[:, :, None], None
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None


def _fits_16_bits(image: Image.Image) -> bool:
    values = np.asarray(image)
    return bool(values.min() >= 0 and values.max() <= 65535)


def _split(
    rgba: NDArray[np.uint8], grey: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    colour, alpha = rgba[:, :, : 1 if grey else 3], rgba[:, :, 3:]
    return colour, None if alpha.min() == 255 else alpha


def _composite(colour: Pixels, alpha: Pixels, behind: int) -> Pixels:
    opacity = alpha.astype(np.uint16)
    # at most 255 * 255 + 127, which still fits 16 bits
    mixed = colour * opacity + behind * (255 - opacity) + np.uint16(127)
    return (mixed // 255).astype(np.uint8)


def _to_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
