"""Text for the terminal: names are shown as they are, and no part of them is obeyed."""

import math
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from ganlab.errors import visible


class Terminal(Console):
    """A console for tables and lines that hold names of files, recipes and plugins.

    rich would take "[red]" in them for markup, ":smile:" for a picture, and pass on what a terminal
    obeys. Styles are given by `style`, never in the text. In a notebook it writes plain lines;
    rich would make a piece of HTML of each, and keep every state of a progress bar.
    """

    def __init__(self, **options: Any) -> None:
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
        if "ipykernel" in sys.modules:
            plain |= {"force_jupyter": False, "force_terminal": False}
        super().__init__(**plain | options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    @property
    def file(self) -> IO[str]:
        """Where it writes. A stream that escapes what terminals obey has another way for styles."""
        stream = super().file
        return getattr(stream, "obeyed", stream)

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream


def sparkline(values: Sequence[float], width: int, ascii_only: bool = False) -> str:
    """A curve as one line of text, from the lowest value to the highest.

    Values over more than a factor of 300 are drawn on a logarithmic scale. Where there are more
    values than places, a place has the mean of its values; one without a finite value is blank.

    :param width: places, at least 1.
    """
    levels = "_.-~=+*#" if ascii_only else "▁▂▃▄▅▆▇█"
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    if min(finite) > 0 and max(finite) / 300 > min(finite):
        values = [math.log(value) if value > 0 else math.nan for value in values]
    size = max(1, -(-len(values) // width))
    places = [_mean(values[at : at + size]) for at in range(0, len(values), size)]
    shown = [place for place in places if math.isfinite(place)]
    low, room = min(shown), max(shown) - min(shown)
    return "".join(
        levels[round((len(levels) - 1) * ((place - low) / room if room else 0.5))]
        if math.isfinite(place)
        else " "
        for place in places
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan
