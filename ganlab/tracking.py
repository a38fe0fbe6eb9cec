"""The trackers of a run at work: each has a thread that reads the run folder and hands it over."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ganlab.errors import first_line
from ganlab.files import write_json
from ganlab.run import Run
from ganlab.runs.folder import RunFolder, read_tables
from ganlab.runs.reading import read_json
from ganlab.runs.tail import Tail
from ganlab.toolbox.tracker import Setting, Tracked, Tracker

EVERY_SECONDS = 1.0
"""Time between two looks into the run folder."""
LAST_SECONDS = 60.0
"""How long the end of a sitting waits for a tracker that still has to write."""


def follow(run: Run, folder: RunFolder, say: Callable[[str], None]) -> list["Follower"]:
    """Let the trackers of a recipe follow a sitting of its run.

    :param say: tells the user a line.
    """
    trackers = [plugin for plugin in run.recipe.plugins.values() if isinstance(plugin, Tracker)]
    about = _about(run, folder) if trackers else None
    followers = [Follower(tracker, about, folder, say) for tracker in trackers if about]
    for follower in followers:
        follower.start()
    return followers


def leave(followers: Sequence["Follower"], state: str) -> None:
    """End them, now that the sitting has ended; what is left is handed over first.

    :param state: how the sitting has ended.
    """
    for follower in followers:
        follower.call_off(state)
    for follower in followers:
        follower.wait()


class Follower(threading.Thread):
    """Reads what a run writes, and hands it to one tracker."""

    def __init__(
        self, tracker: Tracker, about: Tracked, folder: RunFolder, say: Callable[[str], None]
    ) -> None:
        # a daemon: a tool that hangs keeps no process alive
        super().__init__(name=f"tracker {tracker.name}", daemon=True)
        self._tracker, self._about, self._folder, self._say = tracker, about, folder, say
        self._ended, self._state = threading.Event(), ""
        self._place = folder.tracked(tracker.name)
        known = read_json(self._place)
        picture = known.get("picture")
        self._line = _place(known.get("line"))
        """The last line that was taken: its iteration, and its number among those of it."""
        self._picture = picture if type(picture) is int else -1
        """The iteration of the last picture that was taken."""
        self._stats = Tail(folder.stats)
        self._lines: Counter[int] = Counter()

    def call_off(self, state: str) -> None:
        """Say that the sitting has ended."""
        self._state = state
        self._ended.set()

    def wait(self) -> None:
        """Wait for it, but not for ever."""
        self.join(LAST_SECONDS)
        if self.is_alive():
            self._tell(f"not done after {LAST_SECONDS:.0f} s, so it is left behind")

    def run(self) -> None:
        try:
            self._tracker.begin(self._about)
            while not self._ended.wait(EVERY_SECONDS):
                self._hand_over()
            self._hand_over()
            self._tracker.end(self._state)
        except BaseException as error:  # of a tool; SystemExit too
            self._tell(f"{type(error).__name__}: {first_line(error)}; it gets nothing more")

    def _tell(self, fault: str) -> None:
        self._say(f"warning: tracker {self._tracker.name}: {fault}. The run folder has everything")

    def _hand_over(self) -> None:
        """Hand over all that is new, and note how far that is."""
        before = self._line, self._picture
        try:
            lines, anew = self._stats.look()
            if anew:
                self._lines.clear()
            for line in lines:
                self._hand_over_line(line.pop("iteration"), line)
            for iteration, file in self._pictures():
                if iteration > self._picture:
                    self._tracker.picture(iteration, file)
                    self._picture = iteration
        finally:  # what was taken before an error is not given again
            if (self._line, self._picture) != before:
                self._tracker.flush()
                write_json(self._place, {"line": [*self._line], "picture": self._picture})

    def _hand_over_line(self, iteration: int, line: dict[str, float | None]) -> None:
        self._lines[iteration] += 1
        place = (iteration, self._lines[iteration])
        if place > self._line:
            figures = {name: float(v) for name, v in line.items() if v is not None}
            self._tracker.log(iteration, figures)
            self._line = place

    def _pictures(self) -> list[tuple[int, Path]]:
        found = [file for file in self._folder.samples.glob("*.png") if file.stem.isdecimal()]
        return sorted((int(file.stem), file) for file in found)


def _place(value: Any) -> tuple[int, int]:
    whole = isinstance(value, list) and [type(part) for part in value] == [int, int]
    return (value[0], value[1]) if whole else (0, 0)


def _about(run: Run, folder: RunFolder) -> Tracked:
    tables = read_tables(folder)
    plugins = tables.pop("plugins")
    settings = dict(_flat(tables)) | dict(_flat(plugins))
    metric = f"evaluation/{run.recipe.best_metric}"
    id_ = str(read_json(folder.manifest).get("id", folder.path.name))
    return Tracked(folder.path, id_, run.iteration, settings, metric)


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            yield f"{prefix}{key}", value if plain else str(value)
