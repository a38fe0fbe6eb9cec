"""Reads the files of a run folder, for tables and pages; no network is built."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganlab.errors import RecipeError, printable
from ganlab.runs.data import Data
from ganlab.runs.folder import RunFolder, open_run_folder, read_data, read_tables
from ganlab.runs.means import is_better, left_out
from ganlab.runs.pictures import Crop, read_crops
from ganlab.runs.reading import (
    Log,
    Written,
    as_written,
    entry,
    is_count,
    is_text,
    read_json,
    tell_once,
)
from ganlab.runs.record import Change, read_record

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one figure, and the iterations at which it was written."""

    iterations: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of the generator: figures of the held-out set, and each image's scores."""

    iteration: int
    seconds: float
    """Training time until then, all sittings together, with the time of the evaluations."""
    figures: dict[str, float]
    images: Scores = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The contents of a run folder. A figure that was not finite is nan here."""

    folder: RunFolder
    recipe: dict[str, Any]
    """The resolved recipe as TOML tables."""
    manifest: dict[str, Any]
    status: dict[str, Any]
    series: dict[str, Series]
    """Losses ("D/...", "G/..."), gradients ("gradient/...", "share/...", "cosine/..."),
    "health/..." and "replay/...", each under its name in stats.jsonl."""
    seconds: Series
    """Training time at each report."""
    evaluations: list[Evaluation]
    bicubic: Scores
    """Scores of each held-out image enlarged by bicubic interpolation."""
    verdicts: list[dict[str, Any]]
    crops: list[Crop]
    data: Data = field(default_factory=dict)
    """What the run reads, as digests; empty where the run folder does not say it."""
    damage: tuple[str, ...] = ()
    """What is wrong with its logs, a sentence each."""
    changes: tuple[Change, ...] = ()
    """What was changed in its recipe since its start."""

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    @property
    def state(self) -> str:
        """The state in status.json: done, stopped, diverged, failed or running."""
        return str(self.status.get("state", "unknown"))

    @property
    def counts(self) -> bool:
        """Whether the run's figures are used: not when it diverged or failed."""
        return self.state not in ("diverged", "failed")

    @property
    def ended_early(self) -> str:
        """Why the run is done before the recipe's last iteration; empty when it is not."""
        return str(self.status.get("message", "")) if self.state == "done" else ""

    @property
    def last(self) -> Evaluation | None:
        return self.evaluations[-1] if self.evaluations else None

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation by the recipe's metric."""
        metric, best = self.recipe["best_metric"], None
        for one in self.evaluations:
            if not math.isfinite(one.figures.get(metric, math.nan)):
                continue
            if best is None or is_better(
                one.figures[metric],
                self.behind(one, metric),
                best.figures[metric],
                self.behind(best, metric),
                self.sign,
            ):
                best = one
        return best

    def behind(self, evaluation: Evaluation, figure: str) -> dict[str, float]:
        """The scores of the images over which a figure is the mean; empty for other figures."""
        without = left_out(evaluation.images, self.bicubic).get(figure, ())
        rows = evaluation.images.items()
        found = {i: scores.get(figure, math.nan) for i, scores in rows if i not in without}
        return {image: value for image, value in found.items() if math.isfinite(value)}

    @property
    def sign(self) -> int:
        """1 where the highest value of the best metric is the best, else -1."""
        return 1 if self.recipe["best_is"] == "highest" else -1


def read_run(path: Path | str) -> RunRecord:
    """Read a run folder, finished or not. Damaged records are told on stderr and left out.

    :raises RecipeError: when it is not a run folder, or its recipe cannot be read.
    """
    folder = open_run_folder(path)
    recipe, status = _recipe(folder), folder.read_status()
    logs = [Log(folder.timing), Log(folder.stats)]
    timed, series = (_series(log) for log in logs)
    seconds = timed.get("seconds", _EMPTY)
    evaluated = {name: series.pop(name) for name in list(series) if name.startswith("evaluation/")}
    logs += [Log(folder.scores), Log(folder.verdicts)]
    scores, verdicts = (list(log) for log in logs[2:])
    return RunRecord(
        folder,
        recipe,
        read_json(folder.manifest),
        status,
        series,
        seconds,
        list(_evaluations(evaluated, seconds, scores)),
        next((_finite(line["bicubic"]) for line in scores if "bicubic" in line), {}),
        verdicts,
        read_crops(folder.pictures),
        read_data(folder),
        tuple(_damage(folder, logs, status.get("logs", {}))),
        read_record(folder.path).changes,
    )


_EMPTY = Series(np.empty(0, np.int64), np.empty(0))
_RECIPE = entry(
    seed=is_count,
    iterations=is_count,
    batch_size=is_count,
    d_steps=is_count,
    g_steps=is_count,
    best_metric=is_text,
    best_is=is_text,
    precision=is_text,
)


def _recipe(folder: RunFolder) -> dict[str, Any]:
    recipe = read_tables(folder)
    if not _RECIPE(recipe):
        raise RecipeError(
            f"{printable(str(folder.recipe))}: it is not the recipe of a run: a value is "
            "absent or wrong; put back the recipe of the run"
        )
    return recipe


def _damage(folder: RunFolder, logs: list[Log], written: Written) -> Iterator[str]:
    """What is wrong with the logs, a sentence each; told on stderr too."""
    for log in logs:
        fault = log.fault
        if (
            not fault
            and log.path.name in written
            and not as_written(log.path, *written[log.path.name])
        ):
            fault = f"{log.path.name}: not as the run wrote it (its sha256 differs)"
        if fault:
            tell_once(f"{printable(str(folder.path))}: {fault}")
            yield f"{folder.path.name}: {fault}"


def _series(log: Log) -> dict[str, Series]:
    """Every figure of a log; it is read line by line, never all in memory."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for figures in log:
        iteration = figures.pop("iteration")
        for name, value in figures.items():
            iterations, values = found.setdefault(name, ([], []))
            iterations.append(iteration)
            values.append(math.nan if value is None else value)
    return {n: Series(np.array(i, np.int64), np.array(v, float)) for n, (i, v) in found.items()}


def _evaluations(
    evaluated: dict[str, Series], seconds: Series, scores: list[dict[str, Any]]
) -> Iterator[Evaluation]:
    figures: dict[int, dict[str, float]] = {}
    for name, series in evaluated.items():
        for iteration, value in zip(series.iterations, series.values, strict=True):
            figures.setdefault(int(iteration), {})[name.removeprefix("evaluation/")] = float(value)
    images = {line["iteration"]: _finite(line.get("images", {})) for line in scores}
    for iteration in sorted(figures):
        yield Evaluation(
            iteration, seconds_at(seconds, iteration), figures[iteration], images.get(iteration, {})
        )


def seconds_at(seconds: Series, iteration: int) -> float:
    """Training time at an iteration, interpolated between reports; nan without reports."""
    if not len(seconds.iterations):
        return math.nan
    return float(np.interp(iteration, [0, *seconds.iterations], [0, *seconds.values]))


def _finite(scores: dict[str, dict[str, float | None]]) -> Scores:
    return {
        image: {name: math.nan if value is None else value for name, value in row.items()}
        for image, row in scores.items()
    }
