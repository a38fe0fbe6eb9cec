"""One sitting of a run: start or resume it, obey signals and limits, return an exit code."""

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ganlab.assembly import assemble
from ganlab.checkpoint import checkpoints_of, last_checkpoint, load_checkpoint, owner_of
from ganlab.disk import NotWritten
from ganlab.engine import owes_evaluation, train
from ganlab.errors import Diverged, OutOfMemory, PluginFailed, RecipeError
from ganlab.failures.bundle import write_bundle
from ganlab.failures.replay import Cause, find_cause, gone_back
from ganlab.failures.telling import telling
from ganlab.generator_weights import lost_best
from ganlab.monitoring.verdicts import Verdict
from ganlab.recipe.model import Recipe
from ganlab.requirements import warnings_of
from ganlab.run import Eager, Run
from ganlab.runs.changing import Wishes, wishes_of
from ganlab.runs.data import Data
from ganlab.runs.data_changes import changes_of_data, check_expected, note_changes
from ganlab.runs.environment import describe_environment, installed_packages
from ganlab.runs.folder import (
    RunFolder,
    complete_record,
    is_complete,
    new_run_folder,
    open_run_folder,
    plugin_record,
)
from ganlab.runs.journal import NONFINITE, Journal
from ganlab.runs.means import told
from ganlab.runs.reading import read_json
from ganlab.runs.record import (
    Change,
    former_ends,
    new_id,
    read_record,
    restate,
    settle,
    undo_edits,
)
from ganlab.runs.writer import Writer
from ganlab.speed.device import begin_peak_memory, peak_memory, pick_device
from ganlab.stopping import (
    Stopped,
    exit_code,
    heard,
    heeding,
    held,
    released,
)

DONE, FAILED, DIVERGED, UNHEALTHY = 0, 1, 3, 4
ROLLED_BACK = -1  # no exit code: the next sitting follows at once
FINISHING = "finishing this iteration, then saving"
"""What is done at a signal, for the user."""


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
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "time"
        if self.run and self.max_iterations and self.run.iteration >= self.max_iterations:
            return "iterations"
        return ""


def start(
    recipe: Recipe,
    device: str,
    limits: Limits,
    parent: Path,
    name: str | None = None,
    data: Data | None = None,
) -> tuple[RunFolder, int]:
    """Run a recipe in a new folder; returns the folder and the exit code.

    :param data: what the run must read; by default it may be any data.
    :raises RecipeError: when the recipe cannot run, or its data are others; the folder is removed
        again.
    """
    where = pick_device(device)
    about = _surroundings(recipe, where)
    with (
        heeding(),
        held(FINISHING),
        telling(),
        new_run_folder(recipe, parent, name, about) as folder,
        folder.lock(),
    ):
        with _may_be_left("before training began; nothing is kept"):
            run = assemble(recipe, where, folder)
            if data is not None:
                check_expected(recipe, data, run.data)
        complete_record(folder, _made_of(run), run.data)
        limits.begin(run)
        return folder, _sit_to_the_end(run, folder, limits)


@contextmanager
def _may_be_left(what: str) -> Iterator[None]:
    """Context of the work before training: a signal ends it at once, wherever it is.

    :param what: for the user, what that means.
    """
    try:
        with released():
            yield
    except Stopped as stopped:
        raise Stopped(stopped.number, what) from None


