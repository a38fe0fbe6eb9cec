"""The recipes that come with ganlab: described by their head comments, copied."""

import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlab.errors import RecipeError, clipped, printable
from ganlab.files import whole
from ganlab.recipe.bundled import bundled
from ganlab.recipe.file import as_typed, did_you_mean, lineage

_LABEL = re.compile(r"(Paper|Reaches|Needs): (.*)")


@dataclass(frozen=True, slots=True)
class Bundled:
    """What the head comment of a bundled recipe says."""

    name: str
    what: str
    """Its first sentences: what it is."""
    paper: str
    reaches: str
    """The scores that it reached, with machine and date."""
    needs: str
    """Time, memory and files."""


def describe_bundled() -> list[Bundled]:
    """All bundled recipes, as their head comments describe them."""
    return [_described(name, file) for name, file in bundled().items()]


def copy_bundled(name: str, folder: Path) -> list[Path]:
    """Copy a bundled recipe with all files that it needs: what it extends, and plugin files.

    They lie to each other as they did. A file that is there already is left if it is equal.

    :returns: the copies, that of the recipe itself first.
    :raises RecipeError: when there is no such recipe, or a file is there that differs; nothing is
        copied then.
    """
    if name not in bundled():
        near = did_you_mean(name, bundled()) or "; `ganlab recipes` lists them"
        raise RecipeError(
            f"{printable(clipped(name))}: no recipe of this name comes with ganlab{near}"
        )
    sources = list(dict.fromkeys(_needed(bundled()[name])))
    root = Path(os.path.commonpath([source.parent for source in sources]))
    copies = {source: folder / source.relative_to(root) for source in sources}
    for source, copy in copies.items():
        if copy.exists() and (not copy.is_file() or copy.read_bytes() != source.read_bytes()):
            raise RecipeError(
                f"{as_typed(copy)}: exists and differs from the recipe {name}; name another folder:"
                f" ganlab recipes copy {name} FOLDER"
            )
    for source, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with whole(copy) as file:
            file.write(source.read_bytes())
    return list(copies.values())


def _needed(recipe: Path) -> Iterator[Path]:
    """A recipe, the files that it extends, and their plugin files."""
    for path, values, _ in reversed(lineage(recipe)):
        yield path.resolve()
        for options in values.get("plugins", {}).values():
            use: Any = options.get("use", "") if isinstance(options, dict) else ""
            if use.endswith(".py"):
                yield (path.parent / use).resolve()


def lines(found: list[Bundled]) -> Iterator[str]:
    """What `describe_bundled` returns as lines for the terminal."""
    width = shutil.get_terminal_size((100, 24)).columns
    for one in found:
        yield one.name
        for text in (one.what, f"Reaches: {one.reaches}", f"Needs: {one.needs}"):
            yield textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ")
        yield ""


def _described(name: str, file: Path) -> Bundled:
    parts = {"What": ""}
    label = "What"
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if found := _LABEL.fullmatch(text):
            label, text = found.groups()
        parts[label] = f"{parts.get(label, '')} {text}".strip()
    rest = {part.lower(): parts.get(part, "") for part in ("Paper", "Reaches", "Needs")}
    return Bundled(name, parts["What"], **rest)
