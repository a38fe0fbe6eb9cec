"""An error of a plugin's code, or for lack of memory, as one message with the way on."""

import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ganlab.checkpoint import last_checkpoint
from ganlab.disk import NotWritten
from ganlab.errors import GanlabError, OutOfMemory, PluginFailed
from ganlab.failures.out_of_memory import is_out_of_memory, out_of_memory, release
from ganlab.failures.place import Place
from ganlab.runs.folder import RunFolder
from ganlab.stopping import Stopped

_GOES_ON = "this run goes on from"
_LESS = "there, --set may change accumulate, activation_checkpointing and compile"


@contextmanager
def telling(folder: RunFolder | None = None) -> Iterator[None]:
    """Context in which an error of a plugin, or for lack of memory, becomes one message.

    What the failed work held is freed, so that the run can still write how it ended.

    :param folder: of the run; the message then says how to go on.
    :raises PluginFailed: instead of what the code of a plugin raised, SystemExit included.
    :raises OutOfMemory: instead of an error for lack of memory.
    """
    try:
        yield
    except BaseException as error:
        told = explained(error, folder)
        if told is None or told is error:
            raise
        if isinstance(told, OutOfMemory):
            release(error)
        raise told from None


def explained(error: BaseException, folder: RunFolder | None = None) -> GanlabError | None:
    """The message for an error of a plugin or for lack of memory; None for any other error.

    :param folder: of the run; the message then says how to go on.
    """
    if isinstance(error, NotWritten) and folder and _GOES_ON not in str(error):
        return NotWritten(f"{error}\n{_going_on(folder)}")
    if isinstance(error, OutOfMemory | PluginFailed):
        return error
    if isinstance(error, GanlabError | Stopped):
        return None  # the user's own word is no plugin's, wherever it comes
    place = Place.of(error)
    told: GanlabError
    if is_out_of_memory(error):
        lines = out_of_memory(place, error, folder)
        lines += [f"{_going_on(folder)} ({_LESS})"] if folder else []
        told = OutOfMemory("\n".join(lines))
    elif place.culprit:
        when = f"{place.words()}: " if place.words() else ""
        lines = [f"{when}{place.whose()} {place.culprit.what}"]
        lines += [_going_on(folder)] if folder else []
        told = PluginFailed("\n".join(lines))
    else:
        return None
    told.traceback = "".join(traceback.format_exception(error))
    return told


def _going_on(folder: RunFolder) -> str:
    kept = last_checkpoint(folder.checkpoints)
    begins = "the start, iteration 1" if kept is None else f"its checkpoint of iteration {kept:,}"
    command = shlex.join(["ganlab", "resume", str(folder.path)])
    return f"{_GOES_ON} {begins}: {command}"
