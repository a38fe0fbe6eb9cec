"""A generator applied to images of any size, tile by tile, without seams."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def upscale(
    generator: Callable[[Tensor], Tensor],
    images: Tensor,
    scale: int,
    tile: int = 256,
    overlap: int = 16,
    multiple: int = 8,
) -> Tensor:
    """Enlarge images by the generator, in tiles that fit into memory.

    The right and bottom edge pixels are repeated up to a multiple of `multiple`, and what was
    made of them is cut off again, so a network that halves its input needs no even sizes. Every
    tile sees `overlap` more pixels than it is kept for, on each side that is not an edge of the
    image. A network whose receptive field reaches no further gives the same numbers as in one
    piece; one that reaches further gives a difference that fades with the distance. An image
    that fits into one tile is never cut. Neither clamped nor rounded; no gradient.

    :param generator: a module in eval mode, from [N, C, h, w] to [N, c, scale h, scale w].
    :param images: LR, [N, C, h, w], at least 1x1, on the device of the generator.
    :param tile: the largest side the generator is shown, in LR pixels; rounded down to a
        multiple of `multiple`.
    :param overlap: in LR pixels.
    :param multiple: of the sides that the generator takes; 1 for one that takes any. Tiles begin
        at multiples of it.
    :returns: [N, c, scale h, scale w].
    :raises ValueError: when 2 overlap is no multiple of `multiple`, or not smaller than a tile.
    """
    tile -= tile % multiple
    if 2 * overlap % multiple or not 0 <= 2 * overlap < tile:
        raise ValueError(
            f"twice the overlap of {overlap} must be a multiple of {multiple} and smaller than "
            f"the tile, which is {tile}: make the tile larger"
        )
    height, width = images.shape[-2:]
    images = F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    result: Tensor | None = None
    for top in _starts(images.shape[-2], tile, overlap):
        for left in _starts(images.shape[-1], tile, overlap):
            made = generator(images[..., top : top + tile, left : left + tile])
            if result is None:
                size = [scale * side for side in images.shape[-2:]]
                result = made.new_empty(*made.shape[:2], *size)
            # the far margins that this tile leaves behind are overwritten by the next tiles
            margin_y, margin_x = (scale * overlap if start else 0 for start in (top, left))
            y, x = scale * top + margin_y, scale * left + margin_x
            kept = made[..., margin_y:, margin_x:]
            result[..., y : y + kept.shape[-2], x : x + kept.shape[-1]] = kept
    assert result is not None
    return result[..., : scale * height, : scale * width]


def _starts(side: int, tile: int, overlap: int) -> range:
    """Where tiles begin along a side: they cover it, each 2 overlap over the one before."""
    step = tile - 2 * overlap
    return range(0, max(side - 2 * overlap, 1), step)
