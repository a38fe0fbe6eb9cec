"""What the numbers of a picture mean: its colour profile, and the conversion to sRGB.

A picture may name its colours in several ways: an ICC profile (PNG, JPEG, WebP, TIFF), the chunks
cICP or gAMA and cHRM of a PNG, or the EXIF entry with which cameras say "Adobe RGB". Here all
become an ICC profile. LittleCMS, which is a part of Pillow, converts. ICC.1:2022 has the format of
profiles, www.w3.org/TR/png-3 that of the chunks, ITU-T H.273 the numbers of cICP.
"""

import io
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganlab.images.source import Source

Bytes = NDArray[np.uint8]

SAME = 2  # levels of 8 bits: a profile that differs less from sRGB is taken for sRGB
_CHUNKS = 1000  # that are looked through in a PNG file
_ROWS = 2**22  # pixels that are converted at a time
_D65 = (0.3127, 0.3290)
_SRGB = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_P3 = (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_BT2020 = (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
_ADOBE = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_PRIMARIES = {1: _SRGB, 9: _BT2020, 12: _P3}  # of cICP
# gamma, and a, b, c, d of ICC's parametric curve of type 3
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES = {1: _BT709_CURVE, 4: (2.2,), 6: _BT709_CURVE, 8: (1.0,), 13: _SRGB_CURVE,
           14: _BT709_CURVE, 15: _BT709_CURVE}  # fmt: skip


class ProfileError(ValueError):
    """A colour profile that cannot be used for its picture."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The way from the colours of a profile to sRGB."""

    name: str
    transform: Any
    """Of LittleCMS; None when the colours are sRGB already."""
    may_stay: bool = True
    """Whether a PNG of such pixels may hold the profile: a grey one holds no profile of RGB."""
    levels: Bytes | None = None
    """Of grey pictures: the sRGB level of each level, [256]."""

    def __call__(self, pixels: Bytes) -> Bytes:
        """sRGB of pixels uint8 [H, W, 1, 3 or 4 (CMYK)]: [H, W, 1 or 3]."""
        if self.transform is None:
            return pixels
        if self.levels is not None:
            return self.levels[pixels]
        made = np.empty((*pixels.shape[:2], 3), np.uint8)
        step = max(1, _ROWS // pixels.shape[1])
        for top in range(0, len(pixels), step):
            made[top : top + step] = _applied(self.transform, pixels[top : top + step])
        return made


def profile_of(image: Image.Image, path: Source) -> bytes | None:
    """The ICC profile of an open picture, embedded or made from what it says about its colours.

    :returns: None for a picture that says nothing, or says that it is sRGB.
    :raises ProfileError: when it has colours of another kind than those that are known here.
    """
    if image.format == "PNG" and (code := _chunk(path, b"cICP")):
        return _of_code(code)
    embedded: bytes | None = image.info.get("icc_profile")
    if embedded:
        return embedded
    if image.format == "PNG" and "srgb" not in image.info:
        return _of_chunks(image.info.get("gamma"), image.info.get("chromaticity"))
    return made_profile("Adobe RGB (1998)", _ADOBE, (563 / 256,)) if _is_adobe(image) else None


@lru_cache(maxsize=16)
def conversion(profile: bytes, channels: int) -> Conversion:
    """How pixels with a profile become sRGB: relative colorimetric, with black point compensation.

    :param channels: of the pixels: 1 grey, 3 RGB, 4 CMYK.
    :raises ProfileError: when the profile is damaged, or is not for such pixels.
    :raises ImportError: when Pillow was built without LittleCMS.
    """
    from PIL import ImageCms  # imported late, for few pictures have a profile

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        name = ImageCms.getProfileDescription(source).strip()
    except (OSError, ImageCms.PyCMSError) as fault:
        raise ProfileError(str(fault)) from None
    name = "".join(c for c in name if c.isprintable())[:60]
    if space not in {1: ("GRAY", "RGB"), 3: ("RGB",), 4: ("CMYK",)}[channels]:
        raise ProfileError(f"{name!r} is for {space} pixels")
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[space]
    try:
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        if channels == 1:  # 256 levels only; the quick way is 10 levels off in the dark
            flags |= ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, flags,
        )  # fmt: skip
        return _measured(name, transform, mode, channels)
    except (OSError, ValueError, ImageCms.PyCMSError) as fault:
        raise ProfileError(str(fault)) from None


def _measured(name: str, transform: Any, mode: str, channels: int) -> Conversion:
    """The conversion; one that changes no colour by more than `SAME` levels is none."""
    if channels == 1:
        ramp = np.arange(256, dtype=np.uint8)[None, :, None]
        grey = _applied(transform, ramp if mode == "L" else ramp.repeat(3, 2))[0, :, 1]
        moves = np.abs(grey.astype(int) - np.arange(256)).max() > SAME
        return Conversion(name, transform if moves else None, mode == "L", grey)
    if channels == 3:
        side = np.linspace(0, 255, 18).astype(np.uint8)
        grid = np.stack(np.meshgrid(side, side, side), -1).reshape(1, -1, 3)
        if np.abs(_applied(transform, grid).astype(int) - grid).max() <= SAME:
            return Conversion(name, None)
    return Conversion(name, transform)


def _applied(transform: Any, pixels: Bytes) -> Bytes:
    from PIL import ImageCms

    mode = {1: "L", 3: "RGB", 4: "CMYK"}[pixels.shape[2]]
    flat = np.ascontiguousarray(pixels[:, :, 0] if mode == "L" else pixels)
    height, width = flat.shape[:2]
    image = Image.frombuffer(mode, (width, height), flat, "raw", mode, 0, 1)
    return np.asarray(ImageCms.applyTransform(image, transform))


def made_profile(
    name: str, white_and_primaries: tuple[float, ...], curve: tuple[float, ...]
) -> bytes:
    """An ICC profile of three primaries and one curve.

    :param white_and_primaries: x and y of white, red, green and blue.
    :param curve: a gamma, or the five numbers of a parametric curve of type 3.
    :raises ProfileError: when there are no such colours.
    """
    matrix = _adapted(np.array(white_and_primaries, float).reshape(4, 2))
    kind, numbers = (0, curve) if len(curve) == 1 else (3, curve)
    tone = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, numbers))
    tags = {b"desc": _text(name), b"cprt": _text("none"), b"wtpt": _xyz((0.9642, 1, 0.8249))}
    for number, colour in enumerate(b"rgb"):
        tags[bytes([colour]) + b"XYZ"] = _xyz(matrix[:, number])
        tags[bytes([colour]) + b"TRC"] = tone
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        padded = value + b"\0" * (-len(value) % 4)
        table += key + struct.pack(">II", start + len(body), len(value))
        body += padded
    head = b"\0\0\0\0" + struct.pack(">I", 0x04300000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(map(_fixed, (0.9642, 1, 0.8249))) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole) + 4) + whole


