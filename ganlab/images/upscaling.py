"""Applies a generator to images of any size, tile by tile, without seams."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from ganlab.images.resampling import resize, to_float, to_uint8, to_uint16

Item = TypeVar("Item")
Images = Tensor | Sequence[Tensor]
MULTIPLE = 8  # of the sides of a generator's input, for networks that halve it up to three times
BICUBIC_SIDE = 2048  # pixels of the result that `bicubic` makes at once, in float


def upscale(
    generator: Callable[[Tensor], Tensor],
    images: Images,
    scale: int,
    tile: int = 256,
    overlap: int = 16,
    multiple: int = MULTIPLE,
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

    The result is held as the generator gives it. A function that also rounds to 8 bits makes it
    a quarter as large as one that gives float32.

    :param generator: from [N, C, h, w] to [N, c, scale h, scale w]; a module in eval mode.
    :param images: LR, [N, C, h, w] or N of [C, h, w], at least 1x1, of any dtype and on any
        device that the generator takes.
    :param tile: the largest side of the generator's input, in LR pixels; rounded down to a
        multiple of `multiple`.
    :param overlap: in LR pixels.
    :param multiple: the generator takes sides that are multiples of this number; 1 means any
        side. Tiles begin at multiples of it.
    :returns: [N, c, scale h, scale w].
    :raises ValueError: when 2 overlap is not a multiple of `multiple`, or not smaller than a tile.
    """
    tiles = _Tiles(images, scale, tile, overlap, multiple)
    return tiles.joined(generator, tiles.tops)


def bands(
    generator: Callable[[Tensor], Tensor],
    images: Images,
    scale: int,
    tile: int = 256,
    overlap: int = 16,
    multiple: int = MULTIPLE,
) -> Iterator[Tensor]:
    """The result of `upscale` in parts: one row of tiles after the other, from top to bottom.

    Bands begin at the same rows for every `multiple` that divides `tile` and twice `overlap`.

    :yields: [N, c, rows, scale w], on the device of the generator's answers.
    :raises ValueError: as `upscale`.
    """
    tiles = _Tiles(images, scale, tile, overlap, multiple)
    for top in tiles.tops:
        yield tiles.joined(generator, [top])


def bicubic(images: Tensor, scale: int) -> Tensor:
    """Images enlarged by bicubic interpolation, in 8 bits; large ones in tiles.

    :param images: float in 0..1 or uint8, [N, C, h, w].
    :returns: uint8 [N, C, scale h, scale w].
    """
    return upscale(bicubic_generator(scale), images, scale, BICUBIC_SIDE // scale, multiple=1)


def bicubic_generator(scale: int, is_deep: bool = False) -> Callable[[Tensor], Tensor]:
    """Bicubic enlargement as a generator: float or integers [N, C, h, w] to uint8.

    :param is_deep: to uint16.
    """
    rounded = to_uint16 if is_deep else to_uint8

    def enlarge(images: Tensor) -> Tensor:
        size = (scale * images.shape[-2], scale * images.shape[-1])
        return rounded(resize(images if images.is_floating_point() else to_float(images), size))

    return enlarge


class _Tiles:
    """Where tiles lie in images of one size."""

    def __init__(self, images: Images, scale: int, tile: int, overlap: int, multiple: int) -> None:
        self.images, self.scale, self.overlap = images, scale, overlap
        self.tile = tile - tile % multiple
        if 2 * overlap % multiple or not 0 <= 2 * overlap < self.tile:
            raise ValueError(
                f"twice the overlap of {overlap} must be a multiple of {multiple} and smaller "
                f"than the tile, which is {self.tile}: make the tile larger"
            )
        self.height, self.width = images[0].shape[-2:]
        self.padded = (self.height + -self.height % multiple, self.width + -self.width % multiple)
        self.tops, self.lefts = (self._starts(side) for side in self.padded)

    @torch.no_grad()
    def joined(self, generator: Callable[[Tensor], Tensor], tops: Sequence[int]) -> Tensor:
        """The part of the result that the rows of tiles at `tops`, which are neighbours, make."""
        # whole tiles, then those at the right edge, those at the bottom, the last corner
        corners = sorted(
            product(range(len(self.images)), tops, self.lefts), key=self._size, reverse=True
        )
        first, last = self._rows(tops[0])[0], self._rows(tops[-1])[1]
        result: Tensor | None = None
        for several in of_one_size(corners, self._size, self.tile * self.tile):
            made = generator(torch.stack([self._cut(*corner) for corner in several]))
            if result is None:
                size = (self.scale * (last - first), self.scale * self.width)
                result = made.new_empty(len(self.images), made.shape[1], *size)
            for (number, top, left), picture in zip(several, made, strict=True):
                self._lay(picture, result[number], top, left, first)
        assert result is not None
        return result

    def _lay(self, picture: Tensor, result: Tensor, top: int, left: int, first: int) -> None:
        """Copy the kept part of a tile to its place in a result that begins at row `first`."""
        begin, end = self._rows(top)
        margin = self.overlap if left else 0
        # the right margin of this tile is later overwritten by its neighbour
        kept = picture[
            :,
            self.scale * (begin - top) : self.scale * (end - top),
            self.scale * margin : self.scale * (self.width - left),
        ]
        y, x = self.scale * (begin - first), self.scale * (left + margin)
        result[:, y : y + kept.shape[-2], x : x + kept.shape[-1]] = kept

    def _rows(self, top: int) -> tuple[int, int]:
        """Of the tiles that begin at `top`: the LR rows that are kept."""
        begin = top + self.overlap if top else 0
        is_last = top == self.tops[-1]
        return begin, self.height if is_last else top + self.tile - self.overlap

    def _cut(self, number: int, top: int, left: int) -> Tensor:
        """A tile; beyond the image it repeats the edge."""
        height, width = self._size((number, top, left))
        part = self.images[number][:, top : top + height, left : left + width]
        below, beside = height - part.shape[-2], width - part.shape[-1]
        if below:
            part = torch.cat([part, part[:, -1:].expand(-1, below, -1)], 1)
        if beside:
            part = torch.cat([part, part[:, :, -1:].expand(-1, -1, beside)], 2)
        return part

    def _size(self, corner: tuple[int, int, int]) -> tuple[int, int]:
        _, top, left = corner
        return min(self.tile, self.padded[0] - top), min(self.tile, self.padded[1] - left)

    def _starts(self, side: int) -> range:
        """Where tiles begin along a side: they cover it; neighbours share 2 overlap pixels."""
        return range(0, max(side - 2 * self.overlap, 1), self.tile - 2 * self.overlap)


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
