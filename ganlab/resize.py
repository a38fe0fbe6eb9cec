"""Stands in for `ganlab.resampling` while `ganlab/__init__.py` looks for its names here.

A submodule `ganlab.resize` hides the function of the same name in `from ganlab import resize`;
so this one can be called.
"""

import sys
from types import ModuleType

from torch import Tensor

from ganlab.resampling import resize, resize_exact, round_to_8_bits, to_float, to_uint8

__all__ = ["resize", "resize_exact", "round_to_8_bits", "to_float", "to_uint8"]


class _Callable(ModuleType):
    def __call__(self, images: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
        return resize(images, size, antialias)


sys.modules[__name__].__class__ = _Callable
