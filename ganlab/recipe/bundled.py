"""The recipes that come with ganlab: found by name.

In a checkout they are the folder recipes/; the wheel has it as ganlab/recipes/.
"""

import os
from functools import cache
from pathlib import Path

from ganlab.errors import RecipeError, clipped
from ganlab.recipe.file import Origin, as_typed, did_you_mean

INSTALLED = Path(__file__).parents[1] / "recipes"
"""Their folder in an installed package; in a checkout it is not there."""


@cache
def bundled() -> dict[str, Path]:
    """The files of the recipes that come with ganlab, by name: wgan_gp, toy/ring_gan."""
    folder = INSTALLED if INSTALLED.is_dir() else INSTALLED.parents[1] / "recipes"
    found = {file.relative_to(folder).with_suffix("").as_posix(): file
             for file in folder.rglob("*.toml")}  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def find_recipe(argument: Path | str) -> Path:
    """The recipe file that a user names: a path, or where there is no such file a bundled name.

    :raises RecipeError: when it is neither, with what may have been meant.
    """
    path = Path(argument)
    if is_bundled(path):
        return bundled()[path.as_posix()]
    if os.path.lexists(path):
        return path
    raise RecipeError(f"{clipped(as_typed(path))}: no such recipe file{_meant(path)}")


def folder_of(origin: Origin) -> Path:
    """The folder at which a relative path in a recipe starts: that of the file which states it.

    In an installed package it is recipes/ in the current folder: data are not kept in packages.
    """
    folder = origin.folder
    if folder.is_relative_to(INSTALLED):
        return Path.cwd() / "recipes" / folder.relative_to(INSTALLED)
    return folder


def _meant(path: Path) -> str:
    without = path.with_suffix("").as_posix().removeprefix("recipes/") if path.name else ""
    if without in bundled():
        return f"; `{without}`, without the ending, is the recipe that comes with ganlab"
    near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.toml")))
    near = near or did_you_mean(path.as_posix(), bundled())
    return near or "; `ganlab recipes` lists those that come with ganlab"


def is_bundled(argument: Path | str) -> bool:
    """Whether an argument is the name of a bundled recipe, and no file of that name is there."""
    path = Path(argument)
    return path.as_posix() in bundled() and not _is_file(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
