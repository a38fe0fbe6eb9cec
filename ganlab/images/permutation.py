"""The numbers from 0 to n - 1 in an order that a key chooses, without a list of them."""

import numpy as np
from numpy.typing import NDArray

from ganlab.streams import stream_seed

Numbers = NDArray[np.int64]

_ROUNDS = 8
_SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
_FACTORS = tuple(map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


class Permutation:
    """A bijection of the numbers 0 to length - 1, in memory of constant size.

    A Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022) permutes the numbers below a
    power of four, at most four times `length`. A result that is too large is permuted again
    (cycle walking, Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9).
    """

    def __init__(self, length: int, *key: object) -> None:
        """:param key: equal keys give equal orders on every machine."""
        self.length = length
        half = max(1, ((length - 1).bit_length() + 1) // 2)
        self._half, self._mask = np.uint64(half), np.uint64((1 << half) - 1)
        self._keys = [np.uint64(stream_seed(*key, number)) for number in range(_ROUNDS)]

    def __call__(self, places: Numbers) -> Numbers:
        """The numbers at these places of the order, each in 0 to length - 1."""
        values = self._once(places.astype(np.uint64))
        while (too_large := values >= self.length).any():
            values[too_large] = self._once(values[too_large])
        return values.astype(np.int64)

    def _once(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a result depends on every bit of the value (SplitMix64's finisher, 2014)."""
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])
