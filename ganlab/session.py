"""One sitting of a run: start or resume it, obey signals and limits, return an exit code."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ganlab.assembly import assemble
from ganlab.checkpoint import checkpoints_of, load_checkpoint, owner_of
from ganlab.ending import DONE, FAILED, UNHEALTHY, Ending, diverged, failed
from ganlab.engine import owes_evaluation, train
from ganlab.errors import Diverged, RecipeError
from ganlab.failures.telling import telling
from ganlab.generator_weights import lost_best
from ganlab.limits import Limits
from ganlab.live_page import Page
from ganlab.ranks.following import obey
from ganlab.ranks.many import LostRank, Many, join
from ganlab.ranks.world import World
from ganlab.recipe.model import Recipe
from ganlab.run import Run, num_parameters
from ganlab.runs.changing import Wishes, wishes_of
from ganlab.runs.data import Data
from ganlab.runs.data_changes import changes_of_data, check_expected, note_changes
from ganlab.runs.environment import describe_environment, installed_packages
from ganlab.runs.folder import (
    RunFolder,
    complete_record,
    is_complete,
    is_pulled,
    new_run_folder,
    open_run_folder,
    plugin_record,
)
from ganlab.runs.journal import Journal
from ganlab.runs.record import (
    former_ends,
    new_id,
    read_record,
    restate,
    settle,
    undo_edits,
)
from ganlab.runs.writer import Writer
from ganlab.speed.device import begin_peak_memory, peak_memory, pick_device
from ganlab.state import state_of
from ganlab.stopping import Stopped, exit_code, heard, heeding, held, released
from ganlab.tracking import follow, leave
from ganlab.words import announce, tell_changes, warn_of_changes

FINISHING = "finishing this iteration, then saving"
"""What is done at a signal, for the user."""


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
    world = _led()
    where = pick_device(world.device(device))
    about = _surroundings(recipe, where) | {"processes": world.size}
    with (
        heeding(),
        held(FINISHING),
        telling(),
        new_run_folder(recipe, parent, name, about) as folder,
        folder.lock(),
    ):
        with _may_be_left("before training began; nothing is kept"):
            world.order("begin")
            run = assemble(recipe, where, folder, world=world)
            if data is not None:
                check_expected(recipe, data, run.data)
        complete_record(folder, _made_of(run), run.data)
        limits.begin(run)
        return folder, _sit_to_the_end(run, folder, limits)


def _led() -> World:
    """The processes of the run, which this one leads.

    :raises RecipeError: when it is another of them, in a command for one process only.
    """
    world = join()
    if not world.leads:
        raise RecipeError("only `ganlab run` and `ganlab resume` can be several processes")
    return world


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
        "parameters": {"G": num_parameters(run.G), "D": num_parameters(run.D) if run.D else 0},
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
            warn_of_changes(folder, wishes.after)
            world = _led()
            world.order("begin", (str(folder.path), tuple(overrides)))
            run = assemble(wishes.after, pick_device(world.device(device)), folder, world=world)
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
            tell_changes(wishes.carry_out(run.iteration))
        if changes:
            note_changes(folder, run.data, changes, run.iteration)
        return folder, _sit_to_the_end(run, folder, limits)


def _require_work(folder: RunFolder, wishes: Wishes) -> None:
    """Refuse a run that is done, unless it shall be changed or has to get its record again.

    A pulled one is refused always: training would begin anew, over its weights.
    """
    if is_pulled(folder):
        raise RecipeError(
            f"{folder.path}: it was pulled, so it has no checkpoints to continue from; to train "
            "its recipe in a run of its own, copy its recipe.toml under another name"
        )
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


def _sit_to_the_end(run: Run, folder: RunFolder, limits: Limits) -> int:
    """One sitting, and the next one as often as the policy "roll back" takes the run back."""
    world = run.world
    while True:
        if world.size > 1:
            world.order("state", state_of(run))
        ending = _sit(run, folder, limits)
        if not ending.following:
            with suppress(LostRank):  # one that has heard it may be gone before this one knows
                world.order("end")
            return ending.code
        before, run = run, ending.following
        limits.run, run.samples_whole = run, before.samples_whole
        run.take_part_in(world)
        restate(folder.path, run.iteration)


def take_part(recipe: Recipe | None, device: str) -> int:
    """Take part in a run that another process leads; returns the exit code.

    :param recipe: that of the command; the run that is led may be an older one, to be resumed.
    """
    world = join()
    assert isinstance(world, Many)
    with heeding(), held():
        _, begun = world.receive()
        if begun:
            path, overrides = begun
            recipe = wishes_of(open_run_folder(path, edited=bool(overrides)), overrides).after
        assert recipe
        run = assemble(recipe, pick_device(world.device(device)), world=world)
        obey(run, world)
    return DONE


def _sit(run: Run, folder: RunFolder, limits: Limits) -> Ending:
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
    announce(run, folder, journal)  # what it names is there by now
    trackers = follow(run, folder, journal.say)
    try:
        with telling(folder):
            ending = _train(run, journal, writer, limits, note_evaluation)
            journal.sync()  # a run that is done is not resumed, so nothing writes them again
    except BaseException as error:
        ending = failed(run, journal, error)
        raise
    finally:
        journal.end()
        found = _so_far(run, journal) | {"exit_code": None if ending.following else ending.code}
        folder.write_last_status(ending.state, ending.message, **found)
        leave(trackers, ending.state)
    page.write()
    return ending


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
        return diverged(run, journal, limits, error)
    if reason == "patience":
        metric, since = run.recipe.best_metric, run.progress.best[0] if run.progress.best else 0
        return Ending("done", DONE, f"stopped: no better {metric} since iteration {since:,}")
    codes = {"signal": exit_code(heard()), "verdict": UNHEALTHY}
    return Ending("stopped" if reason else "done", codes.get(reason, DONE), reason)


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
