"""Bounds on a network, checked while a plugin builds it.

An option such as `num_blocks = 100000000` would else build for hours, or fill the memory until the
system ends the process, without a word.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from ganlab.errors import RecipeError
from ganlab.speed.device import free_memory

MOST_TENSORS = 100_000
"""Parameter tensors of a network. A step would take seconds for their number alone."""


@contextmanager
def bounded(error: Callable[[str], RecipeError]) -> Iterator[None]:
    """Context in which a network is built on the CPU, as far as the memory that is free now goes.

    :param error: makes the error for a fault.
    :raises RecipeError: at the first parameter beyond a bound, before it is filled with numbers.
    """
    free, size, number = free_memory(torch.device("cpu")), 0, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal size, number
        number += 1
        size += 0 if is_lazy(parameter) or parameter.is_meta else parameter.nbytes
        if number > MOST_TENSORS:
            raise error(
                f"its network has more than {MOST_TENSORS:,} tensors of parameters; "
                "choose fewer blocks or layers"
            )
        if size > free:
            raise error(
                f"its network's parameters take more than {size / 2**30:,.1f} GiB, and "
                f"{free / 2**30:,.1f} GiB of memory are free; choose fewer or smaller layers"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
