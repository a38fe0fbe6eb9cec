"""Small charts as plain numbers in a box of 420 x 230; the template draws them as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ganlab.report.model import Arm
from ganlab.report.statistics import Interval, interval
from ganlab.runs.records import RunRecord, Series

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 8, 36
MOST_POINTS = 300  # in a line
LONGEST_NAME = 16  # characters of a tick
MARKED = 40  # points of a line that show their value
_ROUNDING = 1e-5
"""Values whose difference is a smaller part of them are drawn as equal."""

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with a text that gives its value."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve in the colour of its arm; a bold one is the mean over seeds."""

    arm: int
    bold: bool
    path: str
    marks: tuple[Mark, ...] = ()

    @property
    def is_point(self) -> bool:
        """Whether it has one place only, and so no length that could be seen."""
        return " " not in self.path


@dataclass(frozen=True, slots=True)
class Whisker:
    """A point with its intervals, in the colour of its arm (-1: bicubic)."""

    arm: int
    mark: Mark
    horizontal: tuple[float, float] | None
    vertical: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: lines or whiskers, and its axes."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    whiskers: tuple[Whisker, ...] = ()
    bicubic: Mark | None = None
    """The right end of a level line at the figure of bicubic interpolation."""


class Axis:
    """One side of the box: maps numbers to places and has round ticks; logarithmic with `log`."""

    def __init__(
        self, values: Iterable[float], begin: float, end: float, log: bool = False
    ) -> None:
        finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        self.log = log
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low > _ROUNDING * max(abs(low), abs(high)):
            room = (high - low) * 0.04
        else:
            room = abs(high) * 0.1 or 0.5
        self.low, self.high, self.begin, self.end = low - room, high + room, begin, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self) -> tuple[Tick, ...]:
        """Ticks at four to eight round numbers, with as many digits as tell them apart."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 7)
        if self.log:
            step = max(1.0, round(step))
        first = math.ceil(self.low / step)
        numbers = [n * step for n in range(first, math.floor(self.high / step) + 1)]
        if self.log:
            return tuple(Tick(self(10**n), number(10**n)) for n in numbers)
        largest = max(abs(self.low), abs(self.high))
        digits = 1 + math.floor(math.log10(largest)) - math.floor(math.log10(step))
        return tuple(Tick(self(n), number(n, digits)) for n in numbers)


def number(value: float, digits: int = 1) -> str:
    """A number as text: thousands with commas, millions as powers of ten, few digits.

    :param digits: significant digits that it needs at least.
    """
    if 1000 <= abs(value) < 1e6 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:.{max(4, digits)}g}".replace("e+0", "e").replace("e-0", "e-")


def curves(
    title: str,
    unit: str,
    arms: Sequence[Arm],
    series: Sequence[list[Series]],
    bicubic: float | None = None,
) -> Chart | None:
    """Chart of a figure over iterations: thin lines for seeds, a bold one for an arm's mean.

    :param series: for each arm, one series per seed; missing ones are left out.
    :param bicubic: the same figure of bicubic interpolation, where it has one.
    """
    every = [one for several in series for one in several if len(one.values)]
    if not every:
        return None
    values = np.concatenate([one.values for one in every])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    values = values if bicubic is None else np.append(values, bicubic)
    log = bool((values > 0).all() and values.max() / 300 > values.min())
    x = Axis([0, *(int(one.iterations[-1]) for one in every)], LEFT, WIDTH - RIGHT)
    y = Axis(values, HEIGHT - BOTTOM, TOP, log)
    lines: list[Line] = []
    for number_of_arm, several in enumerate(series):
        name = arms[number_of_arm].name
        shown = [_thinned(one) for one in several if len(one.values)]
        if len(shown) > 1:
            lines += [_line(number_of_arm, False, one, f"{name}, a seed", x, y) for one in shown]
        if mean := _mean(several):
            lines.append(_line(number_of_arm, True, _thinned(mean), name, x, y))
    lines = [line for line in lines if line.path]
    level = None
    if bicubic is not None:
        level = Mark(WIDTH - RIGHT, y(bicubic), f"bicubic: {bicubic:.5g}")
    return Chart(title, "iteration", unit, x.ticks(), y.ticks(), tuple(lines), bicubic=level)


def plane(
    title: str, labels: tuple[str, str], points: Sequence[tuple[int, str, list[float], list[float]]]
) -> Chart | None:
    """Chart of two figures: one point per arm, with intervals over its seeds.

    :param points: number of the arm (-1: bicubic), name, its values on x and on y, one per seed.
    """
    found = [(arm, name, interval(xs), interval(ys)) for arm, name, xs, ys in points if xs and ys]
    if not found:
        return None
    x = Axis([end for _, _, across, _ in found for end in _ends(across)], LEFT, WIDTH - RIGHT)
    y = Axis([end for _, _, _, up in found for end in _ends(up)], HEIGHT - BOTTOM, TOP)
    whiskers = []
    for arm, name, across, up in found:
        text = f"{name}: {labels[0]} {across.mean:.4g}, {labels[1]} {up.mean:.4g}"
        mark = Mark(x(across.mean), y(up.mean), text)
        whiskers.append(Whisker(arm, mark, _between(across, x), _between(up, y)))
    return Chart(title, labels[0], labels[1], x.ticks(), y.ticks(), (), tuple(whiskers))


def scatter(
    title: str,
    labels: tuple[str, str],
    points: Sequence[tuple[str, float, str, bool]],
    log: bool,
    named: bool,
) -> Chart | None:
    """Chart of a figure over the values of an option, a point for each trial.

    :param points: the value as it is written, the figure, a text, and whether it is the best.
    :param log: whether the values are on a logarithmic scale.
    :param named: whether the values are names, which are drawn side by side.
    """
    if not points:
        return None
    names = sorted({value for value, _, _, _ in points})
    xs = [float(names.index(value)) if named else float(value) for value, _, _, _ in points]
    x = Axis(xs, LEFT, WIDTH - RIGHT, log)
    if log and len(x.ticks()) < 2:  # less than a factor of ten
        x = Axis(xs, LEFT, WIDTH - RIGHT)
    ticks = x.ticks()
    if named:
        ticks = tuple(Tick(x(float(n)), _shortened(name)) for n, name in enumerate(names))
    y = Axis([figure for _, figure, _, _ in points], HEIGHT - BOTTOM, TOP)
    whiskers = [
        Whisker(1 if best else 0, Mark(x(at), y(figure), text), None, None)
        for at, (_, figure, text, best) in zip(xs, points, strict=True)
    ]
    whiskers.sort(key=lambda whisker: whisker.arm)  # the best is drawn over the others
    return Chart(title, labels[0], labels[1], ticks, y.ticks(), (), tuple(whiskers))


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _ends(found: Interval) -> list[float]:
    return [v for v in (found.mean, found.low, found.high) if v is not None]


def _between(found: Interval, axis: Axis) -> tuple[float, float] | None:
    if found.low is None or found.high is None:
        return None
    return axis(found.low), axis(found.high)


def series_of(record: RunRecord, name: str) -> Series | None:
    """Values of a run's logged figure, or of a figure of its evaluations ("evaluation/psnr_y")."""
    if not name.startswith("evaluation/"):
        return record.series.get(name)
    figure = name.removeprefix("evaluation/")
    pairs = [(e.iteration, e.figures[figure]) for e in record.evaluations if figure in e.figures]
    if not pairs:
        return None
    iterations, values = zip(*pairs, strict=True)
    return Series(np.array(iterations), np.array(values, float))


