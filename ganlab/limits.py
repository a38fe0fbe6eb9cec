"""What ends a sitting before the recipe's end."""

import time
from collections.abc import Callable

from ganlab.errors import RecipeError
from ganlab.run import Run
from ganlab.stopping import heard


class Limits:
    """When to stop before the recipe's end: a signal, an iteration, a number of seconds."""

    def __init__(
        self,
        max_iterations: int | None = None,
        max_seconds: float | None = None,
        called_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """:param called_off: called at every iteration; True stops the run as SIGTERM does."""
        self.max_iterations, self.max_seconds = max_iterations, max_seconds
        self.called_off = called_off
        self.deadline: float | None = None
        self.run: Run | None = None

    def begin(self, run: Run) -> None:
        """Start the clock: decoding data and building networks is not training time."""
        self.run = run
        if self.max_seconds:
            self.deadline = time.monotonic() + self.max_seconds
        if self.max_iterations and run.iteration >= self.max_iterations:
            raise RecipeError(
                f"--max-iterations {self.max_iterations}: the run is at iteration {run.iteration}; "
                "give a larger number"
            )

    def __call__(self) -> str:
        if heard() is not None or self.called_off():
            return "signal"
        if self.run and self.run.world.called_off():  # another process of the run heard it
            return "signal"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "time"
        if self.run and self.max_iterations and self.run.iteration >= self.max_iterations:
            return "iterations"
        return ""
