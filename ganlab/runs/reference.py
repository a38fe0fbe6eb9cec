"""References to a run: a path, a name, the beginning of a name, or @last."""

import sys
from contextlib import suppress
from pathlib import Path

from ganlab.errors import RecipeError, clipped, printable
from ganlab.recipe.bundled import is_bundled
from ganlab.recipe.file import did_you_mean

RUNS = Path("runs")
LAST = "@last"
MOST_NAMES = 5  # in a message


def find_run(reference: Path | str, parent: Path = RUNS) -> Path:
    """The folder of the run that a user names. A `Path` must be the folder itself.

    A text is the path of a run; or the name of a run in `parent`, or the beginning of the name of
    one run alone; or @last, the run that `ganlab runs` lists last. Before the last part may stand
    another folder of runs: other/@last. What is not written out is told on stderr.

    :raises RecipeError: when there is no such run, or the beginning is that of several.
    """
    path = Path(reference)
    exact = [path] if isinstance(reference, Path) else [path, parent / path]
    for candidate in exact:
        if is_run(candidate):
            return candidate
    if isinstance(reference, Path) or _exists(path):
        raise RecipeError(f"{_shown(path)}: not a run folder (it has no recipe.toml); {_LISTED}")
    found = _of_beginning(path, path.parent if path.parent != Path() else parent)
    print(f"{_shown(path)} is {_shown(found)}", file=sys.stderr)
    return found


def find_recipe_or_run(argument: Path | str) -> Path:
    """The recipe, as it was named, or the folder of the run that a user names; see `find_run`.

    :raises RecipeError: when it is neither.
    """
    return Path(argument) if names_recipe(argument) else find_run(argument)


def names_recipe(argument: Path | str) -> bool:
    """Whether an argument that is a recipe or a run is a recipe."""
    path = Path(argument)
    if any(map(is_run, (path, RUNS / path))):
        return False
    return path.suffix == ".toml" or is_bundled(path)


def is_run(folder: Path) -> bool:
    """Whether a folder is opened as a run: it has a recipe.toml."""
    return _exists(folder / "recipe.toml") and (folder / "recipe.toml").is_file()


def runs_in(parent: Path) -> list[Path]:
    """The run folders in a folder, those that were begun or changed last at the end."""
    found = {}
    for file in parent.glob("*/recipe.toml") if parent.is_dir() else ():
        if not file.parent.name.startswith("."):  # else a run that is just being made
            with suppress(OSError):  # it was deleted meanwhile
                found[file.parent] = file.stat().st_mtime_ns
    return sorted(found, key=lambda path: (found[path], path.name))


_LISTED = "`ganlab runs` lists them"


def _of_beginning(path: Path, parent: Path) -> Path:
    runs = runs_in(parent) if _exists(parent) else []
    if path.name == LAST:
        if not runs:
            raise RecipeError(
                f"{_shown(path)}: there is no run in {_shown(parent)} yet; for a run in another "
                f"folder write FOLDER/{LAST}"
            )
        return runs[-1]
    found = [run for run in runs if run.name.startswith(path.name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(_shown(run.name) for run in found[-MOST_NAMES:])
        more = f"{len(found) - MOST_NAMES} more, " if len(found) > MOST_NAMES else ""
        raise RecipeError(
            f"{_shown(path)}: {len(found)} runs in {_shown(parent)} have names that begin so: "
            f"{more}{names}; give more of the name, or {LAST} for the last one"
        )
    near = did_you_mean(path.name, (run.name for run in runs))
    raise RecipeError(
        f"{_shown(path)}: not a run folder, and no run in {_shown(parent)} has a name that begins "
        f"so{near or '; ' + _LISTED}"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _shown(path: Path | str) -> str:
    return printable(clipped(str(path)))
