"""Random crops of the images in shards, read and decoded ahead by threads.

Which image a sample shows, and where it is cut, is a function of the seed and of the sample's
number alone. So a resumed run, a run with more threads and a run of several ranks see the same
samples, and the samples to come are known in advance.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganlab.images.files import AlphaPolicy, ImageError
from ganlab.images.permutation import Permutation
from ganlab.images.resampling import to_float
from ganlab.images.shards import ShardIndex, ShardPart
from ganlab.speed.device import sent
from ganlab.streams import stream_seed


class BatchNumber(NamedTuple):
    """Which batch of a run."""

    stream: tuple[object, ...]
    """Batches of different streams are drawn independently: those of D and those of G."""
    number: int
    """Counted from 0 in its stream."""


class Rows(NamedTuple):
    """The samples of a batch that are read here: all of them, or those of one rank."""

    numbers: tuple[int, ...]
    """Of the samples, in the whole batch."""
    batch_size: int
    """Samples of the whole batch."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How crops are cut."""

    size: int
    """Side in pixels."""
    flips: bool = True
    turns: bool = True
    per_image: int = 1
    """Crops of each image that is decoded. They go to as many batches in a row, in the same row."""
    alpha: AlphaPolicy = "white"


class Crop(NamedTuple):
    pixels: NDArray[np.uint8]
    """[3, size, size]"""
    told: str
    """The name of the image, and the crop's (left, top)."""


class _Key(NamedTuple):
    """An image at work: the `turn`-th one of a row of the batches of a stream."""

    stream: tuple[object, ...]
    turn: int
    row: int


