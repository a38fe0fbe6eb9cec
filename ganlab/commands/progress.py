"""How far a long command is, as a bar on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ganlab.errors import visible
from ganlab.terminal import Terminal


@dataclass(slots=True)
class Bar:
    """A bar for one piece of work after the other; without `progress` it shows nothing."""

    progress: Progress | None = None
    task: TaskID | None = None

    def begin(self, name: str, total: float, unit: str, with_speed: bool = False) -> None:
        """Begin a piece of work; the bar of the one before goes.

        :param total: of the units; 0 when it is not known.
        """
        if self.progress is None:
            return
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(
            visible(name), total=total or None, unit=unit, with_speed=with_speed
        )

    def at(self, done: float) -> None:
        """Show that so many units are done."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done)

    def say(self, text: str) -> None:
        """Print a line on stdout, above the bar where that is the same terminal."""
        if self.progress is not None and sys.stdout.isatty():
            self.progress.console.print(text, soft_wrap=True)
        else:
            print(text)


@contextmanager
def shown_bar() -> Iterator[Bar]:
    """Context with a bar on stderr, when that is a terminal; it is gone at the end."""
    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield Bar()
        return
    label = TextColumn("{task.description}", markup=False)
    count = _Count(Column(no_wrap=True))  # so that it is the bar that gets shorter
    columns = (label, BarColumn(), count, TimeRemainingColumn())
    # lines of text on stdout stay there: they may go to a file
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        yield Bar(progress)


class _Count(ProgressColumn):
    """`12 of 250 frames, 3.1 frames/s`."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = f" of {task.total:,.0f}" if task.total else ""
        text = f"{int(task.completed):,}{total} {unit}"
        if task.fields["with_speed"] and task.speed:
            text += f", {task.speed:.2f} {unit}/s"
        return Text(text)
