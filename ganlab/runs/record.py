"""What a run folder says of the run, and whether that is still so.

manifest.json has the run's id, and text and sha256 of its recipe. A recipe that was changed by hand
is therefore noticed. `ganlab resume --set` changes it in three writes: changes.jsonl tells the
change, then comes recipe.toml, then manifest.json. After a crash between them the folder holds
either the run before the change or the run after it.
"""

import json
import secrets
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from tomlkit import inline_table, item

from ganlab.errors import RecipeError
from ganlab.files import sha256, write_json, write_text

RECIPE, MANIFEST, CHANGES = "recipe.toml", "manifest.json", "changes.jsonl"


class Change(BaseModel):
    """One value of the recipe that was changed in a run: a line of changes.jsonl."""

    model_config = ConfigDict(frozen=True, strict=True)

    iteration: int
    """How many iterations were completed; those after it have the new value."""
    time: str
    """When, in UTC."""
    key: str
    """Dotted: iterations, plugins.adam.learning_rate."""
    old: Any = None
    """None where the recipe did not have the key."""
    new: Any = None
    alters: bool = True
    """Whether the run is no longer what its recipe, as it is now, would give from the start."""
    recipe: str
    """The sha256 of recipe.toml after the change."""

    def __str__(self) -> str:
        values = f"{toml(self.old)} -> {toml(self.new)}"
        return f"at iteration {self.iteration:,}: {_plain(self.key)} {values}"


class _Manifest(BaseModel):
    """The part of manifest.json that tells the run's recipe."""

    model_config = ConfigDict(extra="allow")

    id: str = ""
    recipe: str = ""
    recipe_text: str = ""
    changes: str = sha256("")


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a run, read from its folder."""

    id: str
    """Empty in a run of an older ganlab."""
    sha256: str
    """That recipe.toml must have; empty in a run of an older ganlab."""
    text: str
    changes: tuple[Change, ...]
    """Those that were carried out, in their order."""
    settled: bool
    """Whether the three files agree; after a crash in a change they do not."""
    known: bool
    """Whether there is a manifest.json that can be read."""


def toml(value: Any) -> str:
    """A value as it is written in a recipe; "(none)" for None, which a recipe leaves out."""
    if isinstance(value, dict):
        table = inline_table()
        table.update(value)
        return str(table.as_string())
    return "(none)" if value is None else str(item(value).as_string())


def new_id() -> str:
    """A random name for a run: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def read_record(folder: Path) -> Record:
    """Read what a run folder says of its recipe, and the changes that were carried out.

    :raises RecipeError: when changes.jsonl is damaged, was edited, or is gone.
    """
    try:
        manifest, known = _Manifest.model_validate_json((folder / MANIFEST).read_bytes()), True
    except (OSError, ValidationError):
        manifest, known = _Manifest(), False
    known = known and bool(manifest.model_fields_set or manifest.model_extra)
    text = _read(folder / CHANGES)
    told, later = _split(folder, text, manifest) if known else ("", text)
    changes = tuple(_changes(folder, told))
    now, tail = sha256(_read(folder / RECIPE)), tuple(_changes(folder, later))
    if tail and tail[-1].recipe == now:
        text = _read(folder / RECIPE)
        return Record(manifest.id, now, text, (*changes, *tail), False, known)
    return Record(manifest.id, manifest.recipe, manifest.recipe_text, changes, not tail, known)


def check_recipe(folder: Path) -> None:
    """Refuse a run whose recipe.toml is not the one that the run has.

    :raises RecipeError: naming what was edited, and how to change a run.
    """
    record, now = read_record(folder), sha256(_read(folder / RECIPE))
    if not record.known:
        print(
            f"{folder / MANIFEST}: missing or damaged, so nothing tells whether {RECIPE} is as the "
            f"run was made; `ganlab resume {folder}` writes it again",
            file=sys.stderr,
        )
    elif record.sha256 and record.sha256 != now:
        edits = edits_of(folder, record)
        told = "; ".join(f"{_plain(k)}: {toml(old)} -> {toml(new)}" for k, old, new in edits[:4])
        sets = " ".join(
            f"--set {_plain(k)}={toml(new)}" for k, _, new in edits[:4] if new is not None
        )
        raise RecipeError(
            f"{folder / RECIPE}: it was edited or is damaged: its sha256 is not that in {MANIFEST}"
            f"{f' ({told})' if told else ''}. The run was not made with it. To change a run, give "
            f"`ganlab resume {folder} {sets or '--set KEY=VALUE'}`, which begins with "
            f"the run's own recipe; to leave it as it is, put the old {RECIPE} back"
        )


