"""Signals that ask a command to end: Ctrl-C, SIGTERM, a closed terminal, Slurm's SIGUSR1.

Such a signal usually raises `Stopped` where the command is, as Ctrl-C raises KeyboardInterrupt. So
what waits, decodes or computes is left within seconds. Inside `held` the signal is only noted:
training finishes its iteration and saves. `released` is for a part of it that may be left.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ganlab.system import STOP_SIGNALS

SIGTERMED, INTERRUPTED = 75, 130
_AGAIN_SECONDS = 0.1  # `timeout` and shells send one signal twice within a millisecond
_HASTY = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGTERM)}
"""Those that end a command at once when they come again. A terminal sends SIGHUP as often as it
likes, and after Slurm's SIGUSR1 its SIGTERM must not end the saving."""


class Stopped(BaseException):
    """A signal asked the command to end. `except Exception` does not catch it."""

    def __init__(self, number: int, what: str = "") -> None:
        """:param what: for the user, when that was, and what is left of the work."""
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} {what}".rstrip())
        self.number = number

    @property
    def exit_code(self) -> int:
        return exit_code(self.number)


def exit_code(number: int | None) -> int:
    """The exit code after a signal; None: another process called the work off."""
    return INTERRUPTED if number == signal.SIGINT else SIGTERMED


class _Heard:
    """The signals of this process."""

    number: int | None = None
    """The first one, since the outermost `heeding` began."""
    when: float = 0.0
    hasty: bool = False
    """Whether one of `_HASTY` has come, so that the next one ends the command at once."""
    raises: bool = True
    answer: str = ""
    again: str = ""
    heeding: bool = False


_now = _Heard()


def heard() -> int | None:
    """The signal that has asked this command to end; None when there was none."""
    return _now.number


@contextmanager
def heeding() -> Iterator[None]:
    """Context in which the stop signals raise `Stopped`; a second Ctrl-C or SIGTERM always does.

    A signal that is ignored (by nohup, or for a command in the background) stays ignored. Inside
    another such context, and outside the main thread, it does nothing.
    """
    global _now
    if _now.heeding or threading.current_thread() is not threading.main_thread():
        yield
        return
    _now = _Heard()
    _now.heeding = True
    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _now.heeding = False


@contextmanager
def held(answer: str = "", again: str = "end now") -> Iterator[None]:
    """Context in which a signal is only noted, for `heard`.

    :param answer: printed at the signal: what is being done.
    :param again: printed too: what a second signal does. It raises `Stopped`.
    """
    with _mode(False, answer, again):
        yield


@contextmanager
def released() -> Iterator[None]:
    """Context in which a signal raises `Stopped`, also one that came before."""
    with _mode(True, "", ""):
        if _now.number is not None:
            raise Stopped(_now.number)
        yield


@contextmanager
def _mode(raises: bool, answer: str, again: str) -> Iterator[None]:
    before = _now.raises, _now.answer, _now.again
    _now.raises, _now.answer, _now.again = raises, answer, again
    try:
        yield
    finally:
        _now.raises, _now.answer, _now.again = before


def _note(number: int, frame: FrameType | None) -> None:
    first, last, was_hasty = _now.number is None, _now.when, _now.hasty
    _now.when = time.monotonic()
    if not first and _now.when - last < _AGAIN_SECONDS:
        return
    _now.number = number if first else _now.number
    _now.hasty = was_hasty or number in _HASTY
    if was_hasty and number in _HASTY:
        for each in _HASTY:
            signal.signal(each, signal.SIG_DFL)  # a third one ends the process, whatever it does
        raise Stopped(number, "at once, so nothing was saved any more")
    if not first:
        return
    if _now.answer:
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, f"\n{_now.answer} (once more: {_now.again})\n".encode())
    if _now.raises:
        raise Stopped(number)