def _surroundings(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What the manifest says before the data are read."""
    return describe_environment(device) | {
        "packages": installed_packages(),
        "seed": recipe.seed,
        "plugins": plugin_record(recipe),
    }


def _made_of(run: Run) -> dict[str, Any]:
    """What the manifest says of networks."""
    return {
        "condition_shape": run.condition_shape,
        "real_shape": run.real_shape,
        "parameters": {"G": _count(run.G), "D": _count(run.D) if run.D else 0},
    }


def resume(
    path: Path | str,
    device: str,
    limits: Limits,
    accept_data: bool = False,
    overrides: Sequence[str] = (),
) -> tuple[RunFolder, int]:
    """Continue a run from its newest sound checkpoint, as if it had never stopped.

    :param accept_data: go on although the data are not those with which the run was started.
    :param overrides: `key=value` strings: what shall change from here on.
    :raises RecipeError: when `path` is not a run folder, the run is done, its data changed, or
        something may not change.
    """
    folder = open_run_folder(path, edited=bool(overrides))
    with heeding(), held(FINISHING), telling(folder), folder.lock():
        _put_in_order(folder)
        wishes = wishes_of(folder, overrides)
        _require_work(folder, wishes)
        folder.remove_stale()
        with _may_be_left(f"before training went on; {folder.path} is as it was"):
            _warn_of_changes(folder, wishes.after)
            run = assemble(wishes.after, pick_device(device), folder)
            wishes.check_data(run.data, accept_data)
            changes = changes_of_data(folder, wishes.after, run.data, accept_data)
            changed = bool(wishes.all or read_record(folder.path).changes)
            load_checkpoint(run, folder.checkpoints, changed)
        if not is_complete(folder):  # killed before it began, or its manifest is gone
            _complete_again(run, folder)
        restate(folder.path, run.iteration)
        if fault := lost_best(run, folder.weights("best")):
            print(fault, file=sys.stderr)
        limits.begin(run)
        if wishes.all:
            _tell_changes(wishes.carry_out(run.iteration))
        if changes:
            note_changes(folder, run.data, changes, run.iteration)
        return folder, _sit_to_the_end(run, folder, limits)


def _require_work(folder: RunFolder, wishes: Wishes) -> None:
    """Refuse a run that is done, unless it shall be changed or has to get its record again."""
    if folder.read_status().get("state") == "done" and is_complete(folder) and not wishes.all:
        raise RecipeError(
            f"{folder.path}: this run is done. To train it longer, with its optimizers, give "
            f"--iterations N; it has {wishes.after.iterations:,}"
        )


def _put_in_order(folder: RunFolder) -> None:
    """Finish or forget a change that a crash has cut off; undo what was edited by hand."""
    settle(folder.path)
    for edit in undo_edits(folder.path):
        print(f"{folder.recipe}: undone, it was edited by hand: {edit}", file=sys.stderr)


def _complete_again(run: Run, folder: RunFolder) -> None:
    """Complete the record of a run that was killed before its first step, or has lost it."""
    about: dict[str, Any] = {}
    if not read_record(folder.path).known:
        about = _surroundings(run.recipe, run.device)
        about["id"] = owner_of(folder.checkpoints) or new_id()
        # versions and device are those of now, not of the start
        about["made_again"] = bool(checkpoints_of(folder.checkpoints))
        print(f"{folder.manifest}: missing or damaged; it is written again", file=sys.stderr)
    complete_record(folder, about | _made_of(run), run.data)


def _tell_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        print(f"changed {change}", file=sys.stderr)
    if any(change.key == "iterations" for change in changes):
        print(
            "schedules are not stretched: each keeps its own length, and stays at its end after it",
            file=sys.stderr,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a sitting ended."""

    state: str
    code: int
    message: str = ""


def _sit_to_the_end(run: Run, folder: RunFolder, limits: Limits) -> int:
    """One sitting, and the next one as often as the policy "roll back" takes the run back."""
    while (code := _sit(run, folder, limits)) == ROLLED_BACK:
        run = gone_back(folder, run.device, run.progress.rolled_back + 1, run.iteration - 1)
        limits.run = run
        restate(folder.path, run.iteration)
    return code


def _sit(run: Run, folder: RunFolder, limits: Limits) -> int:
    """Train until done or stopped, and write how it ended into status.json."""
    recipe = run.recipe
    images = recipe.batch_size * recipe.g_steps
    journal = Journal(folder, recipe.iterations, images, recipe.report_every)
    page, writer = Page(folder, journal), Writer()

    def note_evaluation() -> None:
        """Update the status and the page, for a user who looks at the run while it goes on."""
        writer.later(partial(folder.write_status, "running", **_so_far(run, journal)))
        writer.later(page.renew)  # after the pictures that it shows

    ending = Ending("failed", FAILED)
    begin_peak_memory(run.device)
    progress, run.former_ends = run.progress, former_ends(folder.path)
    journal.begin(run.iteration, owes_evaluation(run), progress.logs, progress.rolled_back)
    folder.write_status("running", iteration=run.iteration, of=recipe.iterations)
    _announce(run, folder, journal)  # what it names is there by now
    try:
        with telling(folder):
            ending = _train(run, journal, writer, limits, note_evaluation)
            journal.sync()  # a run that is done is not resumed, so nothing writes them again
    except BaseException as error:
        ending = _failed(run, journal, error)
        raise
    finally:
        journal.end()
        found = _so_far(run, journal)
        code = None if ending.code == ROLLED_BACK else ending.code
        folder.write_last_status(ending.state, ending.message, exit_code=code, **found)
    page.write()
    return ending.code


def _failed(run: Run, journal: Journal, error: BaseException) -> Ending:
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


def _train(
    run: Run,
    journal: Journal,
    writer: Writer,
    limits: Limits,
    on_evaluation: Callable[[], None],
) -> Ending:
    try:
        reason = train(run, journal, writer, limits, on_evaluation)
    except Diverged as error:
        return _diverged(run, journal, limits, error)
    if reason == "patience":
        metric, since = run.recipe.best_metric, run.progress.best[0] if run.progress.best else 0
        return Ending("done", DONE, f"stopped: no better {metric} since iteration {since:,}")
    codes = {"signal": exit_code(heard()), "verdict": UNHEALTHY}
    return Ending("stopped" if reason else "done", codes.get(reason, DONE), reason)


def _diverged(run: Run, journal: Journal, limits: Limits, noticed: Diverged) -> Ending:
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
        return _rolled_back(run, journal, limits, cause, more)
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


def _rolled_back(
    run: Run, journal: Journal, limits: Limits, cause: Cause, more: dict[str, Any]
) -> Ending:
    """Report that the run goes back to its newest checkpoint, and on with other random numbers."""
    times, most = run.progress.rolled_back + 1, run.recipe.most_nonfinite
    sentence = f"a number was not finite at {cause}"
    verdict = Verdict(NONFINITE, cause.iteration, sentence)
    journal.verdict(cause.iteration, verdict, "roll back", times=times, **more)
    journal.say(
        f"going back to the newest checkpoint, and on with other random numbers: {times} of at "
        f"most {most} times"
    )
    return Ending("running", ROLLED_BACK)


def _so_far(run: Run, journal: Journal) -> dict[str, Any]:
    """How far a run has come, its time and memory, and its results."""
    return {
        "iteration": run.iteration,
        "of": run.recipe.iterations,
        "seconds": round(journal.seconds, 1),
        "peak_memory": peak_memory(run.device),
        "best": run.progress.best,
        "bicubic": run.progress.bicubic,
        "scores": run.progress.scores,
        "left_out": run.progress.left_out,
        "verdicts": list(journal.verdicts.values()),
        "skipped": run.progress.skipped,
        "rolled_back": run.progress.rolled_back,
        "logs": journal.written(),
    }


class Page:
    """The run's report, rewritten after evaluations as long as that takes little time."""

    def __init__(self, folder: RunFolder, journal: Journal) -> None:
        self.folder, self.journal = folder, journal
        self._took, self._ended = 0.0, -math.inf

    def renew(self) -> None:
        """Write the page, unless that would take more than a hundredth of the training time."""
        if time.monotonic() - self._ended > 100 * self._took:
            self.write()

    def write(self) -> None:
        """Write the page. If that fails, the fault is printed and training goes on."""
        from ganlab.report import report_run  # imported late, since the import takes a second

        began = time.monotonic()
        try:
            report_run(self.folder.path)
        except Exception as error:  # a fault in the page must not end the run
            self.journal.say(f"{self.folder.report}: not written: {type(error).__name__}: {error}")
        self._ended = time.monotonic()
        self._took = self._ended - began


def _announce(run: Run, folder: RunFolder, journal: Journal) -> None:
    recipe = run.recipe
    counts = f"G {_count(run.G):,} parameters" + (f", D {_count(run.D):,}" if run.D else "")
    journal.say(f"{recipe.name}: {run.device}, seed {recipe.seed}, {recipe.precision}, {counts}")
    journal.say("plugins: " + ", ".join(recipe.plugins))
    if recipe.precision == "bfloat16" and run.device.type != "cuda":
        journal.say("bfloat16 is for CUDA; running in float32 here")
    for warning in warnings_of(recipe):
        journal.say(f"warning: {warning}")
    for note in run.notes:
        journal.say(f"note: {note}")
    if run.iteration:
        journal.say(f"resuming at iteration {run.iteration}")
    journal.say(f"writing to {folder.path}")


def _warn_of_changes(folder: RunFolder, recipe: Recipe) -> None:
    """Warn when versions or plugin code have changed since the run was started."""
    manifest: dict[str, Any] = read_json(folder.manifest)
    now = describe_environment(torch.device("cpu"))["versions"]
    for name, version in manifest.get("versions", {}).items():
        if now.get(name) != version:
            print(f"{name} was {version}, is now {now.get(name)}", file=sys.stderr)
    for name, record in manifest.get("plugins", {}).items():
        source = recipe.sources.get(name)
        if source and source.sha256 != record["sha256"]:
            print(f"plugin {name}: its code has changed since the run started", file=sys.stderr)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def summary(folder: RunFolder) -> str:
    """The text that a sitting prints on stdout at its end: scores beside bicubic, run folder."""
    status = folder.read_status()
    state, message = status.get("state", "unknown"), status.get("message", "")
    lines = [f"{state} at iteration {status.get('iteration')} of {status.get('of')}"]
    if state == "done" and message:
        lines.append(message)
    scores, bicubic = status.get("scores") or {}, status.get("bicubic") or {}
    if scores:
        title, rival = ("held-out images", "bicubic") if bicubic else ("scores", "")
        width = max(len(name) for name in (title, *scores)) + 2
        lines.append(f"{title:<{width}}{'generator':>10}{rival:>10}".rstrip())
        for name, value in scores.items():
            beside = f"{bicubic[name]:>10.4g}" if name in bicubic else ""
            lines.append(f"{name:<{width}}{value:>10.4g}{beside}")
    if without := status.get("left_out"):
        lines.append(f"left out of the means, since not finite: {told(without)}")
    elif not scores and "held_out" not in read_json(folder.manifest).get("data", {"held_out": 0}):
        lines.append("no scores and no pictures: no image was held out, and no plugin evaluates")
    for role, count in (status.get("skipped") or {}).items():
        lines.append(f"skipped: {count:,} steps of {role}, since a number was not finite")
    if times := status.get("rolled_back"):
        lines.append(f"rolled back: {times:,} times, since a number was not finite")
    verdicts = status.get("verdicts") or []
    lines += [f"verdict: {sentence}" for sentence in verdicts]
    lines += [f"changed {change}" for change in read_record(folder.path).changes]
    if state == "diverged" and not any(message in one for one in verdicts):
        lines.append(f"diverged: {message}")  # exploded had been told before
    lines.append(f"run folder: {folder.path}")
    return "\n".join(lines)


def enlarges(folder: RunFolder) -> bool:
    """Whether a run's generator makes images from images; in a toy problem it does not."""
    manifest = read_json(folder.manifest)
    return all(len(manifest.get(name, ())) == 3 for name in ("condition_shape", "real_shape"))
