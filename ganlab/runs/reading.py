"""Reads the records of a run folder, of which nothing is believed.

A record may be a stranger's, cut short, or changed by a flipped bit. What is not as ganlab writes
it is named and left out; it never ends in an error of Python.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from ganlab.errors import GanlabError, printable

Check = Callable[[Any], bool]
"""Whether a value is of the kind that ganlab writes at its place."""
Written = Mapping[str, tuple[int, str]]
"""By the name of a .jsonl file: how many bytes of it were written, and their sha256."""

NONFINITE = "nonfinite"
"""Name of the verdict on a number that is not finite, and of the counts of skipped steps."""

_LONGEST = 16 * 2**20  # bytes of a line
_LARGEST = 256 * 2**20  # bytes of a JSON file
_MOST = 2**63 - 1  # of a count: as many as a recipe may say, a seed too
_UNREADABLE = (ValueError, RecursionError, MemoryError)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def is_number(value: Any) -> bool:
    # a comparison, since an integer of a thousand digits is no float
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_loss(name: str) -> bool:
    """Whether a figure of stats.jsonl is of a step of D or G, and not of an evaluation."""
    return name.startswith(("D/", "G/"))


def is_moment(value: Any) -> bool:
    """A date and a time with its zone, in ISO 8601."""
    try:
        found = datetime.fromisoformat(value) if is_text(value) else datetime.max
    except ValueError:
        return False
    # at the ends of the calendar it has no local time
    return found.tzinfo is not None and 1970 < found.year < 9999


def maybe(check: Check) -> Check:
    """None, or what the check allows."""
    return lambda value: value is None or check(value)


def listed(check: Check, most: int = 2**20) -> Check:
    """A list of what the check allows."""
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def table(check: Check) -> Check:
    """A table with any keys, of what the check allows."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def entry(**checks: Check) -> Check:
    """A table that has all of these keys; it may have others."""
    return lambda value: (
        isinstance(value, dict)
        and all(key in value and check(value[key]) for key, check in checks.items())
    )


_SCORES = table(table(maybe(is_number)))


def is_figures(line: Any) -> bool:
    """A line of stats.jsonl or timing.jsonl."""
    return entry(iteration=is_count)(line) and table(maybe(is_number))(line)


def is_scores(line: Any) -> bool:
    """A line of scores.jsonl."""
    return entry(iteration=is_count)(line) and all(
        _SCORES(value) for key, value in line.items() if key != "iteration"
    )


is_verdict = entry(
    iteration=is_count, name=is_text, since=is_count, sentence=is_text, action=is_text
)
"""A line of verdicts.jsonl."""


def _is_plugin(value: Any) -> bool:
    return entry(sha256=is_text)(value) and all(
        listed(is_text)(value.get(key, [])) for key in ("hooks", "paths")
    )


LOGS: dict[str, Check] = {
    "stats.jsonl": is_figures,
    "timing.jsonl": is_figures,
    "scores.jsonl": is_scores,
    "verdicts.jsonl": is_verdict,
}
"""By the name of a .jsonl file: the kind of its lines."""

OBJECTS: dict[str, dict[str, Check]] = {
    "status.json": {
        "state": is_text,
        "iteration": is_count,
        "of": is_count,
        "seconds": is_number,
        "peak_memory": is_number,
        "best": maybe(lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_number, v))),
        "scores": table(maybe(is_number)),
        "bicubic": table(maybe(is_number)),
        "left_out": table(listed(is_text)),
        "skipped": table(is_count),
        "rolled_back": is_count,
        "verdicts": listed(is_text),
        "exit_code": maybe(is_count),
        "message": is_text,
        "logs": table(lambda v: isinstance(v, list) and len(v) == 2 and is_count(v[0])),
    },
    "manifest.json": {
        "id": is_text,
        "begun": is_moment,
        "versions": table(is_text),
        "packages": table(is_text),
        "plugins": table(_is_plugin),
        "data": table(entry(digest=is_text, number=is_count)),
        "data_changes": listed(entry(iteration=is_count, changes=table(is_text))),
        "condition_shape": listed(is_count),
        "real_shape": listed(is_count),
        "parameters": table(is_count),
        "threads": is_count,
        "processes": is_count,
        "seed": is_count,
        **dict.fromkeys(("device", "device_name", "platform", "code"), is_text),
        "git_commit": maybe(is_text),
    },
}
"""By the name of a JSON file: the kinds of its values. A key may be absent; others are allowed."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file.

    One that is damaged is told on stderr, and taken as absent.
    """
    found, fault = parsed(path)
    if found is None and not fault:
        return {}
    if not fault and not isinstance(found, dict):
        fault = "it holds no table"
    if not fault:
        checks = OBJECTS.get(path.name, {})
        wrong = [key for key, check in checks.items() if key in found and not check(found[key])]
        fault = f"{wrong[0]} has a wrong value" if wrong else ""
    if fault:
        tell_once(f"{printable(str(path))}: damaged: {fault}; it is taken as absent")
        return {}
    return dict(found)


def parsed(path: Path) -> tuple[Any, str]:
    """The value in a JSON file, None when there is none, and what is wrong with the file."""
    try:
        if path.stat().st_size > _LARGEST:
            return None, f"more than {_LARGEST // 2**20} MiB"
        return json.loads(path.read_bytes().decode()), ""
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        raise GanlabError(f"{printable(str(path))}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return None, f"line {error.lineno}: {error.msg}"
    except _UNREADABLE:
        return None, "not the JSON of a record"


class Log:
    """The sound lines of a .jsonl file, in order. Damaged ones are counted as it is read.

    A last line without its end is still being written, or was when the process was killed. It is
    no damage.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._check = path, LOGS[path.name]
        self.damaged: list[int] = []
        """The numbers of the damaged lines, counted from 1."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (line for line, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each sound line as a table and as its bytes."""
        self.damaged.clear()
        for number, line in enumerate(self._raw(), 1):
            try:
                value = json.loads(line.decode())
            except _UNREADABLE:
                value = None
            if self._check(value):
                yield value, line
            else:
                self.damaged.append(number)

    def _raw(self) -> Iterator[bytes]:
        """The lines, read one by one: a log may be larger than the memory."""
        try:
            with self.path.open("rb") as file:
                while line := file.readline(_LONGEST):
                    if line.endswith(b"\n") or len(line) == _LONGEST:
                        yield line
        except FileNotFoundError:
            return
        except OSError as error:
            place = printable(str(self.path))
            raise GanlabError(f"{place}: cannot be read: {error.strerror}") from None

    @property
    def fault(self) -> str:
        """Which lines are damaged, after reading; empty when none is."""
        if not self.damaged:
            return ""
        more = len(self.damaged) - 1
        others = f", and {more:,} more" if more else ""
        return f"{self.path.name}:{self.damaged[0]}: damaged{others}; left out"


def as_written(path: Path, size: int, digest: str) -> bool:
    """Whether a file begins with these bytes, as many as `size`, and with this sha256."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while size > 0 and (block := file.read(min(size, 2**20))):
                found.update(block)
                size -= len(block)
    except OSError:
        return False
    return size == 0 and found.hexdigest() == digest


@cache
def tell_once(sentence: str) -> None:
    """Print a sentence on stderr, once in a process."""
    print(sentence, file=sys.stderr)
