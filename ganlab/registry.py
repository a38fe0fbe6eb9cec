"""What installed distributions offer by entry points: plugins, commands, data sets."""

import importlib.metadata
import sys
from importlib.metadata import Distribution, EntryPoint, distributions

from ganlab.errors import first_line, printable


def entry_points(group: str) -> list[EntryPoint]:
    """Every entry point of a group.

    A distribution whose record is damaged is told on stderr and left out.
    """
    try:
        return list(importlib.metadata.entry_points(group=group))
    except Exception:  # it fails as a whole, and does not say where
        return [point for there in distributions() for point in _points_of(there, group)]


def _points_of(distribution: Distribution, group: str) -> list[EntryPoint]:
    try:
        return list(distribution.entry_points.select(group=group))
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        line = f"the entry points of {distribution.name} cannot be read: {told}"
        print(printable(line), file=sys.stderr)
        return []
