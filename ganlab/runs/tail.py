"""Follows a log of a run that is still being written."""

import json
import os
from pathlib import Path
from typing import Any

from ganlab.runs.reading import LOGS


class Tail:
    """The sound lines that came into a .jsonl file since the last look.

    A file that was replaced or cut, as at the start of a sitting, is read from its beginning again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._check = path, LOGS[path.name]
        self._place, self._identity = 0, 0

    def look(self) -> tuple[list[dict[str, Any]], bool]:
        """The new lines, and whether they are the first ones of a file that has begun anew."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())  # of this file; another may take its place now
                anew = found.st_ino != self._identity or found.st_size < self._place
                file.seek(0 if anew else self._place)
                content = file.read()
        except OSError:  # it is not there yet, or is just being replaced
            return [], False
        self._place, self._identity = 0 if anew else self._place, found.st_ino
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        self._place += len(whole)
        values = (_parsed(line) for line in whole.splitlines())
        return [value for value in values if self._check(value)], anew


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
