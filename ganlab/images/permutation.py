"""The numbers from 0 to n - 1 in an order that a key chooses, without a list of them."""

from math import isqrt

from ganlab.streams import stream_seed

_ROUNDS = 4  # each mixes both halves
_WORD = 2**64 - 1


class Permutation:
    """A bijection of the numbers 0 to length - 1, in memory of constant size.

    The numbers are laid out in a rectangle that is nearly a square, and row and column are shifted
    in turn, each by a function of the other: the generalised Feistel network of Black and Rogaway
    2002 (doi:10.1007/3-540-45760-7_9). A result beyond `length` is permuted again (cycle walking);
    the rectangle has at most one row too many, so this hardly ever happens.
    """

    def __init__(self, length: int, *key: object) -> None:
        """:param key: equal keys give equal orders on every machine."""
        self.length = length
        self._rows = isqrt(length - 1) + 1
        self._columns = -(-length // self._rows)
        self._keys = [
            (stream_seed(*key, number, "row"), stream_seed(*key, number, "column"))
            for number in range(_ROUNDS)
        ]

    def __call__(self, place: int) -> int:
        """The number at a place of the order; both are in 0 to length - 1."""
        rows, columns = self._rows, self._columns
        while True:
            row, column = divmod(place, columns)
            for row_key, column_key in self._keys:
                row = (row + _mixed(column ^ row_key)) % rows
                column = (column + _mixed(row ^ column_key)) % columns
            place = row * columns + column
            if place < self.length:
                return place


def _mixed(value: int) -> int:
    """64 bits, each of which depends on every bit of the value (SplitMix64's finisher, 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)
