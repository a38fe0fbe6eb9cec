"""Sample pictures: a strip of crops that shows what the generator makes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ganlab.images.files import write_png
from ganlab.plugin import EvaluatedImage

STRIP_SIDE = 128  # side of a crop, in HR pixels
STRIP_IMAGES = 6
COLUMNS = ("LR, nearest", "bicubic", "SR", "HR")


def write_samples(images: Sequence[EvaluatedImage], scale: int, path: Path) -> None:
    """Write the strip of the first images as a PNG file."""
    write_png(strip(images[:STRIP_IMAGES], scale), path)


def strip(images: Sequence[EvaluatedImage], scale: int) -> Tensor:
    """A picture of fixed crops, one row per image: LR by nearest | bicubic | SR | HR.

    :returns: uint8 [3, H, W].
    """
    from torchvision.utils import make_grid  # takes a second, and is not needed at the start

    cells = []
    for item in images:
        height, width = item.hr.shape[-2:]
        side = min(STRIP_SIDE, height, width) // scale * scale
        top, left = ((s - side) // 2 // scale * scale for s in (height, width))
        nearest = item.lr.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        for picture in (nearest, item.bicubic, item.sr, item.hr.expand(3, -1, -1)):
            cell = torch.full((3, STRIP_SIDE, STRIP_SIDE), 255, dtype=torch.uint8)
            cell[:, :side, :side] = picture[:, top : top + side, left : left + side]
            cells.append(cell)
    grid = make_grid(cells, nrow=len(COLUMNS), padding=4, pad_value=255)
    return torch.cat([_header(grid.shape[-1]), grid], dim=1)


def _header(width: int) -> Tensor:
    """The names of the columns above a strip."""
    image = Image.new("L", (width, 18), 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12)
    for index, name in enumerate(COLUMNS):
        draw.text((4 + index * (STRIP_SIDE + 4), 2), name, fill=0, font=font)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, 18, width).expand(3, -1, -1)
