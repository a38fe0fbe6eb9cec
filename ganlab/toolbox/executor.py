"""The base of what carries out the runs of a comparison: on this machine, or on others."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from ganlab.errors import GanlabError, RecipeError
from ganlab.option import STRICT

LOOK_SECONDS = 0.2
"""Between two looks at the runs in progress."""


class Lost(GanlabError):  # noqa: N818  # it names an outcome
    """The worker of a run is gone: killed, or its machine failed. The message says what is known.

    The run itself has not failed: it goes on from its newest checkpoint.
    """


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one task ended. It can be pickled."""

    folder: Path | None
    """The folder of the run; None when it never began."""
    code: int
    """The exit code that `ganlab run` would have had."""
    fault: str = ""
    """For a run that failed: its error in one line."""
    refusal: Exception | None = None
    """Why the run could not begin. Others would not begin either, so the command ends with it."""
    stopped_by: int | None = None
    """The signal at which the worker saved the run and ended it, before its end."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Files of a run on their way from a worker to the command. It can be pickled."""

    files: dict[str, bytes]
    """What is new or has changed, by its path in the run folder."""
    names: tuple[str, ...]
    """All files that the run has now."""


class Receiving(Protocol):
    """Writes what a worker sends into the folder of runs."""

    folder: Path | None
    """The folder of the run, as soon as it is there."""

    def take(self, sent: Sent) -> None:
        """Write what was sent."""

    def close(self) -> None:
        """Free the lock of the folder. Call it at the end of the task, also of a lost one."""


class Task(ABC):
    """One run to be made or continued. It can be pickled and sent to another machine.

    There a worker calls `train`. If it sees the folder of runs under the same path, that is all.
    If not, hand out `task.packed()`, call `train(send=...)`, and give what was sent to
    `task.receiver()`, on the machine of the command.
    """

    label: str
    """For the user, such as "wgan_gp seed 3"."""
    parent: Path
    """The folder that holds the run folders."""

    @abstractmethod
    def train(
        self,
        device: str | None = None,
        called_off: Callable[[], bool] = lambda: False,
        send: Callable[[Sent], object] | None = None,
    ) -> Outcome:
        """Make or continue the run, in this process, to its end.

        A signal that asks to end (SIGINT, SIGTERM, SIGUSR1) saves the run and ends it, when this is
        called in the main thread. No exception is raised for what a run can do.

        :param device: instead of the device that the user named.
        :param called_off: called at each iteration; True saves the run and ends it.
        :param send: make the run in a folder of this machine, and call this with the files that
            have changed, in another thread, every few seconds and at the end.
        """

    @abstractmethod
    def packed(self) -> "Task":
        """The same task with the files of its run, for a worker that does not see its folder."""

    @abstractmethod
    def receiver(self) -> Receiving:
        """What writes the files that `send` was called with; on the machine of the command."""


class Handle(ABC):
    """A task that was handed to an executor."""

    @abstractmethod
    def done(self) -> bool:
        """Whether it has ended, well or not. It returns at once."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """How it ended; called once, when it is done.

        :raises Lost: when its worker is gone without an outcome.
        """

    def call_off(self) -> None:  # noqa: B027  # most have nothing to add
        """Take the task out of a queue, or tell its worker to save and end. It returns at once.

        A worker that sees the folder of runs is told by the core already, so this default does
        nothing. `done` becomes true when the run is saved. It may be called more than once.
        """


class Executor(BaseModel):
    """Base of an executor: it carries out the runs of `compare`, `ablate`, `bisect` and `sweep`.

    Its fields are the options that `--executor-option` sets. It is found by its name in the
    entry-point group `ganlab.executors`. The core decides which runs are made, waits for them, and
    hands a run whose worker was lost out again, at most `retries` times.
    """

    model_config = STRICT | ConfigDict(validate_default=True)

    elsewhere: ClassVar[bool] = True
    """Whether a task may begin on another machine, or much later. It then brings its recipe and
    the code of its plugin files with it, and is refused by a worker that has another ganlab."""

    package: ClassVar[str] = ""
    """The package that it needs, as in `import`."""
    extra: ClassVar[str] = ""
    """What to install for it, as pip has it: "package[extra]"."""

    retries: int = Field(2, ge=0)
    """How often a run goes on elsewhere when its worker is lost."""

    def check(self, device: str) -> None:
        """Refuse what cannot work, before anything is planned.

        By default, a device that only a machine at hand has.

        :param device: as the user named it.
        :raises RecipeError: with the remedy.
        """
        if device not in ("cpu", "cuda"):
            raise RecipeError(
                f"--device {device}: runs are made on other machines, whose devices are not known "
                "here, and which one is free is decided there; say --device cuda or --device cpu"
            )

    def kind(self, device: str) -> str:
        """The kind of device on which its runs compute: "cpu", "cuda" or "mps".

        A run that exists is used again if it was made on the same kind.
        """
        return device

    def at_a_time(self, device: str) -> int | None:
        """How many runs to hand out at a time, unless `--jobs` says it; None: all at once."""
        return None

    def begin(self, parent: Path, device: str, at_a_time: int | None, apart: bool) -> None:
        """Get ready: connect to a cluster, begin processes.

        :param parent: the folder that holds the run folders.
        :param device: as the user named it.
        :param at_a_time: the most tasks that it gets at a time.
        :param apart: whether the runs must be made in processes of their own, so that a signal to
            this process does not end them.
        """

    @abstractmethod
    def submit(self, task: Task) -> Handle:
        """Begin a task, or put it into a queue. It returns at once."""

    def wait(self, handles: Sequence[Handle]) -> None:
        """Wait until one of the tasks has ended, or for a moment."""
        if not any(handle.done() for handle in handles):
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Give back what `begin` took. No task is at work any more, unless the command was killed
        by a second signal."""
