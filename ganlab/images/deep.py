"""Colours of 16 bits, read by Pillow in two passes.

Pillow has no picture of 16-bit colours: of each value it keeps the high byte. When it is told that
the two bytes lie in the other order, it keeps the low one. Read twice, a file gives both.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GREY_AND_ALPHA = "LA;16B"
_NATIVE_TURNED = "16B" if sys.byteorder == "little" else "16L"
_TURNED = {
    f"{mode};{order}": f"{mode};{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("16B", "16L"), ("16L", "16B"), ("16N", _NATIVE_TURNED))
} | {_GREY_AND_ALPHA: "RGBA"}  # whose four bytes are those of grey and alpha


def has_16_bits(image: Image.Image) -> bool:
    """Whether an open file has 16 bits for each value, as far as Pillow says."""
    return image.mode.startswith("I") or any(";16" in kind for kind in _kinds(image))


def low_bytes(image: Image.Image) -> list[str] | None:
    """The layouts with which Pillow reads the low bytes of 16-bit colours; None if it cannot."""
    kinds = _kinds(image)
    by_key = image.mode == "RGB" and image.has_transparency_data  # one colour is transparent
    if not kinds or by_key or any(kind not in _TURNED for kind in kinds):
        return None
    return [_TURNED[kind] for kind in kinds]


def turn_bytes(image: Image.Image) -> None:
    """Have an open file decoded to its low bytes."""
    turned = low_bytes(image)
    assert turned is not None
    parts: Any = image
    parts.tile = [
        part._replace(args=kind if isinstance(part.args, str) else (kind, *part.args[1:]))
        for part, kind in zip(parts.tile, turned, strict=True)
    ]


def bytes_of(image: Image.Image, is_grey: bool, is_low: bool) -> NDArray[np.uint16]:
    """The high or low bytes of a decoded file's values at their place in 16 bits, [h, W, C].

    :param is_grey: the file has grey and alpha.
    """
    found = np.asarray(image).astype(np.uint16)
    if is_grey:  # high bytes: L, L, L, A; all bytes: L, L, A, A
        found = found[:, :, [1, 3] if is_low else [0, 3]]
    return found if is_low else found * np.uint16(256)


def is_grey_and_alpha(image: Image.Image) -> bool:
    """Whether an open file of 16 bits, that was not turned, has grey and alpha."""
    return _kinds(image) == [_GREY_AND_ALPHA]


def _kinds(image: Image.Image) -> list[str]:
    """How the parts of an open file are laid out, such as "RGB;16B"."""
    parts: list[Any] = getattr(image, "tile", [])
    found = [part[3] if isinstance(part[3], str) else (part[3] or [""])[0] for part in parts]
    return [str(kind) for kind in found]