def undo_edits(folder: Path) -> list[str]:
    """Put back the recipe of a run that was edited by hand; the run folder must be locked.

    :returns: what was undone: `adam.learning_rate = 0.1`.
    """
    record = read_record(folder)
    if not record.text or sha256(_read(folder / RECIPE)) == record.sha256:
        return []
    edits = edits_of(folder, record)
    write_text(folder / RECIPE, record.text)
    return [f"{_plain(key)} = {toml(new)}" for key, _, new in edits] or ["it could not be read"]


def edits_of(folder: Path, record: Record) -> list[tuple[str, Any, Any]]:
    """The values that were edited by hand: key, value of the run, value in the file.

    Empty when the file cannot be read as TOML.
    """
    try:
        edited = tomllib.loads(_read(folder / RECIPE))
        return list(differences(tomllib.loads(record.text), edited))
    except (ValueError, RecursionError):
        return []


def differences(
    one: dict[str, Any], other: dict[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The values in which two recipes differ: dotted key, and both values; None for none.

    Settings and options of plugins are compared whole, so that a schedule is one value.
    """
    for key in dict.fromkeys([*one, *other]):
        a, b, name = one.get(key), other.get(key), f"{above}{key}"
        if isinstance(a, dict) and isinstance(b, dict) and name.count(".") < 2:
            yield from differences(a, b, f"{name}.")
        elif a != b:
            yield name, a, b


def carry_out(folder: Path, text: str, changes: Sequence[Change]) -> None:
    """Change the recipe of a run to this text, and tell the changes in its folder."""
    journal = _read(folder / CHANGES) + lines_of(changes)
    write_text(folder / CHANGES, journal)
    write_text(folder / RECIPE, text)
    _note(folder, text, journal)


def settle(folder: Path) -> None:
    """Finish a change that a crash has cut off, or forget it. The run folder must be locked."""
    record = read_record(folder)
    if record.known and not record.settled:
        write_text(folder / CHANGES, lines_of(record.changes))
        _note(folder, record.text, lines_of(record.changes))


def restate(folder: Path, iteration: int) -> None:
    """Tell again the changes that were made later than the run now goes on.

    The checkpoint with which they began is gone, so they begin with an earlier one.
    """
    record = read_record(folder)
    late: dict[str, Change] = {}
    for change in record.changes:
        if change.iteration > iteration:
            late[change.key] = change.model_copy(update={"old": late.get(change.key, change).old})
        else:
            late.pop(change.key, None)  # told again already
    if late:
        update = {"iteration": iteration, "recipe": record.sha256}
        told = [change.model_copy(update=update) for change in late.values()]
        carry_out(folder, record.text, told)


def former_ends(folder: Path) -> frozenset[int]:
    """The iterations at which a run was done before it was made longer."""
    longer = [change for change in read_record(folder).changes if change.key == "iterations"]
    return frozenset(change.iteration for change in longer if change.iteration == change.old)


def of_recipe(text: str, journal: str = "") -> dict[str, str]:
    """What manifest.json says of a recipe with this text, and of the changes so far."""
    return {"recipe": sha256(text), "recipe_text": text, "changes": sha256(journal)}


def _note(folder: Path, text: str, journal: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    write_json(folder / MANIFEST, manifest | (of_recipe(text, journal) if text else {}))


def lines_of(changes: Iterable[Change]) -> str:
    """The changes as lines of changes.jsonl."""
    return "".join(f"{change.model_dump_json()}\n" for change in changes)


def _split(folder: Path, text: str, manifest: _Manifest) -> tuple[str, str]:
    """The part of changes.jsonl that manifest.json knows, and what came later."""
    lines, told = text.splitlines(keepends=True), ""
    for line in ["", *lines]:
        told += line
        if sha256(told) == manifest.changes:
            return told, text[len(told) :]
    raise RecipeError(
        f"{folder / CHANGES}: damaged, edited or missing: its sha256 is not that in {MANIFEST}. It "
        "tells how the run was changed; put it back"
    )


def _changes(folder: Path, text: str) -> Iterator[Change]:
    for line in text.splitlines():
        try:
            yield Change.model_validate_json(line)
        except ValidationError:
            raise RecipeError(f"{folder / CHANGES}: a line of it is damaged; put it back") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        return path.read_bytes().decode("utf-8", "replace")


def _plain(key: str) -> str:
    """A key as `--set` takes it."""
    return key.removeprefix("plugins.")
