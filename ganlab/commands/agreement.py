"""How far the figures of two logs agree, iteration by iteration."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ganlab.errors import RecipeError

Point = tuple[int, str]
"""Iteration, and image if the figure is the score of one."""
Figures = dict[str, dict[Point, float]]
"""The values of each figure; nan where the figure was not finite."""

_LONGEST = 16 * 2**20  # bytes of a line that are read at once; a longer line is refused
_STATS = TypeAdapter(dict[str, float | None])
_SCORES = TypeAdapter(dict[str, int | dict[str, dict[str, float | None]]])


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the values of one figure agree.

    A difference is divided by the largest value of the figure, without sign, on either side. It is
    infinite where only one side has a finite value.
    """

    figure: str
    values: int
    """How many values were compared."""
    largest: float
    """The largest difference."""
    at: int
    """The iteration of the largest difference; 0 when there is none."""
    first: int
    """The iteration of the first difference; 0 when there is none."""
    begins: float
    """The largest difference at that iteration."""


def compare_logs(logged: Figures, again: Figures) -> list[Agreement]:
    """The agreement of every figure that at least one side has, in the order of the log."""
    names = dict.fromkeys([*logged, *again])
    return [_agreement(name, logged.get(name, {}), again.get(name, {})) for name in names]


def read_figures(stats: Path, scores: Path, until: int) -> Figures:
    """The figures in stats.jsonl and scores.jsonl, up to an iteration.

    Those of how the run was carried out ("replay/...") are left out: another device has none.

    :raises RecipeError: at a line that is not one of figures.
    """
    found: Figures = {}
    for iteration, figures in _stats(stats):
        if iteration <= until:
            for name, value in figures.items():
                found.setdefault(name, {})[iteration, ""] = _number(value)
    for iteration, sets in _scores(scores):
        if iteration <= until:
            for kind, images in sets.items():
                for image, figures in images.items():
                    for name, value in figures.items():
                        score = found.setdefault(f"{kind}/{name}", {})
                        score[iteration, image] = _number(value)
    return found


def logged_iterations(stats: Path) -> dict[str, tuple[int, int]]:
    """The first and the last iteration at which each figure was logged.

    :raises RecipeError: at a line that is not one of figures.
    """
    found: dict[str, tuple[int, int]] = {}
    for iteration, figures in _stats(stats):
        for name in figures:
            first, last = found.get(name, (iteration, iteration))
            found[name] = min(first, iteration), max(last, iteration)
    return found


def _agreement(name: str, logged: dict[Point, float], again: dict[Point, float]) -> Agreement:
    points = sorted(logged.keys() | again.keys())
    finite = [abs(v) for v in (*logged.values(), *again.values()) if math.isfinite(v)]
    size = max(finite, default=0.0) or 1.0
    apart: dict[int, float] = {}
    for point in points:
        difference = _apart(logged.get(point), again.get(point)) / size
        apart[point[0]] = max(difference, apart.get(point[0], 0.0))
    first = next((iteration for iteration, found in apart.items() if found), 0)
    at = max(apart, key=lambda iteration: apart[iteration]) if first else 0
    return Agreement(name, len(points), apart.get(at, 0.0), at, first, apart.get(first, 0.0))


def _apart(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return math.inf
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other)


def _number(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _stats(file: Path) -> Iterator[tuple[int, dict[str, float | None]]]:
    for place, line in _lines(file):
        try:
            figures = _STATS.validate_json(line)
            iteration = int(figures.pop("iteration") or 0)
        except (ValidationError, KeyError, ValueError, OverflowError):
            raise RecipeError(f"{place}: not a line of figures") from None
        yield iteration, {n: v for n, v in figures.items() if not n.startswith("replay/")}


def _scores(file: Path) -> Iterator[tuple[int, dict[str, dict[str, dict[str, float | None]]]]]:
    for place, line in _lines(file):
        try:
            sets = _SCORES.validate_json(line)
            iteration = sets.pop("iteration")
        except (ValidationError, KeyError):
            raise RecipeError(f"{place}: not a line of scores") from None
        if not isinstance(iteration, int):
            raise RecipeError(f"{place}: not a line of scores")
        yield iteration, {kind: rows for kind, rows in sets.items() if isinstance(rows, dict)}


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, each with its place; a file that is absent has none."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), 1):
            yield f"{file}:{number}", line
