"""Files are written during training, one after another, in a separate thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Writer:
    """Calls functions in a second thread, in the order given, while training goes on.

    Their arguments must be copies: nothing that training changes. A failure is raised by the next
    `later` or `wait`.
    """

    def __init__(self) -> None:
        self.tolerate: Callable[[OSError], object] | None = None
        """Called with an error of the disk, in the thread, instead of raising it."""
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def later(self, write: Callable[..., Any], *arguments: Any) -> Future[None]:
        """Call `write(*arguments)` in the thread, after all calls given before.

        :returns: a future of this call; its `result()` waits, and raises if the call failed.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "writer")
        before, self._last = self._last, None
        if before is not None and before.done():
            before.result()
        self._last = self._pool.submit(self._after, before, write, arguments)
        return self._last

    def check(self) -> None:
        """Raise the failure of a call, if there was one; does not wait."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all calls are done.

        :raises Exception: the first failure; calls given after it are not carried out.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait, and end the thread; failures are raised."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _after(
        self, before: Future[None] | None, write: Callable[..., Any], arguments: Any
    ) -> None:
        if before is not None:
            before.result()  # done by now; if it failed, this call is not carried out either
        try:
            write(*arguments)
        except OSError as error:
            if self.tolerate is None:
                raise
            self.tolerate(error)
