"""The progress of all runs of a command in one table; plain lines where there is no terminal."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ganlab.commands.watch import STYLES, Seen, clock
from ganlab.errors import printable
from ganlab.runs.folder import RunFolder
from ganlab.runs.reference import runs_in

LOOK_SECONDS = 1.0
PLAIN_SECONDS = 60.0
"""Between two lines, where there is no terminal."""
MOST_ROWS = 30
"""Runs that are shown one by one; those in progress go first."""
_BAR = 16


@dataclass
class Row:
    """One run of the table."""

    label: str
    recipe: str = ""
    """Its resolved recipe, by which its folder is found."""
    folder: Path | None = None
    state: str = "waiting"
    seen: Seen | None = None

    def look(self) -> None:
        """Read what its run has written since the last look."""
        if self.folder is not None:
            self.seen = self.seen or Seen(RunFolder(self.folder))
            self.seen.look()


@dataclass
class Progress:
    """What is known of all runs. It reads their folders, whoever makes them."""

    parent: Path
    rows: dict[str, Row] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _looked: float = -math.inf

    def add(self, label: str) -> None:
        """A run that will be made."""
        self.rows.setdefault(label, Row(label))

    def begins(self, label: str, recipe: str, folder: Path | None) -> None:
        """A run was handed out; perhaps it waits in a queue."""
        row = self.rows.setdefault(label, Row(label))
        row.recipe, row.folder, row.state = recipe, folder or row.folder, "handed out"

    def ended(self, label: str, state: str, folder: Path | None) -> None:
        """A run has ended."""
        row = self.rows.setdefault(label, Row(label))
        row.state, row.folder = state, folder or row.folder
        row.look()

    def look(self) -> bool:
        """Read the folders of the runs at work, once a second; returns whether it has."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        at_work = [row for row in self.rows.values() if row.state in ("handed out", "running")]
        if wanted := {row.recipe: row for row in at_work if row.folder is None}:
            self._find(wanted)
        for row in at_work:
            row.look()
            if row.seen and row.seen.state == "running":
                row.state = "running"
        return True

    def _find(self, wanted: dict[str, Row]) -> None:
        """Find the folders of runs that have just begun. Each folder is read once."""
        for folder in runs_in(self.parent):
            if folder.name in self._known:
                continue
            text = (folder / "recipe.toml").read_text(encoding="utf-8", errors="replace")
            row = wanted.get(text)
            if row is None:
                self._known.add(folder.name)
            elif RunFolder(folder).read_status().get("state") == "running":
                self._known.add(folder.name)
                row.folder = folder

    def counts(self) -> str:
        """How many runs are in which state: "2 running, 3 done"."""
        states = [row.state for row in self.rows.values()]
        order = dict.fromkeys(["running", "handed out", "waiting", *states])
        return ", ".join(f"{states.count(s)} {s}" for s in order if s in states)

    def line(self) -> str:
        """All of it in one line."""
        at_work = [row for row in self.rows.values() if row.state == "running" and row.seen]
        told = [f"{r.label} {r.seen.iteration:,}/{r.seen.of:,}" for r in at_work if r.seen]
        more = f", {len(told) - MOST_ROWS} more" if len(told) > MOST_ROWS else ""
        return f"{self.counts()}{': ' if told else ''}{', '.join(told[:MOST_ROWS])}{more}"

    def table(self) -> RenderableType:
        rows = sorted(self.rows.values(), key=lambda row: row.state != "running")
        table = Table.grid(padding=(0, 2))
        for row in rows[:MOST_ROWS]:
            table.add_row(*_cells(row))
        table.caption = self.counts()
        table.caption_justify = "left"
        return table


def _cells(row: Row) -> Iterator[RenderableType]:
    yield Text(printable(row.label))
    yield Text(row.state, style=STYLES.get(row.state, "dim"))
    seen = row.seen
    if seen is None:
        yield from ("", "", "", "")
        return
    yield ProgressBar(total=max(seen.of, 1), completed=seen.iteration, width=_BAR)
    yield f"{seen.iteration:,}/{seen.of:,}"
    rate, _ = seen.pace()
    going = row.state == "running" and math.isfinite(rate) and rate > 0
    yield f"ETA {clock((seen.of - seen.iteration) / rate)}" if going else ""
    values = seen.series.get(f"evaluation/{seen.metric}")
    yield f"{seen.metric} {values[-1]:.4g}" if values else ""


@contextmanager
def showing(
    progress: Progress, console: Console, say: Callable[[str], None]
) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Context with two functions: one looks and shows what is new, one says a line.

    In a terminal the table stays below the lines; else a line is said now and then.

    :param say: says a line where there is no terminal.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(progress, say).show, say
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            if progress.look():
                live.update(progress.table(), refresh=True)

        yield show, lambda line: live.console.print(Text(line), soft_wrap=True)


class _Lines:
    def __init__(self, progress: Progress, say: Callable[[str], None]) -> None:
        self._progress, self._say = progress, say
        self._spoke = time.monotonic()

    def show(self) -> None:
        self._progress.look()
        if time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self._spoke = time.monotonic()
            self._say(self._progress.line())
