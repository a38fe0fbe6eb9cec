"""Reports: one self-contained page of a run or of a comparison."""

import os
from pathlib import Path

from ganlab.errors import RecipeError
from ganlab.report.model import Arm, Comparison
from ganlab.report.page import render
from ganlab.report.tables import compare
from ganlab.runs.folder import write_text
from ganlab.runs.records import read_run

_OURS = '<meta name="generator" content="ganlab '


def check_writable(path: Path) -> None:
    """Refuse a page that could not be written, or would overwrite what is not ganlab's.

    :raises RecipeError: when it is so.
    """
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; name the page: -o {path / 'page.html'}")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RecipeError(f"{path}: {place} is no folder that can be written to; choose another -o")
    if path.exists() and _OURS not in path.read_text(encoding="utf-8", errors="replace")[:4096]:
        raise RecipeError(f"{path} exists and is no page of ganlab's; choose another -o")


def write_report(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison; only a page of ganlab's is overwritten.

    :raises RecipeError: when another file is in the way, or it cannot be written.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(comparison))
    return path


def report_run(run: Path | str, path: Path | None = None) -> Path:
    """Write the page of one run; into its folder, over the one before, when no path is given.

    :raises RecipeError: when it is no run folder.
    """
    record = read_run(run)
    arm = Arm(record.folder.path.name, (record,))
    return write_report(compare(record.folder.path.name, [arm]), path or record.folder.report)
