"""How a run and a comparison show themselves in a notebook: a part of an HTML page, escaped.

It has no script and no style sheet, so that it looks the same where a viewer removes both.
"""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ganlab.report.charts import Chart, curves, series_of
from ganlab.report.model import Arm, Comparison
from ganlab.report.offline import filled
from ganlab.report.page import TITLES
from ganlab.report.wording import shown
from ganlab.runs.pictures import KINDS, read_picture
from ganlab.runs.records import RunRecord

MOST_CHARTS = 4


def of_run(record: RunRecord) -> str:
    """A run: how it ended, its figures beside bicubic's, a crop, curves of its losses."""
    return filled(
        "run.html.j2",
        record=record,
        name=record.folder.path.name,
        iteration=record.status.get("iteration", 0),
        figures=record.last.figures if record.last else {},
        bicubic=record.status.get("bicubic") or {},
        pictures=list(_pictures(record)),
        charts=list(_charts(record)),
    )


def of_comparison(comparison: Comparison, page: Path) -> str:
    """A comparison: the tables of its first view, and where its page is."""
    first = comparison.tables[0].view if comparison.tables else ""
    tables = [table for table in comparison.tables if table.view == first]
    return filled(
        "comparison.html.j2",
        comparison=comparison,
        view=first,
        tables=tables,
        page=page,
        shown=shown,
    )


def _pictures(record: RunRecord) -> Iterator[tuple[str, str]]:
    """The middle of the first kept crop: titles, and PNG files in base64."""
    for crop in record.crops[:1]:
        for kind in KINDS:
            data = read_picture(record.folder.pictures, crop, 0, kind)
            if data is not None:
                middle = base64.b64encode(_middle(data)).decode()
                yield TITLES.get(kind, "generator"), middle


def _middle(png: bytes) -> bytes:
    """The middle half of a picture, both ways: a notebook keeps every display."""
    picture, file = Image.open(io.BytesIO(png)), io.BytesIO()
    width, height = picture.size
    box = (width // 4, height // 4, width - width // 4, height - height // 4)
    picture.crop(box).save(file, "PNG", optimize=True)
    return file.getvalue()


def _charts(record: RunRecord) -> Iterator[Chart]:
    arm = Arm(record.folder.path.name, (record,))
    names = [name for name in record.series if name.startswith(("D/", "G/"))]
    if len(record.evaluations) > 1:
        names.insert(0, f"evaluation/{record.recipe['best_metric']}")
    for name in names[:MOST_CHARTS]:
        series = series_of(record, name)
        chart = curves(name.removeprefix("evaluation/"), "", [arm], [[series] if series else []])
        if chart:
            yield chart
