"""A run in the terminal while it trains: figures, a sparkline for each loss, the last strip."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ganlab.commands.terminal_pictures import Strip, maker_for
from ganlab.errors import printable
from ganlab.report.figures import in_order
from ganlab.runs.folder import RunFolder, read_tables
from ganlab.runs.pictures import newest_sample
from ganlab.runs.tail import Tail
from ganlab.stopping import Stopped
from ganlab.terminal import sparkline

LOOK_SECONDS = 1.0
PLAIN_SECONDS = 30.0
"""Between two lines that are not of an evaluation, where there is no terminal."""
LONGEST = 60  # places of a sparkline
RECENT = 20
"""Reports of the time from which the pace is taken."""
_FROM = "evaluation/"


class Seen:
    """What is known of a run so far."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.metric = str(read_tables(folder).get("best_metric", ""))
        self.status: dict[str, Any] = {}
        self.series: dict[str, list[float]] = {}
        self.verdicts: list[str] = []
        self.iteration = 0
        self.times: list[tuple[int, float]] = []
        """Iterations and the training time until then, of the last `RECENT` reports."""
        self._stats, self._timing, self._verdicts = map(
            Tail, (folder.stats, folder.timing, folder.verdicts)
        )

    def look(self) -> str:
        """Read what was written since the last look; returns the state of the run."""
        self.status = self.folder.read_status()  # first: what comes after the end is read too
        lines, anew = self._stats.look()
        if anew:
            self.series.clear()
            self.iteration = 0
        for line in lines:
            self.iteration = line.pop("iteration")
            for name, value in line.items():
                self.series.setdefault(name, []).append(math.nan if value is None else value)
        lines, anew = self._timing.look()
        found = [(line["iteration"], line.get("seconds") or 0.0) for line in lines]
        self.times = (([] if anew else self.times) + found)[-RECENT:]
        lines, anew = self._verdicts.look()
        self.verdicts = ([] if anew else self.verdicts) + [line["sentence"] for line in lines]
        return self.state

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def of(self) -> int:
        return int(self.status.get("of", 0))

    def names(self, *prefixes: str) -> list[str]:
        return [name for name in self.series if name.startswith(prefixes)]

    def figures(self) -> list[str]:
        """The figures of evaluations."""
        return in_order(name.removeprefix(_FROM) for name in self.names(_FROM))

    def pace(self) -> tuple[float, float]:
        """Iterations in a second of late, and seconds of training so far; nan while unknown."""
        if not self.times:
            return math.nan, math.nan
        (first, began), (last, ended) = self.times[0], self.times[-1]
        passed = ended - began
        return (last - first) / passed if passed > 0 else math.nan, ended


def watch(folder: RunFolder, console: Console, wait: Callable[[float], object] = time.sleep) -> str:
    """Show a run until it ends, or for once when it has ended; returns its state.

    :param wait: called with the seconds until the next look.
    """
    seen = Seen(folder)
    make, help_text = maker_for(console)
    strip = Strip(console, make)
    try:
        with _showing(console) as show:
            while True:
                state = seen.look()
                sample = newest_sample(folder.samples)
                shown = display(seen, console, "" if make else told_of(sample, help_text))
                strip.show(sample, console.height - _height(shown, console) - 2)
                show(seen, shown)
                if state != "running":
                    return state
                wait(LOOK_SECONDS)
    except Stopped as stopped:
        raise Stopped(stopped.number, "while it watched; the run itself is not stopped") from None


def told_of(sample: object, help_text: str) -> str:
    """Where the last strip is, for a terminal without pictures."""
    return f"last strip: {sample}{f' ({help_text})' if help_text else ''}" if sample else ""


def _height(shown: RenderableType, console: Console) -> int:
    return len(console.render_lines(shown, pad=False))


@contextmanager
def _showing(console: Console) -> Iterator[Callable[[Seen, RenderableType], None]]:
    """Context with a function that shows what was seen: in its place, or as lines in a file."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console).show
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda seen, shown: live.update(shown, refresh=True)


class _Lines:
    """A line at each evaluation, now and then one between them, and all figures at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spoke, self._evaluations, self._verdicts = -math.inf, 0, 0

    def show(self, seen: Seen, shown: RenderableType) -> None:
        if seen.state != "running":
            self._console.print(shown)
            return
        for sentence in seen.verdicts[self._verdicts :]:
            self._console.print(f"verdict: {sentence}", soft_wrap=True)
        self._verdicts = len(seen.verdicts)
        evaluations = max((len(seen.series[name]) for name in seen.names(_FROM)), default=0)
        due = time.monotonic() - self._spoke >= PLAIN_SECONDS
        if seen.iteration and (due or evaluations != self._evaluations):
            names = [*seen.names("D/", "G/"), *(_FROM + name for name in seen.figures())]
            told = [f"{n.removeprefix(_FROM)} {seen.series[n][-1]:.4g}" for n in names]
            line = "  ".join([f"{seen.iteration:,}/{seen.of:,}", *told])
            self._console.print(line, soft_wrap=True)
            self._spoke, self._evaluations = time.monotonic(), evaluations


def display(seen: Seen, console: Console, last_line: str = "") -> RenderableType:
    """What is known of a run, as text for the width of a terminal."""
    parts: list[RenderableType] = [_head(seen), _table(seen, console)]
    parts += [Text(f"verdict: {printable(text)}", style="red") for text in seen.verdicts]
    if message := seen.status.get("message"):
        parts.append(Text(printable(f"{seen.state}: {message}")))
    if last_line:
        parts.append(Text(printable(last_line), style="dim"))
    return Group(*parts)


STYLES = {"running": "green", "done": "bold", "diverged": "red", "failed": "red", "killed": "red"}


def _head(seen: Seen) -> RenderableType:
    rate, seconds = seen.pace()
    parts = []
    if seen.state == "running" and math.isfinite(rate) and rate > 0:
        parts += [f"{rate:.3g} iterations/s", f"ETA {clock((seen.of - seen.iteration) / rate)}"]
    if math.isfinite(seconds):
        parts.append(f"trained {clock(seconds)}")
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text(printable(seen.folder.path.name), style="bold"),
        Text(printable(seen.state), style=STYLES.get(seen.state, "yellow")),
        ProgressBar(total=max(seen.of, 1), completed=seen.iteration, width=24),
        f"{seen.iteration:,}/{seen.of:,}",
        *parts,
    )
    return grid


def _table(seen: Seen, console: Console) -> RenderableType:
    """Figures of evaluations with bicubic beside them, then losses, each with its curve."""
    bicubic, best = seen.status.get("bicubic") or {}, seen.status.get("best")
    rows = []
    for name in seen.figures():
        beside = f"bicubic {bicubic[name]:.4g}" if name in bicubic else ""
        if best and name == seen.metric:
            beside += f"{', ' if beside else ''}best {best[1]:.4g} at {int(best[0]):,}"
        rows.append((name, seen.series[_FROM + name], beside))
    rows += [(name, seen.series[name], "") for name in seen.names("D/", "G/")]
    names, besides = (max((len(row[at]) for row in rows), default=0) for at in (0, 2))
    width = max(8, min(LONGEST, console.width - names - besides - 16))
    table = Table.grid(padding=(0, 2))
    for name, values, beside in rows:
        line = sparkline(values, width, console.options.ascii_only)
        table.add_row(name, f"{values[-1]:.4g}", Text(line, style="cyan", no_wrap=True), beside)
    return table


def clock(seconds: float) -> str:
    """A duration as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
