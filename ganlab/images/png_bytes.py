"""PNG pictures as bytes in memory: made, cut, made smaller, and freed of all but their pixels."""

from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from ganlab.images.files import PILLOW_FAULTS, ImageError


def png_of(image: Tensor) -> bytes:
    """An image as a PNG file.

    :param image: uint8 [3 or 1, H, W].
    """
    array = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return _as_png(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))


def png_again(content: bytes, width: int, height: int) -> bytes:
    """Decode a PNG picture of this size, and encode its pixels anew, without all else in the file.

    :raises ImageError: when it is no PNG picture of this size.
    """
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            if image.size != (width, height) or getattr(image, "n_frames", 1) != 1:
                raise ImageError(f"not a picture of {width} x {height} pixels")
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except PILLOW_FAULTS as fault:
        raise ImageError(f"cannot be read as a PNG picture ({type(fault).__name__})") from None
    return _as_png(Image.fromarray(pixels))


def png_cut(content: bytes, side: int) -> bytes:
    """The middle square of a PNG picture of ours, as a PNG file."""
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        left, top = (max(0, (length - side) // 2) for length in image.size)
        return _as_png(
            image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))
        )


def png_within(content: bytes, room: tuple[int, int], most: int) -> bytes:
    """A PNG picture that a stranger may have made, made smaller to fit into width and height.

    :param most: pixels that it may have.
    :raises ImageError: when it is no PNG picture, or a larger one.
    """
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > most:
                raise ImageError(f"more than {most:,} pixels")
            small = image.convert("RGB")
    except PILLOW_FAULTS as fault:
        raise ImageError(f"cannot be read as a PNG picture ({type(fault).__name__})") from None
    small.thumbnail(room)
    return _as_png(small)


def _as_png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
