"""Reads recipe files (TOML): merges `extends`, and keeps the file and line of every value."""

import difflib
import math
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ganlab.errors import RecipeError, clipped, printable
from ganlab.recipe.trust import holds_a_run

Key = tuple[str, ...]

MAX_BYTES = 64 * 1024
"""The size of a recipe, together with those that it extends."""
MOST_FILES = 32  # from a recipe to the most basic one
MAX_DEPTH = 16  # of tables and lists in each other
# a dotted key of 40 kB keeps tomllib busy for 13 s
MAX_KEY_PARTS = 32

_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]\s*(?:#.*)?$")
_ENTRY = re.compile(rf"\s*({_DOTTED})\s*=")
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_PART}\s*\.\s*){{{MAX_KEY_PARTS},}}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a line of a file, or a `--set` on the command line."""

    file: Path | None
    line: int = 0
    text: str = ""

    def __str__(self) -> str:
        if self.file is None:
            return f"--set {self.text}"
        return f"{as_typed(self.file)}:{self.line}" if self.line else as_typed(self.file)

    @property
    def folder(self) -> Path:
        """The folder to which a relative path in this value refers."""
        return self.file.parent if self.file else Path.cwd()


@dataclass(slots=True)
class RecipeTable:
    """A merged recipe, not yet validated, with the origin of each value."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)

    def origin(self, *key: str) -> Origin:
        """The origin of the value at this key, or of the nearest table around it."""
        return _nearest(self.origins, key) or Origin(self.file)

    def states(self, key: Key) -> bool:
        """Whether the recipe has a value at this key; if not, the default applies."""
        return _holds(self.values, key)

    def merge(self, values: dict[str, Any], origins: dict[Key, Origin], at: Key = ()) -> None:
        """Merge new values in: tables merge, `plugins.x = false` drops x, all else is replaced.

        :param origins: of the new values; a key without an origin has that of its table.
        """
        target = self.values
        for part in at:
            target = target.setdefault(part, {})
        for name, value in values.items():
            key = (*at, name)
            where = _nearest(origins, key)
            assert where
            if value is False and at == ("plugins",):
                if name not in target:
                    raise RecipeError(
                        f"{where}: {name} = false drops nothing: the recipe inherits no plugin of "
                        f"this name{did_you_mean(name, target)}"
                    )
                self._forget(key, target.pop(name))
            elif isinstance(value, dict) and isinstance(target.get(name, {}), dict):
                target.setdefault(name, {})
                self.origins[key] = where
                self.merge(value, origins, key)
            else:
                self._forget(key, target.get(name))
                target[name] = value
                self.origins[key] = where

    def _forget(self, key: Key, value: Any) -> None:
        """Forget the origins of a value that is replaced, and of all in it."""
        self.origins.pop(key, None)
        for name, inner in value.items() if isinstance(value, dict) else ():
            self._forget((*key, name), inner)


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> RecipeTable:
    """Read a recipe file and the files that it extends, then apply the `--set` overrides.

    :raises RecipeError: with file and line, for every fault in the text itself.
    """
    table = RecipeTable(path)
    for file, values, origins in lineage(path):
        if not isinstance(values.get("plugins", {}), dict):
            raise RecipeError(
                f"{origins.get(('plugins',), Origin(file))}: plugins must be a table, [plugins]"
            )
        table.merge(values, origins)
    for override in overrides:
        _set(table, override)
    return table


def read_alone(path: Path) -> dict[str, Any]:
    """Read a recipe file that may extend no other, such as one from a stranger.

    :raises RecipeError: with file and line, for a fault in the text, and for `extends`.
    """
    values, lines = _parse(path, _read_text(path))
    if "extends" in values:
        place = f"{as_typed(path)}:{_line(lines, ('extends',))}"
        raise RecipeError(f"{place}: extends is not allowed here; every value must be in this file")
    if not isinstance(values.get("plugins", {}), dict):
        raise RecipeError(f"{as_typed(path)}: plugins must be a table, [plugins]")
    return values


def read_values(path: Path) -> RecipeTable:
    """Read a TOML file that is not a recipe, under the same limits; each value has its line.

    :raises RecipeError: with file and line, for a fault in the text.
    """
    values, lines = _parse(path, _read_text(path))
    origins = {(): Origin(path)} | {key: Origin(path, line) for key, line in lines.items()}
    return RecipeTable(path, values, origins)