class ShardCrops:
    """Draws the crops of a run from a part of the images in shards.

    In memory are the images that the threads decode now, and the crops that were cut from them for
    batches to come; so it does not depend on the number of images, or on their size.
    """

    def __init__(
        self,
        index: ShardIndex,
        part: ShardPart,
        cutting: Cutting,
        key: Iterable[object],
        threads: int = 8,
    ) -> None:
        """:param key: what the draws depend on: the seed, and the name of the plugin.

        :param threads: that read and decode.
        """
        self._index, self._part, self._cutting, self._key = index, part, cutting, (*key,)
        self._pool = ThreadPoolExecutor(threads, "ganlab-shards")
        self._pending: dict[_Key, Future[dict[int, Crop]]] = {}
        self._begun: set[BatchNumber] = set()
        self._rows: Rows | None = None
        self._told: list[str] = []
        self._order = lru_cache(8)(lambda stream, epoch: self._ordered(stream, epoch))

    def crops(
        self, batch: BatchNumber, coming: Iterable[BatchNumber], rows: Rows, device: torch.device
    ) -> Tensor:
        """The crops of a batch.

        :param coming: the batches after it that are begun now, in the order of their need.
        :returns: float32 [len(rows.numbers), 3, size, size] in 0..1, on `device`.
        :raises ImageError: when an image cannot be read.
        """
        if batch not in self._begun or rows != self._rows:
            self._forget()
            self._rows = rows
        expected = [*coming]
        for each in (batch, *expected):
            self._begin(each, rows)
        found = [self._pending[key].result()[batch.number] for key in self._keys(batch, rows)]
        for past in self._begun.difference(expected):  # this batch, and what was never asked for
            self._done(past)
        self._told = [crop.told for crop in found]
        pixels = np.stack([crop.pixels for crop in found])
        return to_float(sent(torch.from_numpy(pixels), device))

    def drawn(self) -> list[str]:
        """The crops of the last batch: name of the image, and the crop's (left, top)."""
        return self._told

    def close(self) -> None:
        """Stop reading ahead; what is being read now ends by itself."""
        self._index.ranges.close()
        self._forget()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, batch: BatchNumber, rows: Rows) -> None:
        """Begin to read the images of a batch that are not being read yet."""
        if batch in self._begun:
            return
        self._begun.add(batch)
        for key in self._keys(batch, rows):
            if key not in self._pending:
                self._pending[key] = self._pool.submit(self._cut, key, rows.batch_size)

    def _done(self, batch: BatchNumber) -> None:
        """Let go of what no later batch needs."""
        self._begun.discard(batch)
        for key in [
            key
            for key in self._pending
            if key.stream == batch.stream and self._batches(key)[-1] <= batch.number
        ]:
            del self._pending[key]

    def _forget(self) -> None:
        """Give up all that was begun: another batch came than the one that was expected."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()
        self._begun.clear()

    def _keys(self, batch: BatchNumber, rows: Rows) -> Iterator[_Key]:
        """The images of a batch, one for each row.

        Rows change their images in turn, so that with several crops of each image every batch needs
        about as many new images as the next.
        """
        per_image = self._cutting.per_image
        for row in rows.numbers:
            yield _Key(batch.stream, (batch.number + row % per_image) // per_image, row)

    def _batches(self, key: _Key) -> range:
        """The numbers of the batches that show an image."""
        per_image = self._cutting.per_image
        first = key.turn * per_image - key.row % per_image
        return range(max(first, 0), first + per_image)

    def _cut(self, key: _Key, batch_size: int) -> dict[int, Crop]:
        """Decode an image, and cut its crop for each of its batches. Called in a thread."""
        if not threading.main_thread().is_alive():  # nobody waits for what is in the queue
            raise ImageError("the process ends")
        epoch, place = divmod(key.turn * batch_size + key.row, len(self._part))
        shard, number = self._part.place(self._order(key.stream, epoch)(place))
        row = self._index.row(shard, number)
        image = self._index.image(shard, row, alpha=self._cutting.alpha)
        pixels = image.permute(1, 2, 0).numpy()  # no copy: Pillow's rows are read as they are
        found = {}
        for batch in self._batches(key):
            top, left, pose = self._draw(key.stream, batch * batch_size + key.row, row[3:5])
            found[batch] = Crop(
                cut(pixels, top, left, self._cutting.size, pose), f"{row.name} at ({left}, {top})"
            )
        return found

    def _draw(
        self, stream: tuple[object, ...], sample: int, shape: tuple[int, ...]
    ) -> tuple[int, int, int]:
        """Top, left and pose of a sample: Philox (Salmon et al. 2011) at the counter `sample`."""
        key = stream_seed(*self._key, "crop", *stream)
        words = np.random.Philox(key=key, counter=sample).random_raw(3)
        width, height = shape
        # 53 bits, as in a float64: every position of the largest image can be reached
        top, left = (
            int((int(word) >> 11) / 2**53 * (side - self._cutting.size + 1))
            for word, side in zip(words, (height, width), strict=False)
        )
        asked = (6 if self._cutting.turns else 0) | (1 if self._cutting.flips else 0)
        return top, left, int(words[2]) & 7 & asked

    def _ordered(self, stream: tuple[object, ...], epoch: int) -> Permutation:
        return Permutation(len(self._part), *self._key, "order", *stream, epoch)


def cut(pixels: NDArray[np.uint8], top: int, left: int, size: int, pose: int) -> NDArray[np.uint8]:
    """A square of an image, mirrored and turned; `ImageStore` does the same on flat pixels.

    :param pixels: [H, W, 3].
    :param pose: bit 0 mirrors; bits 1 and 2 together turn by 0, 90, 180 or 270 degrees.
    :returns: [3, size, size], in memory of its own.
    """
    square = pixels[top : top + size, left : left + size]
    is_half, is_quarter = bool(pose & 2), pose >= 4
    if is_quarter:
        square = square.transpose(1, 0, 2)
    square = square[::-1] if is_half else square
    square = square[:, ::-1] if is_half ^ is_quarter ^ bool(pose & 1) else square
    return np.ascontiguousarray(square.transpose(2, 0, 1))
