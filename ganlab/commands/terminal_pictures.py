"""Pictures in a terminal that has sixel or kitty's graphics protocol."""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console, RenderableType

from ganlab.images.files import ImageError
from ganlab.images.png_bytes import png_within

EXTRA = (
    "`pip install 'ganlab[terminal]'` shows it here, where the terminal has sixel or kitty graphics"
)
_ROOM = (1600, 4000)  # pixels, width and height
_MOST = 16 * 2**20  # pixels of a picture that is read

Maker = Callable[[Image.Image], RenderableType]


def maker_for(console: Console) -> tuple[Maker | None, str]:
    """What makes a picture for this terminal, None where it has no pictures; and what would help.

    The terminal itself is asked, which takes up to 0.2 seconds.
    """
    if not (console.is_terminal and sys.__stdin__ and sys.__stdin__.isatty()):
        return None, ""
    try:
        from textual_image.renderable import Image as Found, SixelImage, TGPImage
    except ImportError:
        return None, EXTRA
    except Exception:  # from an unknown terminal: no pictures then
        return None, ""
    return (_scaled(Found), "") if Found in (SixelImage, TGPImage) else (None, "")


def _scaled(kind: Any) -> Maker:
    """As large as the terminal allows, with its sides in proportion."""
    return lambda image: kind(image, width="auto", height="auto")


class Strip:
    """Shows the newest picture of a run, each once."""

    def __init__(self, console: Console, make: Maker | None) -> None:
        self._console, self._make = console, make
        self._shown: Path | None = None

    def show(self, path: Path | None, rows: int) -> None:
        """Show a picture in so many rows of the terminal, unless it is the one shown last."""
        if self._make is None or path is None or path == self._shown:
            return
        self._shown = path
        try:
            content = png_within(path.read_bytes(), _ROOM, _MOST)
            with Image.open(BytesIO(content)) as image:
                self._console.print(self._make(image.convert("RGB")), height=max(4, rows))
        except (OSError, ImageError):  # it may be half written, or no picture
            return
        except Exception:  # the terminal gives no size, for example
            self._make = None
