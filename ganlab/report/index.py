"""A page over the runs of a folder: how they ended, their last scores, small pictures."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ganlab.images.png_bytes import png_cut
from ganlab.report.figures import HIGHER_IS_BETTER, in_order
from ganlab.report.offline import offline_page
from ganlab.report.wording import shown_alone
from ganlab.runs.folder import RunFolder
from ganlab.runs.pictures import read_crops, read_picture, read_sample

WITH_PICTURES = 200
"""Only so many runs, the newest, have pictures: each needs about 50 KB of the page."""
SIDE = 88  # pixels of a small picture
MOST_FIGURES = 8
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_TITLES = {"bicubic": "bicubic", "sr": "generator", "hr": "original"}


@dataclass(frozen=True, slots=True)
class Small:
    """A small picture, shown at its own size; `data` is a PNG file in base64."""

    title: str
    data: str


@dataclass(frozen=True, slots=True)
class Score:
    """The last value of a figure, and that of bicubic interpolation beside it, as text."""

    value: float | None
    text: str
    bicubic: str


@dataclass(frozen=True, slots=True)
class Row:
    """A run."""

    name: str
    link: str
    """Its page, relative to this one; empty where it has none."""
    pictures: list[Small]
    state: str
    words: list[str]
    """What else a reader must know: how it ended, verdicts, changes, faults."""
    iteration: int
    of: int
    seed: int | None
    scores: list[Score]
    seconds: float
    begun: datetime | None
    """By the clock of this machine; None in a run of an older ganlab."""


@dataclass(frozen=True, slots=True)
class Column:
    """A figure; the first click sorts by `first`, then comes the other direction."""

    name: str
    first: str


def render_index(parent: Path, entries: Sequence[dict[str, Any]]) -> str:
    """Render the page of a folder's runs, the newest first; its links lead into that folder.

    :param entries: from `describe_runs`.
    """
    figures = _figures(entries)
    newest = sorted(entries, key=lambda entry: _begun(entry) or _LONG_AGO, reverse=True)
    rows = [_row(entry, figures, at < WITH_PICTURES) for at, entry in enumerate(newest)]
    columns = [
        Column(n, "ascending" if HIGHER_IS_BETTER.get(n) is False else "descending")
        for n in figures
    ]
    return offline_page(
        "index.html.j2",
        "page.css",
        "index.js",
        title=f"Runs in {parent.absolute().name or parent}",
        rows=rows,
        columns=columns,
        left_out=max(0, len(rows) - WITH_PICTURES),
        with_pictures=any(row.pictures for row in rows),
        with_crops=any(len(row.pictures) > 1 for row in rows),
        with_bicubic=any(score.bicubic for row in rows for score in row.scores),
        side=SIDE,
    )


def _figures(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The figures of the columns."""
    known = dict.fromkeys(name for entry in entries for name in entry.get("scores") or ())
    return in_order(known)[:MOST_FIGURES]


def _begun(entry: dict[str, Any]) -> datetime | None:
    return datetime.fromisoformat(entry["begun"]).astimezone() if "begun" in entry else None


def _row(entry: dict[str, Any], figures: Sequence[str], with_pictures: bool) -> Row:
    folder = RunFolder(Path(entry["run"]))
    scores, bicubic = entry.get("scores") or {}, entry.get("bicubic") or {}
    ended = f"{entry['state']}: {entry['message']}" if entry.get("message") else ""
    words = [ended, *entry.get("verdicts", []), *entry.get("changes", []), entry.get("fault", "")]
    return Row(
        folder.path.name,
        _link(folder),
        _pictures(folder) if with_pictures else [],
        entry["state"],
        [text for text in words if text],
        entry.get("iteration", 0),
        entry.get("of", 0),
        entry.get("seed"),
        [_score(scores.get(name), bicubic.get(name)) for name in figures],
        entry.get("seconds", 0.0),
        _begun(entry),
    )


def _link(folder: RunFolder) -> str:
    # as bytes: a name need not be text in any encoding. A colon is quoted, so no name is a scheme
    name = quote(os.fsencode(folder.path.name))
    return f"{name}/{folder.report.name}" if folder.report.is_file() else ""


def _score(value: float | None, bicubic: float | None) -> Score:
    def text(number: float | None) -> str:
        return "" if number is None else shown_alone(number)

    return Score(value, text(value), text(bicubic))


def _pictures(folder: RunFolder) -> list[Small]:
    """The middle of the first crop, at its own size; of a toy problem, its newest picture."""
    crops = read_crops(folder.pictures)
    if crops:
        found = {kind: read_picture(folder.pictures, crops[0], 0, kind) for kind in _TITLES}
        return [
            Small(f"{_TITLES[kind]} of {crops[0].name}", _encoded(png_cut(content, SIDE)))
            for kind, content in found.items()
            if content
        ]
    small = read_sample(folder.samples, (3 * SIDE, SIDE))
    return [Small("samples", _encoded(small))] if small else []


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
