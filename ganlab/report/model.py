"""The data of a report: arms with their runs, tables of differences, scores of each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ganlab.report.statistics import Interval
from ganlab.runs.records import Evaluation, RunRecord

Group = Literal["settings", "plugins", "data", "code", "environment"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two sides; None stands for a value that a side does not have."""

    kind: Literal["added", "removed", "changed"]
    key: str
    """Dotted: iterations, plugins.gradient_penalty.weight, versions.torch."""
    a: str | None
    b: str | None
    group: Group


@dataclass(frozen=True, slots=True)
class Arm:
    """One recipe of a comparison with its runs, one per seed."""

    name: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in a table of one figure."""

    arm: str
    value: Interval | None
    """None when no seed of the arm got that far."""
    difference: Interval | None = None
    """Difference from the baseline, paired by seed; None for the baseline itself."""
    unpaired: Interval | None = None
    """The same difference, with an interval that ignores the pairing."""
    visible: float | None = None
    """The smallest true effect that this number of seeds would detect in four of five cases."""
    words: str = ""
    """"better", "no measurable effect", ...; "baseline" for the baseline itself."""


@dataclass(frozen=True, slots=True)
class Table:
    """One figure of every arm, in one view: one choice of an evaluation for each run."""

    figure: str
    view: str
    """"equal iterations, 1,400", "equal training time, 93 s", "best checkpoint of each run"."""
    higher_is_better: bool | None
    rows: tuple[Row, ...]
    bicubic: float | None = None
    """The same figure of bicubic interpolation; None where it is unknown, or not one for all."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an arm: medians over its seeds."""

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
    """One held-out image: each arm's score and difference from the baseline, over the seeds."""

    image: str
    bicubic: float | None
    scores: dict[str, Interval]
    differences: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many images an arm won and lost against the baseline, by means over the seeds."""

    won: int
    lost: int
    tied: int
    difference: Interval
    """Mean difference over images."""
    p: float | None
    """p value of Wilcoxon's signed-rank test over images; None for fewer than 6."""


@dataclass(frozen=True, slots=True)
class ImageTable:
    """One figure of every image; the worst images of the last arm come first."""

    figure: str
    higher_is_better: bool | None
    rows: tuple[ImageRow, ...]
    tallies: dict[str, Tally]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that the page and the terminal show. The first arm is the baseline."""

    title: str
    arms: tuple[Arm, ...]
    tables: tuple[Table, ...] = ()
    costs: tuple[Cost, ...] = ()
    images: ImageTable | None = None
    chosen: Callable[[RunRecord], Evaluation | None] = lambda record: record.last
    """Gives the evaluation of a run that the first view compares."""
    changes: dict[str, Sequence[Change]] = field(default_factory=dict)
    """Differences of each arm's recipe from the baseline's."""
    notes: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    """What the runs were trained and evaluated on, in sentences."""
