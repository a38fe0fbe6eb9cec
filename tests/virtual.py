"""Shards of any number of images that exist only as arithmetic: few real ones, again and again."""

from pathlib import Path

import numpy as np

from ganlab import Ranges, ShardIndex
from ganlab.images.shards import Row


class VirtualIndex(ShardIndex):
    """`length` images in `shards` shards, each of which is the first shard of a real folder."""

    def __init__(self, folder: Path, length: int, shards: int = 1) -> None:
        real = ShardIndex.open(Ranges(folder))
        vars(self).update(vars(real))
        self._real = real
        self.names = [real.names[0]] * shards
        self.counts = np.full(shards, length // shards)
        self.counts[-1] += length - int(self.counts.sum())

    def row(self, shard: int, number: int) -> Row:
        return self._real.row(0, number % int(self._real.counts[0]))

    def below(self, share: float) -> np.ndarray:
        return (self.counts * share).astype(np.int64)
