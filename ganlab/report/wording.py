"""Numbers with their intervals as text, the same on the page and on the terminal."""

import math
from dataclasses import asdict
from typing import Any

from ganlab.report.model import Comparison, Row
from ganlab.report.statistics import Interval, interval


def narrowing(row: Row) -> float | None:
    """The factor by which pairing by seed makes an interval narrower; None if it is unknown."""
    paired = row.difference.half_width if row.difference else None
    unpaired = row.unpaired.half_width if row.unpaired else None
    return unpaired / paired if paired and unpaired else None


def shown(value: Interval | None, signed: bool = False) -> str:
    """`28.21 [28.15, 28.27]`, to two digits of the half-width; without interval the mean alone."""
    if value is None:
        return "-"
    size = value.half_width or abs(value.mean) / (10 if signed else 100)
    number = f"{{:{'+' if signed else ''}.{decimals(size)}f}}"
    if value.low is None or value.high is None:
        return number.format(value.mean)
    low, high = number.format(value.low), number.format(value.high)
    return f"{number.format(value.mean)} [{low}, {high}]"


def shown_alone(value: float) -> str:
    """`28.21`: a figure that has no interval."""
    return shown(interval([value]))


def short(text: str) -> str:
    """A fraction in a recipe with five digits; all else as it is written."""
    try:
        return f"{float(text):.5g}" if set(text) & set(".e") else text
    except ValueError:
        return text


def decimals(size: float) -> int:
    """Number of decimals that show two significant digits of this size, no more than 6."""
    return min(6, max(0, 1 - math.floor(math.log10(size)))) if size > 0 else 2


def as_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data for JSON; runs are given by their folders."""
    return {
        "title": comparison.title,
        "arms": {
            arm.name: {run.seed: str(run.folder.path) for run in arm.runs}
            for arm in comparison.arms
        },
        "tables": [asdict(table) for table in comparison.tables],
        "costs": [asdict(cost) for cost in comparison.costs],
        "images": asdict(comparison.images) if comparison.images else None,
        "notes": list(comparison.notes),
        "data": list(comparison.data),
    }
