"""`ganlab verify`: run the first iterations of a packed run again, beside what it logged."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from pydantic import BaseModel, RootModel

from ganlab.assembly import assemble
from ganlab.commands.agreement import Agreement, compare_logs, logged_iterations, read_figures
from ganlab.commands.pack import paths_of, weights_record
from ganlab.commands.surroundings import (
    Manifest,
    file_plugins,
    of_environment,
    of_plugins,
    of_settings,
    read_stranger,
)
from ganlab.engine import train
from ganlab.errors import Diverged, GanlabError, RecipeError, printable
from ganlab.recipe.file import read_alone
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.recipe.trust import is_trusting
from ganlab.run import Run
from ganlab.runs.archive import Contents, WeightsRecord, unpack
from ganlab.runs.data import TITLES, Data, differences
from ganlab.runs.environment import describe_environment
from ganlab.runs.folder import RunFolder, new_run_folder
from ganlab.runs.journal import Journal
from ganlab.runs.record import read_record
from ganlab.runs.writer import Writer
from ganlab.speed.device import pick_device

USUAL = 20
"""How many iterations are run again when the user does not say."""
TOLERANCE = 0.001
MOST_THREADS = 256

Say = Callable[[str], None]
"""Prints one line for the user at once."""

SHOWN = 6  # figures named in a sentence


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user of `ganlab verify` asks for."""

    iterations: int | None = None
    overrides: tuple[str, ...] = ()
    device: str | None = None
    """None: the kind of device that the run had, if this machine has one."""
    tolerance: float = TOLERANCE


@dataclass(slots=True)
class Verification:
    """What was found."""

    iterations: int = 0
    """How many iterations were run again."""
    differences: list[str] = field(default_factory=list)
    """Versions, machine, code and settings that differ, a sentence each."""
    data: list[str] = field(default_factory=list)
    """Data that differ, a sentence each."""
    figures: list[Agreement] = field(default_factory=list)
    later: dict[str, int] = field(default_factory=dict)
    """Figures that the run logged after these iterations only, with the first iteration."""
    weights: dict[str, bool] = field(default_factory=dict)
    """By file: whether the generator's weights are equal to the last bit; only files of an
    iteration that was evaluated again."""
    exact: bool = True
    """Whether every digit must be equal, because nothing that changes rounding differs."""
    tolerance: float = TOLERANCE

    @property
    def equal(self) -> bool:
        """Whether all figures are equal in every logged digit, and the weights in every bit."""
        return all(one.largest == 0 for one in self.figures) and all(self.weights.values())

    @property
    def beginning(self) -> Agreement | None:
        """The figure that differs first, and of several the one that differs most there.

        Rounding begins small. A game amplifies it from one iteration to the next, so later
        differences say little about their cause.
        """
        differing = [one for one in self.figures if one.largest]
        return min(differing, key=lambda one: (one.first, -one.begins), default=None)

    @property
    def repeated(self) -> bool:
        """Whether the run was repeated: equal, or as near as other rounding allows."""
        begun = self.beginning
        return self.equal or (not self.exact and (not begun or begun.begins <= self.tolerance))


def verify_file(file: Path, wanted: Wanted, say: Say) -> Verification:
    """Tell what differs from a packed run, run its first iterations again, and compare.

    :raises RecipeError: for a file that is not an archive of a run, for data that are missing, and
        for code that is not trusted. What differs has been said before.
    """

    def say_printable(line: str) -> None:
        say(printable(line))

    with tempfile.TemporaryDirectory(prefix="ganlab-") as temporary:
        folder = RunFolder(Path(temporary).resolve() / "packed")
        folder.path.mkdir()
        with _naming(file, folder.path):
            return _verify(folder, unpack(file, folder.path), wanted, say_printable)


@contextmanager
def _naming(file: Path, folder: Path) -> Iterator[None]:
    """Context in which errors name the packed file, not the folder to which it was unpacked.

    All become RecipeErrors: exit code 1 is for a run that was not repeated.
    """
    try:
        yield
    except (GanlabError, OSError) as error:
        text = str(error).replace(str(folder), str(file))
        raise RecipeError("\n".join(map(printable, text.splitlines()))) from None