def _adapted(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """XYZ of red, green and blue as columns, adapted to D50 by Bradford's matrix."""
    if not (np.isfinite(xy).all() and (xy[:, 1] > 0).all()):
        raise ProfileError("its primaries are no colours")
    xyz = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])
    white, primaries = xyz[:, 0], xyz[:, 1:]
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    try:
        matrix = primaries * np.linalg.solve(primaries, white)
        ratio = (bradford @ [0.9642, 1, 0.8249]) / (bradford @ white)
        found = np.linalg.solve(bradford, ratio[:, None] * (bradford @ matrix))
    except np.linalg.LinAlgError:
        found = np.full((3, 3), np.inf)
    if not (np.abs(found) < 32_000).all():
        raise ProfileError("its primaries are no colours")
    return found


def _fixed(number: float) -> bytes:
    return struct.pack(">i", round(number * 65536))


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _text(text: str) -> bytes:
    code = text.encode("utf-16-be")
    return (
        b"mluc\0\0\0\0"
        + struct.pack(">II", 1, 12)
        + b"enUS"
        + struct.pack(">II", len(code), 28)
        + code
    )


def _of_code(code: bytes) -> bytes | None:
    primaries, curve = _PRIMARIES.get(code[0]), _CURVES.get(code[1])
    if primaries is None or curve is None:
        raise ProfileError(f"the colours of cICP {[*code[:4]]} are not known")
    is_srgb = primaries is _SRGB and curve is _SRGB_CURVE
    return None if is_srgb else made_profile(f"cICP {code[0]}, {code[1]}", primaries, curve)


def _of_chunks(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """Of gAMA and cHRM. Most files have those of sRGB: 1/2.2, and primaries rounded somehow."""
    # with gAMA alone, 1/2.2 means sRGB
    is_gamma = gamma is None or abs(gamma - 1 / 2.2) < 0.005
    is_srgb = (
        chromaticity is None
        or max(abs(a - b) for a, b in zip(chromaticity, _SRGB, strict=True)) < 0.002
    )
    if is_gamma and is_srgb:
        return None
    if gamma is not None and not 0.05 < gamma < 20:
        raise ProfileError(f"its gamma of {gamma:g} is none")
    curve = _SRGB_CURVE if gamma is None else (1 / gamma,)
    return made_profile("gAMA and cHRM", chromaticity or _SRGB, curve)


def _is_adobe(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB: "uncalibrated", and the DCF option file R03."""
    with suppress(Exception):  # EXIF of any kind of damage; then it says nothing
        exif = image.getexif()
        if not exif:
            return False
        details = exif.get_ifd(0x8769)
        index = exif.get_ifd(0xA005).get(1, "")
        return details.get(0xA001) == 2 or str(index).startswith("R03")
    return False


def _chunk(path: Source, kind: bytes) -> bytes | None:
    """The first chunk of a kind before the pixels of a PNG file."""
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(_CHUNKS):
            if len(head := file.read(8)) < 8:
                return None
            length, name = struct.unpack(">I4s", head)
            if name == kind:
                return file.read(length) if length == 4 else None
            if name in (b"IDAT", b"IEND"):
                return None
            file.seek(length + 4, 1)
    return None
