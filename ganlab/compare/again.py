"""`ganlab run --continue`: the run that the same command began before, and how to go on with it."""

import re
import sys
from pathlib import Path

from ganlab.compare.data import DataNow
from ganlab.compare.difference import difference, hashes, side, side_of
from ganlab.ending import UNHEALTHY
from ganlab.errors import GanlabError, RecipeError
from ganlab.limits import Limits
from ganlab.recipe.model import Recipe, resolved
from ganlab.runs.data_changes import check_ended
from ganlab.runs.folder import RunFolder, open_run_folder, plugin_record
from ganlab.runs.links import plain_runs
from ganlab.runs.reading import read_json
from ganlab.runs.record import read_record
from ganlab.session import resume, start
from ganlab.speed.device import pick_device

MOST_CHANGES = 5  # named in a message
_ENDED = {"done": "is done", "diverged": "has diverged"}


def run_or_continue(
    recipe: Recipe,
    device: str,
    limits: Limits,
    parent: Path,
    name: str | None,
    accept_data: bool = False,
) -> tuple[RunFolder, int, str]:
    """Continue the run that this recipe began, or start one.

    It is `parent`/`name`. Without a name it is the newest `parent`/<recipe>-<n> of this very
    recipe: the same values, seed included, and the same code of its plugins.

    :param accept_data: continue, or take a run that has ended, although its data have changed.
    :returns: the folder, the exit code, and a sentence when there was nothing left to do.
    :raises RecipeError: when `parent`/`name` is a run of another recipe, or the data have changed.
    """
    folder = begun_by(recipe, parent, name)
    if folder is None:
        return *start(recipe, device, limits, parent, name), ""
    status = folder.read_status()
    state, code = status.get("state"), int(status.get("exit_code") or 0)
    how = "was stopped by a verdict" if code == UNHEALTHY else _ENDED.get(str(state))
    if how:
        _check_data(recipe, folder, device, accept_data)
        return folder, code, f"{folder.path}: this run {how}; there is nothing to continue"
    most, reached = limits.max_iterations, status.get("iteration", 0)
    if state == "stopped" and most and reached >= most:
        _check_data(recipe, folder, device, accept_data)
        return folder, 0, f"{folder.path}: this run is at iteration {reached}; nothing to do"
    return *resume(folder.path, device, limits, accept_data), ""


def _check_data(recipe: Recipe, folder: RunFolder, device: str, accepted: bool) -> None:
    """Refuse a run that has ended when its data have changed; they may be gone, since it ended."""
    try:
        now = DataNow(pick_device(device)).of(recipe)
    except GanlabError as error:
        print(f"the data of {folder.path} are not compared: {error}", file=sys.stderr)
    else:
        check_ended(folder, recipe, now, accepted)


def begun_by(recipe: Recipe, parent: Path, name: str | None) -> RunFolder | None:
    """The run that this recipe began, if there is one; see `run_or_continue`."""
    if name is not None:
        if not (parent / name).exists():
            return None
        check_same_recipe(recipe, parent / name, f"--continue --name {name}")
        return RunFolder(parent / name)
    numbered: dict[int, RunFolder] = {}
    for path in plain_runs(parent):
        if found := re.fullmatch(rf"{re.escape(recipe.name)}-(\d+)", path.name):
            numbered[int(found[1])] = RunFolder(path)
    return next((numbered[n] for n in sorted(numbered, reverse=True)
                 if _is_of(numbered[n], recipe)), None)  # fmt: skip


def check_same_recipe(recipe: Recipe, path: Path | str, option: str) -> None:
    """Refuse to continue a run with other values or other code of plugins than its own.

    :param option: of the command line, for the message.
    :raises RecipeError: naming the differences.
    """
    folder = open_run_folder(path)
    if _is_of(folder, recipe):
        return
    if altered := [str(change) for change in read_record(folder.path).changes if change.alters]:
        raise RecipeError(
            f"{option}: {folder.path} was changed in the run ({'; '.join(altered)}), so "
            f"no recipe gives it from the start; continue it with `ganlab resume {folder.path}`"
        )
    changes = difference(side(folder.path), side_of(recipe))
    if not changes:  # written by an older version, which did not know all settings
        return
    told = [f"{c.key}: {c.a or 'absent'} -> {c.b or 'absent'}" for c in changes[:MOST_CHANGES]]
    more = len(changes) - len(told)
    raise RecipeError(
        f"{option}: {folder.path} was made by another recipe: {'; '.join(told)}"
        + (f"; and {more} more" if more else "")
        + f". Continue that run with `ganlab resume {folder.path}`, or give this one another --name"
    )


def _is_of(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether a run has exactly this recipe, and its plugins had the code that they have now."""
    recorded = read_json(folder.manifest).get("plugins")
    if any(change.alters for change in read_record(folder.path).changes):
        return False
    return folder.recipe.read_text(encoding="utf-8", errors="replace") == resolved(recipe) and (
        recorded is None  # the run was killed before it began
        or hashes(recorded) == hashes(plugin_record(recipe))
    )