_LONGEST_WORD, _MOST_WORDS = 64, 1000


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The text "; did you mean 'x'?" when a known word x is similar, else an empty text."""
    if len(word) > _LONGEST_WORD:  # comparing long words takes long, and helps nobody
        return ""
    words = [other for other in islice(known, _MOST_WORDS) if len(other) <= _LONGEST_WORD]
    near = [other for other in words if other.casefold() == word.casefold()]
    near = near or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _nearest(origins: dict[Key, Origin], key: Key) -> Origin | None:
    return next((origins[key[:n]] for n in range(len(key), -1, -1) if key[:n] in origins), None)


def lineage(path: Path) -> list[tuple[Path, dict[str, Any], dict[Key, Origin]]]:
    """The files of a recipe, the most basic first, each with its values and their origins.

    :raises RecipeError: with file and line, for every fault in the text itself.
    """
    found: list[tuple[Path, dict[str, Any], dict[Key, Origin]]] = []
    chain: list[Path] = []
    size = 0
    following: Path | None = path
    while following:
        path, following = following, None
        text = _read_text(path)
        chain.append(path.resolve())
        size += len(text)
        values, lines = _parse(path, text)
        origins = {(): Origin(path)} | {key: Origin(path, line) for key, line in lines.items()}
        found.append((path, values, origins))
        if "extends" in values:
            where = _nearest(origins, ("extends",)) or Origin(path)
            if size > MAX_BYTES or len(chain) == MOST_FILES:
                raise RecipeError(
                    f"{where}: a recipe and those that it extends are at most {MOST_FILES} files "
                    f"with together {MAX_BYTES} bytes"
                )
            following = _base(path, values.pop("extends"), where, chain)
    return found[::-1]


def _base(path: Path, base: Any, where: Origin, chain: list[Path]) -> Path:
    """The file that a recipe extends."""
    if not isinstance(base, str):
        raise RecipeError(f'{where}: extends must be a file name in quotes, such as "base.toml"')
    if holds_a_run(path.parent):
        raise RecipeError(
            f"{where}: extends is not allowed in a run folder: a run's recipe is whole"
        )
    if not base.endswith(".toml"):
        raise RecipeError(f"{where}: extends = '{clipped(base)}': a recipe's name ends in .toml")
    parent = path.parent / base
    if not _is_file(parent):
        near = did_you_mean(base, (p.name for p in path.parent.glob("*.toml")))
        raise RecipeError(
            f"{where}: extends = '{clipped(base)}': no such file beside this recipe{near}"
        )
    if parent.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, parent))
        raise RecipeError(f"{where}: recipes extend each other in a circle: {names}")
    return parent


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[Key, int]]:
    shown = as_typed(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        fault, line = str(error), ""
        if found := re.search(r" \(at line (\d+), column (\d+)\)", fault):
            fault, line = fault.replace(found[0], f" (column {found[2]})"), f":{found[1]}"
        raise RecipeError(f"{shown}{line}: not valid TOML: {printable(clipped(fault))}") from None
    except RecursionError:
        raise RecipeError(f"{shown}: {_TOO_DEEP}") from None
    except ValueError as error:
        raise RecipeError(f"{shown}: not valid TOML: {clipped(str(error))}") from None
    _refuse_depth(values, shown)
    lines = _locate(text, values)
    _refuse_nonsense(values, (), lambda key: f"{shown}:{_line(lines, key)}")
    return values, lines


def _read_text(path: Path) -> str:
    shown = as_typed(path)
    data = _read_bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise RecipeError(f"{shown}: not UTF-8 but UTF-16 text, it seems; save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{shown}:{number}: not UTF-8 text; save the file as UTF-8") from None
    if found := _LONG_KEY.search(text):
        number = text[: found.start()].count("\n") + 1
        raise RecipeError(f"{shown}:{number}: a key has at most {MAX_KEY_PARTS} parts")
    return text


def _read_bytes(path: Path) -> bytes:
    """What stands in a recipe file; not more of it than a recipe may have."""
    shown = as_typed(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
            raise RecipeError(f"{shown}: is {what}; give a recipe file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.toml")))
        raise RecipeError(f"{shown}: no such recipe file{near}") from None
    except RecipeError:
        raise
    except (OSError, ValueError) as error:
        fault = getattr(error, "strerror", None) or error
        raise RecipeError(f"{clipped(shown)}: cannot be read: {fault}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{shown}: more than the {MAX_BYTES} bytes that a recipe may have")
    return data


def _locate(text: str, values: dict[str, Any]) -> dict[Key, int]:
    """The line of each key that begins a line. A key in an inline table has its table's line."""
    lines: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = _split(header[1])
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            key = (*table, *_split(entry[1]))
            if _holds(values, key):  # else it is a line of a multi-line string
                lines.setdefault(key, number)
    return lines


