"""Reports: one self-contained page about a run, a comparison, or all runs of a folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ganlab.errors import RecipeError
from ganlab.files import write_text
from ganlab.report.before_after import Enlarged, render_before_after
from ganlab.report.index import render_index
from ganlab.report.model import Arm, Comparison
from ganlab.report.page import render
from ganlab.report.sweep import OptionRow, TrialRow, render_sweep
from ganlab.report.tables import compare
from ganlab.runs.records import read_run

_OURS = '<meta name="generator" content="ganlab '


def check_writable(path: Path) -> None:
    """Check that a page can be written to this path, and overwrites only a page from ganlab.

    :raises RecipeError: when it cannot be written, or another file is in the way.
    """
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; name a file, as in -o {path / 'page.html'}")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RecipeError(f"{path}: {place} is not a writable folder; choose another -o")
    if path.exists() and _OURS not in path.read_text(encoding="utf-8", errors="replace")[:4096]:
        raise RecipeError(f"{path} exists and is not a page from ganlab; choose another -o")


def write_report(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison; only a page from ganlab is overwritten.

    :raises RecipeError: when the page cannot be written, or another file is in the way.
    """
    return _write(path, render(comparison))


def write_index(parent: Path, entries: Sequence[dict[str, Any]]) -> Path:
    """Write index.html into a folder of runs; only a page from ganlab is overwritten.

    :param entries: from `describe_runs`.
    :raises RecipeError: when the page cannot be written, or another file is in the way.
    """
    return _write(parent / "index.html", render_index(parent, entries))


def write_before_after(
    path: Path,
    title: str,
    lead: str,
    notes: Sequence[str],
    pictures: Sequence[Enlarged],
    side: int,
) -> Path:
    """Write the page of enlarged pictures; only a page from ganlab is overwritten.

    :raises RecipeError: when the page cannot be written, or another file is in the way.
    """
    return _write(path, render_before_after(title, lead, notes, pictures, side))


def write_sweep(
    path: Path,
    title: str,
    lead: Sequence[str],
    figure: str,
    options: Sequence[OptionRow],
    trials: Sequence[TrialRow],
) -> Path:
    """Write the page of a sweep; only a page from ganlab is overwritten.

    :raises RecipeError: when the page cannot be written, or another file is in the way.
    """
    return _write(path, render_sweep(title, lead, figure, options, trials))


def _write(path: Path, text: str) -> Path:
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def report_run(run: Path | str, path: Path | None = None) -> Path:
    """Write the page of one run; without a path into its folder, over the page that is there.

    :raises RecipeError: when `run` is not a run folder.
    """
    record = read_run(run)
    arm = Arm(record.folder.path.name, (record,))
    return write_report(compare(record.folder.path.name, [arm]), path or record.folder.report)
