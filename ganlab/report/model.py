"""What a report shows: arms of runs, tables of differences, scores image by image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ganlab.report.statistics import Interval
from ganlab.runs.records import Evaluation, RunRecord

Group = Literal["settings", "plugins", "code", "environment"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; a value that a side has not is None."""

    kind: Literal["added", "removed", "changed"]
    key: str
    """Dotted: iterations, plugins.gradient_penalty.weight, versions.torch."""
    a: str | None
    b: str | None
    group: Group


@dataclass(frozen=True, slots=True)
class Arm:
    """One recipe of a comparison with its runs, one a seed."""

    name: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in a table of one figure."""

    arm: str
    value: Interval | None
    """None when no seed of the arm got so far."""
    difference: Interval | None = None
    """To the baseline, paired by seed; None for the baseline itself."""
    unpaired: Interval | None = None
    """The same as if the seeds had nothing in common."""
    visible: float | None = None
    """The smallest true effect that as many seeds would have detected, four times in five."""
    words: str = ""
    """"better", "no measurable effect", ...; "baseline" for that."""


@dataclass(frozen=True, slots=True)
class Table:
    """One figure of every arm, looked at in one way."""

    figure: str
    view: str
    """"after 1,400 iterations", "after 93 s of training", "best checkpoint (chosen on ...)"."""
    higher_is_better: bool | None
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an arm cost: medians over its seeds."""

    arm: str
    states: str
    """"5 done", "4 done, 1 diverged"."""
    seconds: float
    images_per_second: float
    peak_memory: float
    """Bytes."""
    verdicts: int


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One held-out image: scores of each arm and differences to the baseline, over the seeds."""

    image: str
    bicubic: float | None
    scores: dict[str, Interval]
    differences: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Tally:
    """The images that an arm won and lost against the baseline, by their means over the seeds."""

    won: int
    lost: int
    tied: int
    difference: Interval
    """Over images."""
    p: float | None
    """Wilcoxon's signed-rank test over images; None for fewer than 6."""


@dataclass(frozen=True, slots=True)
class ImageTable:
    """One figure image by image, the worst images of the last arm first."""

    figure: str
    higher_is_better: bool | None
    rows: tuple[ImageRow, ...]
    tallies: dict[str, Tally]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that the page and the terminal show. The first arm is the baseline."""

    title: str
    arms: tuple[Arm, ...]
    tables: tuple[Table, ...] = ()
    costs: tuple[Cost, ...] = ()
    images: ImageTable | None = None
    chosen: Callable[[RunRecord], Evaluation | None] = lambda record: record.last
    """The evaluation of a run that the first view compares."""
    changes: dict[str, Sequence[Change]] = field(default_factory=dict)
    """Of each arm's recipe against the baseline's."""
    notes: tuple[str, ...] = ()