def _line(arm: int, bold: bool, one: Series, name: str, x: Axis, y: Axis) -> Line:
    """A curve; the mean of an arm tells its values, and so does a single point."""
    line = Line(arm, bold, _path(_places(one, x, y)))
    told = bold or line.is_point
    return replace(line, marks=_marks(one, name, x, y)) if told else line


def _mean(several: Sequence[Series]) -> Series | None:
    """Mean over the seeds, at the iterations where all of them have a finite value."""
    several = [one for one in several if len(one.values)]
    if len(several) <= 1:
        return several[0] if several else None
    iterations = np.unique(np.concatenate([one.iterations for one in several]))
    sums, counts = np.zeros(len(iterations)), np.zeros(len(iterations))
    for one in several:
        finite = np.isfinite(one.values)
        where = np.searchsorted(iterations, one.iterations[finite])
        np.add.at(sums, where, one.values[finite])
        np.add.at(counts, where, 1)
    whole = counts == len(several)  # otherwise the mean jumps where a seed ends
    return Series(iterations[whole], sums[whole] / len(several)) if whole.any() else None


def _thinned(one: Series) -> Series:
    """No more than `MOST_POINTS` points, each the mean of neighbouring ones."""
    size = math.ceil(len(one.values) / MOST_POINTS)
    if size <= 1:
        return one
    edges = np.arange(0, len(one.values), size)
    counts = np.diff([*edges, len(one.values)])
    values = np.add.reduceat(one.values, edges) / counts
    return Series(np.add.reduceat(one.iterations, edges) // counts, values)


def _places(one: Series, x: Axis, y: Axis) -> Points:
    return [
        (x(float(i)), y(float(v)))
        for i, v in zip(one.iterations, one.values, strict=True)
        if math.isfinite(v) and (v > 0 or not y.log)
    ]


def _path(places: Points) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _marks(one: Series, name: str, x: Axis, y: Axis) -> tuple[Mark, ...]:
    step = max(1, len(one.values) // MARKED)
    return tuple(
        Mark(x(float(i)), y(float(v)), f"{name}, iteration {int(i):,}: {v:.5g}")
        for i, v in list(zip(one.iterations, one.values, strict=True))[::-1][::step]
        if math.isfinite(v) and (v > 0 or not y.log)
    )
