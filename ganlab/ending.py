"""How a sitting ends: its state, its exit code, and what is found out at an error."""

import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ganlab.checkpoint import last_checkpoint
from ganlab.disk import NotWritten
from ganlab.errors import Diverged, OutOfMemory, PluginFailed
from ganlab.failures.bundle import write_bundle
from ganlab.failures.replay import Cause, find_cause, gone_back
from ganlab.generator_weights import lost_best
from ganlab.limits import Limits
from ganlab.monitoring.verdicts import Verdict
from ganlab.run import Eager, Run
from ganlab.runs.journal import Journal
from ganlab.runs.reading import NONFINITE
from ganlab.stopping import Stopped

DONE, FAILED, DIVERGED, UNHEALTHY = 0, 1, 3, 4


@dataclass(frozen=True, slots=True)
class Ending:
    """How a sitting ended."""

    state: str
    code: int
    message: str = ""
    following: Run | None = None
    """The run as it goes on at once, from an earlier checkpoint; None when it does not."""


def failed(run: Run, journal: Journal, error: BaseException) -> Ending:
    """The ending by an error; the traceback of the error goes into the run's log."""
    if isinstance(error, Stopped):
        return Ending("stopped", error.exit_code, str(error))
    whole = getattr(error, "traceback", "") or "".join(traceback.format_exception(error))
    journal.log(whole.rstrip())
    if isinstance(error, OutOfMemory | PluginFailed | NotWritten):
        with suppress(Exception):  # the losses so far; a checkpoint might hold half a step
            journal.flush()
        return Ending("failed", FAILED, str(error))
    code = int(error.code or 0) if isinstance(error, SystemExit) else FAILED
    return Ending("failed", code, f"{type(error).__name__}: {error}")


def diverged(run: Run, journal: Journal, limits: Limits, noticed: Diverged) -> Ending:
    """Find out at which iteration and from what a run diverged, and report that."""
    folder = journal.folder
    run.execution = Eager()  # captured graphs hold memory that the search needs
    times = run.progress.rolled_back
    cause = find_cause(
        folder, run.device, times, noticed, journal.say, lambda: limits() in ("signal", "time")
    )
    run.iteration = cause.iteration  # what came after it counts for nothing
    more = _keep_bundle(journal, cause)
    if run.recipe.on_nonfinite == "roll back" and times < run.recipe.most_nonfinite:
        return _rolled_back(run, journal, cause, more)
    verdict = Verdict("exploded", cause.iteration, f"training exploded at {cause}")
    if verdict.name not in journal.verdicts:
        journal.verdict(cause.iteration, verdict, "stop", **more)
    else:
        journal.say(f"diverged: {cause}")
    kept = last_checkpoint(folder.checkpoints)
    journal.say(
        "diverged; there is no checkpoint yet: resumed, the run begins again"
        if kept is None
        else f"diverged; the last checkpoint is of iteration {kept:,}"
    )
    return Ending("diverged", DIVERGED, str(cause))


def _keep_bundle(journal: Journal, cause: Cause) -> dict[str, Any]:
    """Write the bundle of an iteration; returns what its verdict tells of it and its samples."""
    bundle, folder = cause.bundle, journal.folder
    if bundle is None:
        return {}
    path = folder.bundle(cause.iteration)
    try:
        size = write_bundle(bundle, folder.recipe, path)
    except OSError as error:
        journal.say(f"{path}: not written: {error}")
        return {"samples": bundle.samples}
    if bundle.samples:
        journal.say(f"its batch: {', '.join(bundle.samples)}")
    journal.say(f"{path}: state and batch, {size:,} bytes; `ganlab replay {path}` takes it again")
    return {"samples": bundle.samples, "bundle": path.name}


def _rolled_back(run: Run, journal: Journal, cause: Cause, more: dict[str, Any]) -> Ending:
    """Take the run back to its newest checkpoint, to go on with other random numbers."""
    times, most = run.progress.rolled_back + 1, run.recipe.most_nonfinite
    sentence = f"a number was not finite at {cause}"
    verdict = Verdict(NONFINITE, cause.iteration, sentence)
    journal.verdict(cause.iteration, verdict, "roll back", times=times, **more)
    journal.say(
        f"going back to the newest checkpoint, and on with other random numbers: {times} of at "
        f"most {most} times"
    )
    earlier = gone_back(journal.folder, run.device, times, cause.iteration - 1)
    if fault := lost_best(earlier, journal.folder.weights("best")):
        journal.say(fault)
    return Ending("running", DONE, following=earlier)
