"""Files written beside the training, one after another, by a thread of their own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Writer:
    """Carries out what it is given in order, while training goes on.

    What is given must hold copies: nothing that training changes. A failure is raised by the next
    `later` or `wait`.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def later(self, write: Callable[..., Any], *arguments: Any) -> Future[None]:
        """Have `write(*arguments)` done after what was given before.

        :returns: done when it is; its `result()` waits, and raises the failure if it is one.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "writer")
        before, self._last = self._last, None
        if before is not None and before.done():
            before.result()
        self._last = self._pool.submit(_after, before, write, arguments)
        return self._last

    def wait(self) -> None:
        """Until all is done.

        :raises Exception: that of the first failure; what was given after it is not done.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait, and let the thread go; failures are raised."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None


def _after(before: Future[None] | None, write: Callable[..., Any], arguments: Any) -> None:
    if before is not None:
        before.result()  # done by now; what failed ends what comes after it
    write(*arguments)
