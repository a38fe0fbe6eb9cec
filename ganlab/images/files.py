"""Reads and writes image files: a file becomes pixels, 8-bit RGB in most cases, or an error."""

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ganlab.errors import GanlabError
from ganlab.files import whole
from ganlab.images.colour import Conversion, ProfileError, conversion, profile_of
from ganlab.images.deep import bytes_of, has_16_bits, is_grey_and_alpha, low_bytes, turn_bytes
from ganlab.images.source import Source
from ganlab.images.unfit import unfit

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
)
# a closed list, so that no file can start Ghostscript or a rarely tested decoder
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
AlphaPolicy = Literal["white", "black", "refuse"]

# errors that Pillow raises for damaged files, as found by its own fuzzer and in its decoders
PILLOW_FAULTS = (
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


_BAND = 2**21  # pixels that are converted at a time


class ImageError(GanlabError):
    """An image or a folder of images cannot be read or written."""


def cache_folder() -> Path:
    """The folder of decoded data sets: $GANLAB_CACHE, or the user's cache folder.

    It may not exist yet. Everything in it can be deleted; it is made again when needed.
    """
    chosen = os.environ.get("GANLAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("ganlab"))


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it was read."""

    colour: Tensor
    """uint8 or uint16, [1 or 3, H, W], as stored, also under transparent pixels."""
    alpha: Tensor | None
    """[1, H, W], of the same type, the largest value = opaque; None: opaque everywhere."""
    profile: bytes | None
    """The ICC profile of the colours; None: sRGB."""
    remark: str
    """What a user must know about the pixels, such as a conversion; "" in most cases."""


def read_image(
    path: Source,
    keep_grey: bool = False,
    alpha: AlphaPolicy = "white",
    remarks: list[str] | None = None,
) -> Tensor:
    """Read one image file as 8-bit sRGB.

    EXIF orientation is applied. Palettes are looked up. Colours with a profile become sRGB, CMYK
    without one by a simple formula. 16 bits become 8 by dividing by 257 and rounding (grey; of
    16-bit colours the high byte is taken). Refused: animations and pages, float or 32-bit pixels,
    files above Pillow's limit of decoded pixels.

    :param path: a file, or one whose content is in memory already: `ImageBytes`.
    :param keep_grey: return one channel when the file is grey.
    :param alpha: the colour behind transparent pixels; "refuse" raises an error for images that
        have such pixels. An alpha channel that is opaque everywhere is always dropped.
    :param remarks: a list that gets what a user must know about the pixels, such as a conversion.
    :returns: uint8 [3, H, W], or [1, H, W] for a grey file when `keep_grey`.
    :raises ImageError: with file, fault and remedy.
    """
    picture = read_picture(path)
    colour = picture.colour
    if picture.alpha is not None:
        if alpha == "refuse":
            raise ImageError(
                f"{path}: has transparent pixels; remove its alpha channel, or choose the colour "
                'behind it: alpha = "white" or "black".'
            )
        colour = _composite(colour, picture.alpha, 255 if alpha == "white" else 0)
    if remarks is not None and picture.remark:
        remarks.append(picture.remark)
    return colour if keep_grey or len(colour) == 3 else colour.repeat(3, 1, 1)


def decoded_size(path: Source) -> int:
    """Bytes of an image as `read_image` returns it in colour, by the head of its file; no pixel is
    decoded. 0 for what is no image."""
    try:
        with _opened(path) as image:
            return 3 * image.width * image.height
    except ImageError:
        return 0


def split_alpha(
    path: Path, keep_grey: bool = False, keep_16_bits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Read one image file as sRGB colour and alpha, for callers that keep the transparency.

    :param keep_grey: return one channel when the file is grey.
    :param keep_16_bits: return a file of 16 bits as uint16, in 0..65535, unless its colours must be
        converted.
    :returns: uint8 [3, H, W], the colours as stored, also under transparent pixels; and alpha,
        uint8 [1, H, W], 255 = opaque, or None when there is no alpha or it is opaque everywhere.
    :raises ImageError: as `read_image`.
    """
    picture = read_picture(path, keep_16_bits=keep_16_bits)
    colour = picture.colour
    return colour if keep_grey or len(colour) == 3 else colour.repeat(3, 1, 1), picture.alpha


def read_picture(path: Source, keep_16_bits: bool = False, keep_profile: bool = False) -> Picture:
    """Read one image file as it is: grey or colour, with alpha.

    :param keep_16_bits: return a file of 16 bits as uint16, unless its colours must be converted.
    :param keep_profile: return grey and RGB colours as stored, with their profile. CMYK becomes
        sRGB all the same.
    :raises ImageError: as `read_image`.
    """
    with _opened(path) as image:
        if reason := unfit(image, path):
            raise ImageError(f"{path}: {reason}")
        found = _meaning(image, path, keep_profile)
        is_wide, is_grey = has_16_bits(image), image.mode.startswith("I")
        keep_16_bits = keep_16_bits and is_wide and found.convert is None
        is_deep = keep_16_bits and not is_grey and low_bytes(image) is not None
        if not is_deep:
            colour, alpha = _pixels_of(image, path, keep_16_bits, found.convert)
    if is_deep:
        colour, alpha = _deep_pixels(path)
    told = "16 bits a channel read as 8" if is_wide and colour.dtype == torch.uint8 else ""
    return Picture(colour, alpha, found.profile, "; ".join(filter(None, (found.remark, told))))


def on_white(picture: Picture) -> Picture:
    """A picture of 8 bits with white behind its transparent parts, and without alpha."""
    if picture.alpha is None:
        return picture
    told = "white behind its transparent parts"
    remark = "; ".join(filter(None, (picture.remark, told)))
    return Picture(_composite(picture.colour, picture.alpha, 255), None, picture.profile, remark)


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


@contextmanager
def _opened(path: Source) -> Iterator[Image.Image]:
    """Context with an open image file, in which Pillow's errors become one `ImageError`."""
    try:
        if isinstance(path, Path):
            if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
                # opening a pipe would wait for ever
                raise ImageError(f"{path}: is a pipe, a socket or a device; give an image file.")
            file: Path | IO[bytes] = path
        else:
            file = path.open()
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder; give one image file.") from None
    except PILLOW_FAULTS as fault:
        if _is_gif(path):
            raise ImageError(
                f"{path}: cannot be read as an image (it is a GIF); save it as PNG, or, if it "
                "moves, make a video of it: ffmpeg -i IN.gif OUT.mp4"
            ) from None
        reason = str(fault).removesuffix(f" {str(path)!r}").rstrip(".") or type(fault).__name__
        reason = re.sub(r" <_io\.BytesIO .*>$", "", reason)
        raise ImageError(
            f"{path}: cannot be read as an image ({reason}); replace the file or remove it."
        ) from None


def _is_gif(path: Source) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(4) == b"GIF8"
    return False


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What the colours of a picture are, and what becomes of them."""

    convert: Conversion | None
    """Applied to the pixels; None: they stay as they are."""
    profile: bytes | None
    remark: str


def _meaning(image: Image.Image, path: Source, keep_profile: bool) -> _Meaning:
    is_cmyk = image.mode == "CMYK"
    is_grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    guess = "CMYK without a colour profile, converted by a simple formula" if is_cmyk else ""
    try:
        profile = profile_of(image, path)
        if profile is None:
            return _Meaning(None, None, guess)
        found = conversion(profile, 4 if is_cmyk else 1 if is_grey else 3)
    except ProfileError as fault:
        return _Meaning(None, None, f"its colour profile cannot be used and is left out ({fault})")
    except ImportError:
        raise ImageError(
            f"{path}: has a colour profile, and this Pillow was built without LittleCMS; install "
            "Pillow from its wheels, or save the picture as sRGB without a profile."
        ) from None
    if keep_profile and found.may_stay and not is_cmyk:
        return _Meaning(None, profile, "")
    if found.transform is None:
        return _Meaning(None, None, "")
    return _Meaning(found, None, f"colours converted from {found.name!r} to sRGB")


def _pixels_of(
    image: Image.Image, path: Source, keep_16_bits: bool, convert: Conversion | None
) -> tuple[Tensor, Tensor | None]:
    """Colour [1 or 3, H, W], and alpha [1, H, W] when some pixel is not opaque."""
    colour: Tensor | None = None
    alpha: Tensor | None = None
    for top, part in _bands(image):
        pixels, opacity = _narrowed(part, path, keep_16_bits, convert is not None)
        if convert:
            pixels = convert(pixels.astype(np.uint8, copy=False))
        if colour is None:
            colour = _empty(image, pixels)
            alpha = None if opacity is None else _empty(image, opacity)
        _fill(colour, top, pixels)
        if alpha is not None and opacity is not None:
            _fill(alpha, top, opacity)
    assert colour is not None
    return colour, None if alpha is None or int(alpha.min()) == 255 else alpha


def _deep_pixels(path: Source) -> tuple[Tensor, Tensor | None]:
    """Colour and alpha, uint16, of a file whose low bytes Pillow can read too."""
    values: Tensor | None = None
    for is_low in (False, True):
        with _opened(path) as image:
            is_grey = is_grey_and_alpha(image)
            if is_low:
                turn_bytes(image)
            for top, part in _bands(image):
                pixels = bytes_of(part, is_grey, is_low)
                values = _empty(image, pixels) if values is None else values
                rows = values[:, top : top + len(pixels)].numpy()
                rows |= pixels.transpose(2, 0, 1)
    assert values is not None
    if len(values) == 3:
        return values, None
    colour, alpha = values[:-1], values[-1:]
    return colour, None if int(alpha.int().min()) == 65535 else alpha


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in pieces of whole rows, so that no second copy of it is made."""
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    step = max(1, _BAND // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield top, image.crop((0, top, image.width, bottom))


def _empty(image: Image.Image, pixels: Pixels) -> Tensor:
    kind = torch.uint16 if pixels.dtype == np.uint16 else torch.uint8
    return torch.zeros(pixels.shape[2], image.height, image.width, dtype=kind)


def _fill(picture: Tensor, top: int, pixels: Pixels) -> None:
    picture[:, top : top + len(pixels)].numpy()[:] = pixels.transpose(2, 0, 1)


def _narrowed(
    image: Image.Image, path: Source, keep_16_bits: bool, keep_cmyk: bool
) -> tuple[Pixels, NDArray[np.uint8] | None]:
    """Colour [h, W, 1, 3 or 4 (CMYK)], and alpha [h, W, 1] when the file has any."""
    # Pillow may open a 16-bit file in mode I, which has 32 bits
    if image.mode == "F" or (image.mode == "I" and not _fits_16_bits(image)):
        raise ImageError(
            f"{path}: its pixels have mode {image.mode} (float or 32 bits), which has no fixed "
            "white; save it with 8 or 16 bits per channel."
        )
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.uint16)[:, :, None]
        return wide if keep_16_bits else ((wide.astype(np.uint32) + 128) // 257).astype(
            np.uint8
        ), None
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        is_grey = image.mode in ("1", "L", "LA", "La")
        return rgba[:, :, : 1 if is_grey else 3], rgba[:, :, 3:]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[:, :, None], None
    if image.mode == "RGB" or (image.mode == "CMYK" and keep_cmyk):
        return np.asarray(image), None
    return np.asarray(image.convert("RGB")), None


def _fits_16_bits(image: Image.Image) -> bool:
    values = np.asarray(image)
    return bool(values.min() >= 0 and values.max() <= 65535)


def _composite(colour: Tensor, alpha: Tensor, behind: int) -> Tensor:
    """Colours over a background, rounded."""
    mixed = torch.empty_like(colour)
    for made, part, opacity in zip(
        *(t.split(max(1, _BAND // t.shape[2]), 1) for t in (mixed, colour, alpha)), strict=True
    ):
        wide = opacity.numpy().astype(np.uint16)
        # at most 255 * 255 + 127, which still fits 16 bits
        sums = part.numpy() * wide + np.uint16(behind) * (255 - wide) + np.uint16(127)
        made.numpy()[:] = sums // 255
    return mixed
