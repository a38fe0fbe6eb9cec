"""Text for the terminal: names are shown as they are, and no part of them is obeyed."""

import re
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from ganlab.errors import printable


def visible(text: str) -> str:
    """A text of several lines in which every other control character is escaped."""
    parts = re.split(r"([\n\t])", text)
    if all(part.isprintable() for part in parts[::2]):
        return text
    return "".join(part if part in "\n\t" else printable(part) for part in parts)


class Terminal(Console):
    """A console for tables and lines that hold names of files, recipes and plugins.

    rich would take "[red]" in them for markup, ":smile:" for a picture, and pass on what a terminal
    obeys. Styles are given by `style`, never in the text.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

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
