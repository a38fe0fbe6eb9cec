"""Applies a generator to images of any size, tile by tile, without seams."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Item = TypeVar("Item")


@torch.no_grad()
def upscale(
    generator: Callable[[Tensor], Tensor],
    images: Tensor,
    scale: int,
    tile: int = 256,
    overlap: int = 16,
    multiple: int = 8,
) -> Tensor:
    """Enlarge images with the generator, in tiles that fit into memory.

    The right and bottom edge pixels are repeated up to a multiple of `multiple`, and their part of
    the result is cut off again, so a network that halves its input does not need even sizes. On
    each side that is not an edge of the image, a tile has `overlap` more pixels than are kept. A
    network whose receptive field reaches no further gives the same numbers as for the whole image;
    one that reaches further gives a difference that fades with the distance. An image that fits
    into one tile is never cut. Tiles of equal size form batches, up to the pixels of one whole
    tile. So the generator must not mix the images of a batch, and `tile` limits the memory for any
    number of images. The result is neither clamped nor rounded, and has no gradient.

    :param generator: a module in eval mode, from [N, C, h, w] to [N, c, scale h, scale w].
    :param images: LR, [N, C, h, w], at least 1x1, on the device of the generator.
    :param tile: the largest side of the generator's input, in LR pixels; rounded down to a
        multiple of `multiple`.
    :param overlap: in LR pixels.
    :param multiple: the generator takes sides that are multiples of this number; 1 means any
        side. Tiles begin at multiples of it.
    :returns: [N, c, scale h, scale w].
    :raises ValueError: when 2 overlap is not a multiple of `multiple`, or not smaller than a tile.
    """
    tile -= tile % multiple
    if 2 * overlap % multiple or not 0 <= 2 * overlap < tile:
        raise ValueError(
            f"twice the overlap of {overlap} must be a multiple of {multiple} and smaller than "
            f"the tile, which is {tile}: make the tile larger"
        )
    height, width = images.shape[-2:]
    images = F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    shape = images.shape[-2:]

    def size(corner: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(tile, side - start) for side, start in zip(shape, corner[1:], strict=True))

    starts = (_starts(side, tile, overlap) for side in shape)
    # whole tiles, then those at the right edge, those at the bottom, the last corner
    corners = sorted(product(range(len(images)), *starts), key=size, reverse=True)
    result: Tensor | None = None
    for several in of_one_size(corners, size, tile * tile):
        made = generator(
            torch.stack([images[n, :, y : y + tile, x : x + tile] for n, y, x in several])
        )
        if result is None:
            result = made.new_empty(len(images), made.shape[1], *(scale * side for side in shape))
        for (number, top, left), picture in zip(several, made, strict=True):
            # the right and bottom margins of this tile are later overwritten by its neighbours
            margin_y, margin_x = (scale * overlap if start else 0 for start in (top, left))
            y, x = scale * top + margin_y, scale * left + margin_x
            kept = picture[:, margin_y:, margin_x:]
            result[number, :, y : y + kept.shape[-2], x : x + kept.shape[-1]] = kept
    assert result is not None
    return result[..., : scale * height, : scale * width]


def of_one_size(
    items: Iterable[Item], size: Callable[[Item], tuple[int, ...]], pixels: int
) -> Iterator[list[Item]]:
    """Groups of consecutive items of one size, with up to `pixels` pixels; at least one item each.

    When an item raises an error, the items before it are yielded first.

    :param items: taken one by one, as they are needed.
    :param size: (..., height, width) of an item.
    """
    several: list[Item] = []
    failure: Exception | None = None
    try:
        for item in items:
            *_, height, width = shape = size(item)
            full = (len(several) + 1) * height * width > pixels
            if several and (full or shape != size(several[0])):
                yield several
                several = []
            several.append(item)
    except Exception as error:
        failure = error
    if several:
        yield several
    if failure is not None:
        raise failure


def _starts(side: int, tile: int, overlap: int) -> range:
    """Where tiles begin along a side: they cover it, and neighbours share 2 overlap pixels."""
    step = tile - 2 * overlap
    return range(0, max(side - 2 * overlap, 1), step)
