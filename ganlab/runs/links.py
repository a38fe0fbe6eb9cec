"""A run folder holds plain files and folders only, so that no command reads or writes elsewhere."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.runs.reference import runs_in

FOLDERS = ("checkpoints", "samples", "pictures")
"""The folders in a run folder that ganlab reads and writes."""
_LOCK = ".lock"
# of the files in a run folder
_SUFFIXES = {
    ".toml", ".txt", ".json", ".jsonl", ".html", ".py", ".safetensors", ".pt", ".sha256", ".png",
}  # fmt: skip


def check_plain(run: Path) -> None:
    """Refuse a run folder in which a link, a pipe, a device or the like is in the place of a file.

    The run folder itself may be reached through a link.

    :raises RecipeError: naming the first such entry.
    :raises GanlabError: when the folder cannot be listed.
    """
    for folder in (run, *(run / name for name in FOLDERS)):
        for entry in _entries(folder):
            if fault := _fault(entry, within=folder == run):
                place = printable(str(folder / entry.name))
                raise RecipeError(
                    f"{place} {fault}; a run folder holds plain files and folders only, so that no "
                    "command reads or writes elsewhere. Remove it; or, if you made it yourself, "
                    "put there what it stands for: `cp -rL` copies a folder without links"
                )


def plain_runs(parent: Path) -> list[Path]:
    """The runs of `runs_in`, without those that `check_plain` refuses; these are told."""
    found = []
    for folder in runs_in(parent):
        try:
            check_plain(folder)
        except GanlabError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            found.append(folder)
    return found


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise GanlabError(f"{printable(str(folder))}: cannot be listed: {error.strerror}") from None


def _fault(entry: os.DirEntry[str], within: bool) -> str:
    """What is wrong with an entry; empty when nothing is.

    :param within: whether it is in the run folder itself.
    """
    if entry.is_symlink() or (sys.platform == "win32" and os.path.isjunction(entry.path)):
        return "is a link"
    is_folder = entry.is_dir(follow_symlinks=False)
    if within and entry.name in FOLDERS:
        return "" if is_folder else "is not a folder"
    if is_folder:
        of_file = entry.name == _LOCK or Path(entry.name).suffix in _SUFFIXES
        return "is a folder in the place of a file" if of_file else ""
    if not entry.is_file(follow_symlinks=False):
        return "is a pipe, a socket or a device" if os.path.lexists(entry.path) else ""
    # it is opened for writing in place, on some systems by the name .LOCK too
    if entry.name.lower() == _LOCK and Path(entry.path).stat().st_nlink > 1:
        return "is a hard link"
    return ""
