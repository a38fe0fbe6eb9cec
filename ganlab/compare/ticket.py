"""A file that says that a task is still wanted, for workers on other machines.

A worker that sees the folder of runs looks at it. Once it is gone, the run is saved and ends: the
command was interrupted, or a later command makes the run. So what waits in the queue of a cluster
when its command is killed does no harm later.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = ".tasks"
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """The ticket of one task."""

    path: Path

    def holds(self) -> bool:
        """Whether the task is still wanted."""
        try:  # opened, not only asked for: a network file system then looks anew
            self.path.read_bytes()
        except FileNotFoundError:
            return False
        return True

    def withdraw(self) -> None:
        """Want the task no more."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # when it was the last one

    def watched(self, more: Callable[[], bool]) -> Callable[[], bool]:
        """A function that says whether the task is called off; it looks once a second.

        :param more: asked too, each time.
        """
        looked = time.monotonic()
        gone = not self.holds()

        def called_off() -> bool:
            nonlocal looked, gone
            if time.monotonic() - looked >= _LOOK_SECONDS:
                looked, gone = time.monotonic(), not self.holds()
            return gone or more()

        return called_off


def issue(parent: Path, key: str) -> Ticket:
    """The ticket for a task; those of the same key that earlier commands have left are withdrawn.

    :param parent: the folder that holds the run folders.
    """
    folder = parent / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob(f"{key}.*"):
        other.unlink(missing_ok=True)
    ticket = Ticket(folder / f"{key}.{secrets.token_hex(4)}")
    ticket.path.touch()
    return ticket
