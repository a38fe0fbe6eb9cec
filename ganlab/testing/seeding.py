"""Random numbers for the tests of a plugin."""

from typing import TypeVar

import torch

from ganlab.plugin import Plugin
from ganlab.streams import Streams

AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)


def seeded(
    plugin: AnyPlugin, seed: int = 0, *moment: object, device: torch.device | str = "cpu"
) -> AnyPlugin:
    """Give a plugin the random numbers that it would have in a run, and return it.

    Outside a run a plugin draws from torch's own generators. Equal seeds and moments give equal
    numbers; call it again to start them again.

    :param seed: of the run.
    :param moment: a point of the run, such as `7, "D", 0` for the first D step of iteration 7. By
        default the moment at which a run is assembled.
    """
    streams = Streams(seed, device)
    if moment:
        streams.moment(*moment)
    return plugin.bind(streams=streams)