def _verify(folder: RunFolder, contents: Contents, wanted: Wanted, say: Say) -> Verification:
    tables = read_alone(folder.recipe)
    plugins = tables.get("plugins", {})
    manifest = read_stranger(Manifest, folder.manifest)
    logged = logged_iterations(folder.stats)
    weights = _weights_there(folder, contents)
    status = _status(folder)
    say(f"run {contents.name}: {status.state} at iteration {status.iteration:,} of {status.of:,}")
    _require_one_recipe(folder)
    device = _device(wanted.device, manifest)
    found = Verification(tolerance=wanted.tolerance)
    with _threads(manifest.threads):
        found.differences += of_environment(manifest, describe_environment(device))
        found.differences += of_plugins(folder.path, plugins, manifest, contents)
        for line in found.differences or ["same versions, machine and code"]:
            say(f"differs: {line}" if found.differences else line)
        _require_trust(folder, file_plugins(folder.path, plugins, contents))
        recipe = _load(folder, plugins, wanted.overrides, say)
        settings = list(of_settings(tables, recipe))
        for line in settings:
            say(f"differs: {line}")
        found.differences += settings
        found.exact = not found.differences and (device.type == "cpu" or recipe.deterministic)
        found.iterations = _how_many(folder, wanted.iterations, logged, say)
        for change in manifest.data_changes:
            say(f"the run was resumed at iteration {change.iteration:,} with other data")
        again = _run_again(folder, recipe, device, found, say)
    logs = (read_figures(each.stats, each.scores, found.iterations) for each in (folder, again))
    found.figures = compare_logs(*logs)
    found.later = {n: first for n, (first, _) in logged.items() if first > found.iterations}
    found.weights = dict(_compare_weights(weights, again))
    return found


def _require_one_recipe(folder: RunFolder) -> None:
    """Refuse a run whose recipe was changed in the run.

    :raises RecipeError: naming the changes.
    """
    if altered := [str(c) for c in read_record(folder.path).changes if c.alters]:
        raise RecipeError(
            f"{folder.path}: its recipe was changed in the run ({printable('; '.join(altered))}), "
            "so no recipe gives it from the start, and it cannot be verified as one"
        )


class _Data(RootModel[Data]):
    """What data.json holds."""


class _Status(BaseModel):
    """How the run ended."""

    state: str = "unknown"
    iteration: int = 0
    of: int = 0


def _status(folder: RunFolder) -> _Status:
    return read_stranger(_Status, folder.status) if folder.status.is_file() else _Status()


def _device(wanted: str | None, manifest: Manifest) -> torch.device:
    """The wanted device; else one of the kind that the run had, or what this machine has."""
    if wanted is None:
        with suppress(RecipeError):
            return pick_device(manifest.device.partition(":")[0])
    return pick_device(wanted or "auto")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Context with as many CPU threads as the run had: the rounding of sums depends on it."""
    before = torch.get_num_threads()
    if 1 <= count <= MOST_THREADS:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_trust(folder: RunFolder, codes: dict[str, str]) -> None:
    if codes and not is_trusting():
        listed = "; ".join(f"{name}.py, sha256 {digest}" for name, digest in codes.items())
        raise RecipeError(
            f"{folder.path} holds code: {listed}. Nothing was run again. Unzip the file, read the "
            "code, and give --trust-code to run it"
        )


def _load(
    folder: RunFolder, plugins: dict[str, Any], overrides: tuple[str, ...], say: Say
) -> Recipe:
    """Load the packed recipe with the places that its data have here.

    A place is stated by --set, or it is a file or folder of the recorded name in the current
    folder. No other place is accepted from a stranger.

    :raises RecipeError: naming the options that have no place here.
    """
    recipe = load_recipe(folder.recipe, overrides)
    missing, places = [], []
    for name, option in paths_of(recipe):
        key = f"{name}.{option}"
        recorded = plugins.get(name, {}).get(option)
        if recorded is None or recipe.origin("plugins", name, option).startswith("--set"):
            continue
        if _is_plain(recorded) and Path(recorded).exists():
            say(f"{key}: {recorded} in this folder")
            places.append(f"{key}={json.dumps(recorded)}")
        else:
            missing.append(key)
    if missing:
        raise RecipeError(
            f"{folder.path}: data are not in the file, and {', '.join(missing)} has no place here. "
            f"Give each its place: --set {missing[0]}=PATH"
        )
    return load_recipe(folder.recipe, (*overrides, *places)) if places else recipe


def _is_plain(name: str) -> bool:
    """Whether this is the name of a file or folder on every system, and no path."""
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return name not in ("", ".", "..") and all(kind.name == name for kind in kinds)


def _how_many(
    folder: RunFolder, wanted: int | None, logged: dict[str, tuple[int, int]], say: Say
) -> int:
    """How many iterations to run again: at least to the first logged line, at most to the last.

    :raises RecipeError: when nothing was logged.
    """
    first = min((first for first, _ in logged.values()), default=0)
    last = max((last for _, last in logged.values()), default=0)
    status = _status(folder)
    if status.state == "diverged":  # the last iteration of such a run may have no line
        last = max(last, status.iteration)
    if first < 1:
        raise RecipeError(f"{folder.stats}: no figures of iteration 1 or later; nothing to verify")
    number = min(max(wanted or USUAL, first), last)
    if wanted is not None and number != wanted:
        say(f"--iterations {wanted}: figures were logged from iteration {first} to {last}")
    say(f"running iterations 1 to {number} again, of {last}")
    return number


def _run_again(
    folder: RunFolder, recipe: Recipe, device: torch.device, found: Verification, say: Say
) -> RunFolder:
    """Run the first iterations in a folder beside the unpacked one."""
    with new_run_folder(recipe, folder.path.parent, "again") as again:
        run = assemble(recipe, device, again)
    _compare_data(folder, run, found, say)
    images = recipe.batch_size * recipe.g_steps
    journal = Journal(again, recipe.iterations, images, recipe.report_every)
    journal.begin(0)
    try:
        # after "signal" nothing is evaluated but what the run itself evaluated
        train(run, journal, Writer(), lambda: "signal" * (run.iteration >= found.iterations))
    except Diverged as error:
        say(f"diverged: {error}")
    finally:
        journal.end()
    return again


def _compare_data(folder: RunFolder, run: Run, found: Verification, say: Say) -> None:
    if not folder.data.is_file():
        say("the file has no digests of the data, so whether they are the same is unknown")
        return
    changes = differences(read_stranger(_Data, folder.data).root, run.data)
    found.data = [f"{TITLES[section]}: {words}" for section, words in changes.items()]
    for line in found.data or ["same data"]:
        say(f"differs: {line}" if found.data else line)


def _weights_there(folder: RunFolder, contents: Contents) -> dict[str, WeightsRecord]:
    """What is known of the run's weights: from the files if they are packed, else as recorded."""
    found = dict(contents.weights)
    for which in ("last", "best"):
        file = folder.weights(which)
        if record := weights_record(file):
            found[file.name] = record
    return found


