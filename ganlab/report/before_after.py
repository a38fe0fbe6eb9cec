"""A page that shows enlarged pictures beside bicubic enlargement, and beside the originals."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from ganlab.report.offline import offline_page
from ganlab.report.page import SHOWN_AT_ONCE, Cell, Picture


@dataclass(frozen=True, slots=True)
class Enlarged:
    """One part of a picture, in all its versions, as PNG files of one size."""

    name: str
    width: int
    height: int
    versions: Sequence[tuple[str, bytes, str]]
    """Title, file and score; bicubic first, then the generator's."""


def render_before_after(
    title: str, lead: str, notes: Sequence[str], pictures: Sequence[Enlarged], side: int
) -> str:
    """Render the page as UTF-8 text.

    :param side: pixels of the largest part that is shown.
    """
    return offline_page(
        "before_after.html.j2",
        "page.css",
        "page.js",
        title=title,
        lead=lead,
        notes=notes,
        pictures=[_picture(each) for each in pictures],
        side=side,
        with_scores=any(score for each in pictures for _, _, score in each.versions),
        shown_at_once=SHOWN_AT_ONCE,
        slides_open=True,
    )


def _picture(enlarged: Enlarged) -> Picture:
    cells = [
        Cell(title, base64.b64encode(file).decode(), score)
        for title, file, score in enlarged.versions
    ]
    return Picture(enlarged.name, enlarged.width, enlarged.height, cells, left=0, right=1)
