"""The journal of a run: its .jsonl files, and the lines and progress bar on the terminal."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from ganlab.disk import NotWritten, append_whole, telling_disk
from ganlab.errors import Diverged, printable
from ganlab.files import append, whole
from ganlab.monitoring.verdicts import History, Verdict
from ganlab.runs.folder import RunFolder
from ganlab.runs.means import told
from ganlab.runs.reading import LOGS, NONFINITE, Log, Written, is_loss
from ganlab.runs.rewinding import kept_lines
from ganlab.speed.device import widest_float
from ganlab.terminal import Terminal

EACH_UNTIL = 10_000
"""Up to this iteration every line of losses is written."""
THINNED = 7
"""From there on one in 7, 7 times later one in 49, and so on."""
PLAIN_SECONDS = 5.0  # between two plain lines, when stderr is not a terminal


def is_written(iteration: int) -> bool:
    """Whether a line of losses alone is written to stats.jsonl; all other lines are.

    So the file grows with the logarithm of the iterations. Every iteration up to `EACH_UNTIL` is
    written, then those at multiples of 7 up to seven times as many, then those at multiples of 49,
    and so on. Seven, because intervals in recipes are hardly ever multiples of it: a loss that is
    computed every second or every sixteenth iteration is still seen.
    """
    step = 1
    while iteration > EACH_UNTIL * step:
        step *= THINNED
    return iteration % step == 0


class Journal:
    """Writes the losses, evaluations and verdicts of a run, and reports them on the terminal.

    Losses stay on the device until a report is due; then one transfer copies them. stats.jsonl
    holds numbers that a resumed run repeats to the byte. Wall-clock times are in a separate file,
    timing.jsonl.
    """

    def __init__(self, folder: RunFolder, total: int, images: int, report_every: int) -> None:
        """:param images: number that G learns from in one iteration, for the reported images/s."""
        self.folder = folder
        self.history = History()
        self.verdicts: dict[str, str] = {}
        """The sentence of each verdict so far, by its name."""
        self.carries_on = False
        """Whether lines that cannot be written wait for the next try, instead of ending the run."""
        self._waiting: dict[Path, list[str]] = {}
        self._told: set[Path] = set()
        self.console = Terminal(stderr=True, soft_wrap=True)
        self._total, self._images, self._every = total, images, report_every
        self._pending: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []
        self._progress: _Bar | None = None
        self._began = self._reported = self._spoke = time.monotonic()
        self._left_out: dict[str, list[str]] = {}
        self._first = self._last = 0
        self._seconds_before = 0.0
        self._logs = [folder.path / name for name in LOGS]
        self._written: dict[str, tuple[int, Any]] = {}
        """By the name of a log: its length in bytes, and a running sha256 of it."""

    def begin(
        self,
        iteration: int,
        evaluates_again: bool = False,
        written: Written | None = None,
        rolled_back: int = 0,
    ) -> None:
        """Drop lines that a killed run wrote after this iteration; start the clock.

        :param evaluates_again: whether the evaluation of this iteration comes next: its lines are
            dropped too. A verdict at it stays, since it is not told twice.
        :param written: what the checkpoint says of the logs. Damage to them is told.
        :param rolled_back: how often the run went back to a checkpoint; the verdicts that tell of
            it are kept.
        """
        for path in self._logs:
            known = (written or {}).get(path.name)
            content = kept_lines(path, iteration, known, evaluates_again, rolled_back)
            with whole(path) as file:
                file.write(content)
            self._written[path.name] = (len(content), hashlib.sha256(content))
        for line in Log(self.folder.stats):
            self.history.add(line.pop("iteration"), _without_null(line))
        self.verdicts = {line["name"]: line["sentence"] for line in Log(self.folder.verdicts)}
        self._seconds_before = _last_seconds(self.folder)
        self._first = self._last = iteration
        self._began = self._reported = time.monotonic()
        if self.console.is_terminal:
            self._progress = _Bar(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("", total=self._total, completed=iteration)
            self._progress.start()

    def end(self) -> None:
        if self._progress:
            self._progress.stop()

    def say(self, line: str) -> None:
        """Tell the user a line, above the progress bar if there is one, and write it to the log."""
        self.log(line)
        self._show(line)

    def log(self, text: str) -> None:
        """Write a text to the run's log.txt, with the time. It is lost when the disk is full."""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n"
        with suppress(OSError):
            append_whole(self.folder.log, line.encode(errors="backslashreplace"))

    def _show(self, line: str) -> None:
        self.console.print(line)

    @property
    def seconds(self) -> float:
        """Time spent on this run, earlier sittings included."""
        return self._seconds_before + time.monotonic() - self._began

    def record(
        self, iteration: int, losses: dict[str, Tensor], flags: dict[str, Tensor] | None = None
    ) -> None:
        """Note the losses of an iteration.

        :param iteration: counted from 1: how many iterations are now completed.
        :param flags: of its steps, by name: 1 where a number was not finite.
        """
        self._pending.append((iteration, losses, flags or {}))
        if self._progress:
            self._progress.update(self._task, completed=iteration)
        if len(self._pending) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write the pending lines.

        :raises Diverged: when a loss is not finite, or the flag of a step is set; the lines up to
            it are written.
        """
        if not self._pending:
            return
        told = [values for _, *both in self._pending for values in both]
        flat = [value.detach() for values in told for value in values.values()]
        exact = widest_float(flat[0].device) if flat else torch.float64
        # the only sync of the loop
        values = iter(torch.stack([v.to(exact) for v in flat]).tolist() if flat else [])
        lines: list[str] = []
        fault: Diverged | None = None
        figures: dict[str, float] = {}
        for iteration, losses, flags in self._pending:
            figures = {name: next(values) for name in losses}
            left_out = [step for step in flags if next(values)]
            bad = [name for name, value in figures.items() if not math.isfinite(value)]
            if (bad or left_out) and not fault:
                what = ", ".join(bad) or "a gradient or the learning rate"
                fault = Diverged(iteration, f"{what} is not finite", *left_out[:1])
                lines.append(_line(iteration, {k: v for k, v in figures.items() if k not in bad}))
            elif not fault:
                self.history.add(iteration, _rounded_as_written(figures))
                if is_written(iteration) or not all(map(is_loss, figures)):
                    lines.append(_line(iteration, figures))
        last = self._pending[-1][0]
        self._pending.clear()
        self._append(self.folder.stats, lines)
        if fault:
            raise fault
        self._report(last, figures)

    def sync(self) -> None:
        """Put the lines written so far on the disk, before a checkpoint that relies on them."""
        for path in list(self._waiting):  # training goes on in the other thread
            raise NotWritten(f"{path}: lines still wait, so no checkpoint counts")
        for path in self._logs:
            with telling_disk(path), append(path) as file:
                os.fsync(file.fileno())

    def written(self) -> Written:
        """How much of each log that a resumed run repeats to the byte was written, and its sha256.

        All pending lines must have been written.
        """
        return {
            name: (size, digest.hexdigest())
            for name, (size, digest) in self._written.items()
            if name != self.folder.timing.name
        }

    def evaluation(
        self,
        iteration: int,
        figures: dict[str, float],
        scores: dict[str, dict[str, dict[str, float]]],
        left_out: dict[str, list[str]],
        health: dict[str, float],
        written: bool = True,
    ) -> None:
        """Report an evaluation's figures.

        :param left_out: the images that a figure does not count, by the figure.
        :param written: whether to write the figures and each image's scores too; False for an
            extra evaluation of a run that was stopped early.
        """
        self.flush()
        if written:
            every = dict.fromkeys(left_out, math.nan) | figures
            named = {f"evaluation/{name}": value for name, value in every.items()} | health
            self._append(self.folder.stats, [_line(iteration, named)])
            self.history.add(iteration, _rounded_as_written(named))
            self._append(self.folder.scores, [_scores_line(iteration, scores)])
        if figures:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.say(f"evaluation at {iteration}: {shown}")
        if left_out and left_out != self._left_out:
            count = len(scores["images"])
            self.say(f"not finite, so left out of the means: {told(left_out, count)}")
        self._left_out = left_out

    def verdict(self, iteration: int, verdict: Verdict, action: str, **more: Any) -> None:
        """Report a verdict, and write it to verdicts.jsonl.

        :param more: further items of its line.
        """
        self.verdicts[verdict.name] = verdict.sentence
        line = {"iteration": iteration, **asdict(verdict), "action": action, **more}
        self._append(self.folder.verdicts, [json.dumps(line)])
        self.say(f"verdict: {verdict.sentence} ({action})")

    def skipped(self, fault: Diverged) -> None:
        """Report a step that was skipped, and write it to verdicts.jsonl."""
        sentence = f"a number was not finite at {fault}"
        self.verdict(fault.iteration, Verdict(NONFINITE, fault.iteration, sentence), "skip")

    def _report(self, iteration: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        rate = self._images * (iteration - self._last) / max(now - self._reported, 1e-9)
        self._last, self._reported = iteration, now
        timing = {"iteration": iteration, "seconds": round(self.seconds, 3)}
        self._append(self.folder.timing, [json.dumps(timing)])
        shown = {n: v for n, v in figures.items() if n.startswith(("D/", "G/"))}
        losses = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        speed = f"{rate:.0f} images/s"
        if self._progress:
            self._progress.losses = losses
            self._progress.update(self._task, description=speed)
        elif now - self._spoke >= PLAIN_SECONDS:
            self._spoke = now
            done = max(iteration - self._first, 1)
            left = (self._total - iteration) * (now - self._began) / done
            self._show(f"{iteration}/{self._total}  {losses}  {speed}  ETA {_clock(left)}")

    def _append(self, path: Path, lines: list[str]) -> None:
        waiting = [*self._waiting.pop(path, []), *lines]
        if not waiting:
            return
        content = ("\n".join(waiting) + "\n").encode()
        try:
            append_whole(path, content)
        except NotWritten as error:
            if not self.carries_on:
                raise
            if path not in self._told:
                self.say(f"warning: {error}; its lines wait, and the run carries on")
            self._waiting[path] = waiting
            self._told.add(path)
            return
        self._told.discard(path)
        size, digest = self._written.setdefault(path.name, (0, hashlib.sha256()))
        digest.update(content)
        self._written[path.name] = (size + len(content), digest)

    def append_waiting(self) -> None:
        """Try again to write the lines that could not be written."""
        for path in list(self._waiting):
            self._append(path, [])


class _Bar(Progress):
    """A progress bar with a line of losses below it."""

    losses = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(printable(self.losses), style="dim")


def _line(iteration: int, figures: dict[str, float]) -> str:
    return json.dumps({"iteration": iteration, **_rounded(figures)})


def _scores_line(iteration: int, scores: dict[str, dict[str, dict[str, float]]]) -> str:
    rounded = {
        who: {image: _rounded(figures) for image, figures in images.items()}
        for who, images in scores.items()
    }
    return json.dumps({"iteration": iteration, **rounded})


def _rounded(figures: dict[str, float]) -> dict[str, float | None]:
    """9 significant digits, enough to distinguish float32 numbers; null if not finite."""
    return {k: float(f"{v:.9g}") if math.isfinite(v) else None for k, v in figures.items()}


def _rounded_as_written(figures: dict[str, float]) -> dict[str, float]:
    """The figures as a resumed run reads them from the file, so that its verdicts are the same."""
    return _without_null(_rounded(figures))


def _without_null(figures: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def _last_seconds(folder: RunFolder) -> float:
    seconds = [line["seconds"] for line in Log(folder.timing) if line.get("seconds")]
    return float(seconds[-1]) if seconds else 0.0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