def _compare_weights(
    there: dict[str, WeightsRecord], again: RunFolder
) -> Iterator[tuple[str, bool]]:
    for which in ("last", "best"):
        name = again.weights(which).name
        here = weights_record(again.weights(which))
        if here and name in there and there[name].iteration == here.iteration:
            yield name, there[name].sha256 == here.sha256


def result(found: Verification) -> Iterator[str]:
    """The lines that say how far the run was repeated; the last one is the answer."""
    differing = [one for one in found.figures if one.largest]
    if differing:
        width = max(len("figure"), *(len(one.figure) for one in differing))
        yield f"{'figure':<{width}}  differs from  {'first by':>14}  {'most by':>14}  at"
        for one in sorted(differing, key=lambda one: (one.first, -one.begins)):
            begins, largest = _size(one.begins), _size(one.largest)
            name = f"{printable(one.figure):<{width}}"
            yield f"{name}  {one.first:>12}  {begins:>14}  {largest:>14}  {one.at}"
    for name, equal in found.weights.items():
        yield f"{name}: {'equal to the last bit' if equal else 'not equal'}"
    if found.later:
        names = [printable(name) for name in sorted(found.later, key=_losses_first)]
        more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
        yield (
            f"logged later, and not reached: {', '.join(names[:SHOWN])}{more} "
            f"(--iterations {max(found.later.values())})"
        )
    if found.data:
        yield "the data are not those of the run"
    yield _answer(found)


def _losses_first(figure: str) -> tuple[bool, str]:
    return not figure.startswith(("D/", "G/", "evaluation/")), figure


def _size(difference: float) -> str:
    return f"{difference:.2g}" if math.isfinite(difference) else "one side only"


def _answer(found: Verification) -> str:
    if found.equal:
        count = sum(one.values for one in found.figures)
        return f"repeated: {count} values of {found.iterations} iterations, equal in every digit"
    allowed = f"rounding begins with at most {found.tolerance:g}"
    if found.exact:
        allowed = "versions, machine and code are the same, so all must be equal"
    outcome = "repeated within rounding" if found.repeated else "not repeated"
    return f"{outcome}: {_fault(found.beginning)}; {allowed}"


def _fault(begun: Agreement | None) -> str:
    """Where the differences begin, in words."""
    if not begun:
        return "the generator's weights are not equal"
    size = f"by {begun.begins:.2g}" if math.isfinite(begun.begins) else "with a value on one side"
    return f"differences begin at iteration {begun.first}, {size}, in {printable(begun.figure)}"


def as_data(found: Verification) -> dict[str, Any]:
    """The same as plain data; a difference is infinite where only one side has a value."""
    return asdict(found) | {"equal": found.equal, "repeated": found.repeated}