def _split(dotted: str) -> Key:
    parts: list[str] = []
    nested: Any = tomllib.loads(f"{dotted} = 0")
    while isinstance(nested, dict):
        part, nested = next(iter(nested.items()))
        parts.append(part)
    return tuple(parts)


def _holds(values: Any, key: Key) -> bool:
    for part in key:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _line(lines: dict[Key, int], key: Key) -> int:
    return next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 1)


def _leaves(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, (*key, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


_TOO_DEEP = f"tables or lists are nested more than {MAX_DEPTH} deep"


def _refuse_depth(values: Any, place: object) -> None:
    """Refuse values that are nested so deeply that walking through them would fail."""
    level = [values]
    for _ in range(MAX_DEPTH + 1):
        several = (v.values() if isinstance(v, dict) else v for v in level)
        level = [inner for each in several for inner in each if isinstance(inner, dict | list)]
    if level:
        raise RecipeError(f"{place}: {_TOO_DEEP}")


def _refuse_nonsense(values: Any, key: Key, place: Any) -> None:
    """Refuse the TOML values that no option takes: nan, inf, dates, and numbers beyond 64 bits."""
    for where, value in _leaves(values, key):
        fault = ""
        if isinstance(value, float) and not math.isfinite(value):
            fault = f" = {value} is not a finite number"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            fault = " is a number of more than 64 bits"
        elif isinstance(value, str) and _NOT_TEXT.search(value):
            fault = " holds NUL, or bytes that are not UTF-8"
        elif not isinstance(value, str | int | float | bool):
            fault = " is a date or time, which no option takes"
        if fault:
            raise RecipeError(f"{place(where)}: {printable(clipped(where[-1]))}{fault}")


_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def _set(table: RecipeTable, override: str) -> None:
    """Apply one `--set key=value`; a value that is not valid TOML is taken as text."""
    origin = Origin(None, text=printable(clipped(override)))
    if len(override) > MAX_BYTES:
        raise RecipeError(f"{origin}: longer than the {MAX_BYTES} bytes that a recipe may have")
    dotted, equals, written = override.partition("=")
    try:
        too_long = _LONG_KEY.search(override)
        key = _split(dotted.strip()) if equals and not too_long else ()
    except (ValueError, RecursionError):
        key = ()
    if not key:
        raise RecipeError(f"{origin}: write it as key=value, such as gradient_penalty.weight=5")
    value = value_of(written)
    _refuse_depth([value], origin)
    _refuse_nonsense(value, key, lambda _: origin)
    plugins = table.values.get("plugins", {})
    if key[0] in plugins or (key[0] != "plugins" and (len(key) > 1 or isinstance(value, dict))):
        key = ("plugins", *key)
    if key[0] == "plugins" and len(key) > 2 and key[1] not in plugins:
        raise RecipeError(
            f"{origin}: the recipe has no plugin '{key[1]}'{did_you_mean(key[1], plugins) or '.'} "
            f"Add one with --set '{key[1]}={{}}'"
        )
    if key[0] == "plugins" and len(key) == 1:
        raise RecipeError(f"{origin}: set one plugin at a time, such as gradient_penalty.weight=5")
    *tables, name = key
    inner: Any = table.values
    for part in tables:
        inner = inner.get(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                f"{origin}: {part} is {inner!r}, not a table; set the whole table, such as "
                f"{'.'.join(key[:-1]).removeprefix('plugins.')}={{ from = 1, to = 0, over = 100 }}"
            )
    table.merge({name: value}, {key: origin}, tuple(tables))


def value_of(written: str) -> Any:
    """A value in TOML; what is not valid TOML is taken as text."""
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return written.strip()


def as_typed(path: Path) -> str:
    """A path as the user would type it in the current folder."""
    try:
        return printable(str(path.resolve().relative_to(Path.cwd())))
    except (ValueError, OSError, RuntimeError):  # elsewhere, or no path at all
        return printable(str(path))
