"""Reports: one self-contained page of a run or of a comparison."""

from pathlib import Path

from ganlab.report.model import Comparison


def write_report(comparison: Comparison, path: Path) -> Path:
    """Write the page of a comparison."""
    return path
