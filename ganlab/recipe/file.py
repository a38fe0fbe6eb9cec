"""Reads recipe files (TOML): merges `extends`, and keeps the file and line of every value."""

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ganlab.errors import RecipeError
from ganlab.recipe.trust import holds_a_run

Key = tuple[str, ...]

MAX_BYTES = 64 * 1024
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
                del target[name]
                self._forget(key)
            elif isinstance(value, dict) and isinstance(target.get(name, {}), dict):
                target.setdefault(name, {})
                self.origins[key] = where
                self.merge(value, origins, key)
            else:
                target[name] = value
                self._forget(key)
                self.origins[key] = where

    def _forget(self, key: Key) -> None:
        self.origins = {k: o for k, o in self.origins.items() if k[: len(key)] != key}


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> RecipeTable:
    """Read a recipe file and the files that it extends, then apply the `--set` overrides.

    :raises RecipeError: with file and line, for every fault in the text itself.
    """
    table = RecipeTable(path)
    for file, values, origins in _lineage(path):
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
    values, lines = _parse(path)
    if "extends" in values:
        place = f"{as_typed(path)}:{_line(lines, ('extends',))}"
        raise RecipeError(f"{place}: extends is not allowed here; every value must be in this file")
    if not isinstance(values.get("plugins", {}), dict):
        raise RecipeError(f"{as_typed(path)}: plugins must be a table, [plugins]")
    return values


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The text "; did you mean 'x'?" when a known word x is similar, else an empty text."""
    words = list(known)
    near = [other for other in words if other.casefold() == word.casefold()]
    near = near or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _nearest(origins: dict[Key, Origin], key: Key) -> Origin | None:
    return next((origins[key[:n]] for n in range(len(key), -1, -1) if key[:n] in origins), None)


def _lineage(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict, dict]]:
    """The files of a recipe, the most basic first."""
    values, lines = _parse(path)
    origins = {(): Origin(path)} | {key: Origin(path, line) for key, line in lines.items()}
    base = values.pop("extends", None)
    if base is None:
        return [(path, values, origins)]
    where = origins[("extends",)]
    if not isinstance(base, str):
        raise RecipeError(f'{where}: extends must be a file name in quotes, such as "base.toml"')
    if holds_a_run(path.parent):
        raise RecipeError(
            f"{where}: extends is not allowed in a run folder: a run's recipe is whole"
        )
    if not base.endswith(".toml"):
        raise RecipeError(f"{where}: extends = '{base}': a recipe's name ends in .toml")
    parent = path.parent / base
    if not parent.is_file():
        near = did_you_mean(base, (p.name for p in path.parent.glob("*.toml")))
        raise RecipeError(f"{where}: extends = '{base}': no such file beside this recipe{near}")
    chain = (*seen, path.resolve())
    if parent.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, parent))
        raise RecipeError(f"{where}: recipes extend each other in a circle: {names}")
    return [*_lineage(parent, chain), (path, values, origins)]


def _parse(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    text = _read_text(path)
    shown = as_typed(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        fault, line = str(error), ""
        if found := re.search(r" \(at line (\d+), column (\d+)\)", fault):
            fault, line = fault.replace(found[0], f" (column {found[2]})"), f":{found[1]}"
        raise RecipeError(f"{shown}{line}: not valid TOML: {fault}") from None
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{shown}: not valid TOML: {error}") from None
    lines = _locate(text, values)
    _refuse_nonsense(values, (), lambda key: f"{shown}:{_line(lines, key)}")
    return values, lines


def _read_text(path: Path) -> str:
    shown = as_typed(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.toml")))
        raise RecipeError(f"{shown}: no such recipe file{near}") from None
    except OSError as error:
        raise RecipeError(f"{shown}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{shown}: {len(data)} bytes; a recipe has at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{shown}:{number}: not UTF-8 text; save the file as UTF-8") from None
    if found := _LONG_KEY.search(text):
        number = text[: found.start()].count("\n") + 1
        raise RecipeError(f"{shown}:{number}: a key has at most {MAX_KEY_PARTS} parts")
    return text


def _locate(text: str, values: dict[str, Any]) -> dict[Key, int]:
    """The line of each key that begins a line. A key in an inline table has its table's line."""
    lines: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
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


def _refuse_nonsense(values: Any, key: Key, place: Any) -> None:
    """Refuse the TOML values that no option takes: nan, inf, dates."""
    for where, value in _leaves(values, key):
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{place(where)}: {where[-1]} = {value} is not a finite number")
        if not isinstance(value, str | int | float | bool):
            raise RecipeError(
                f"{place(where)}: {where[-1]} is a date or time, which no option takes"
            )


def _set(table: RecipeTable, override: str) -> None:
    """Apply one `--set key=value`; a value that is not valid TOML is taken as text."""
    dotted, equals, written = override.partition("=")
    origin = Origin(None, text=override)
    try:
        key = _split(dotted.strip()) if equals else ()
    except (tomllib.TOMLDecodeError, RecursionError):
        key = ()
    if not key:
        raise RecipeError(f"{origin}: write it as key=value, such as gradient_penalty.weight=5")
    value = _value(written)
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


def _value(written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return written.strip()


def as_typed(path: Path) -> str:
    """A path as the user would type it in the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
