"""What a resumed run does when its data have changed: it is refused, or the run folder says so."""

import sys
from pathlib import Path

from ganlab.errors import RecipeError
from ganlab.files import write_json
from ganlab.recipe.model import Recipe
from ganlab.runs.data import (
    TITLES,
    Data,
    Section,
    as_opened,
    described,
    differences,
    digests,
)
from ganlab.runs.folder import RunFolder, read_data
from ganlab.runs.reading import read_json


def changes_of_data(
    folder: RunFolder, recipe: Recipe, data: Data, accepted: bool
) -> dict[Section, str]:
    """How the data differ from those of the run, in words; printed when that was accepted.

    :param data: what the run would read now.
    :returns: what changed in each section; empty where the run folder does not say its data.
    :raises RecipeError: when they differ and that was not accepted.
    """
    before = read_data(folder)
    changes = differences(before, data) if before else _by_manifest(folder, data)
    if not changes:
        return {}
    told = _told(recipe, before, data, changes)
    if not accepted:
        raise RecipeError(
            f"{folder.path}: the data have changed since the run was started ({told}), so it would "
            "not continue the same run; restore them, or continue on the new data with "
            "--accept-data"
        )
    print(f"the data have changed: {told}", file=sys.stderr)
    return changes


def check_expected(recipe: Recipe, expected: Data, data: Data) -> None:
    """Refuse to train on other data than those with which a comparison was planned.

    :raises RecipeError: naming the plugins and the items.
    """
    data = as_opened(data, expected)
    if changes := differences(expected, data):
        raise RecipeError(
            f"{recipe.name}: the data have changed since the comparison began "
            f"({_told(recipe, expected, data, changes)}); leave them as they are, and give the "
            "same command again"
        )


def check_ended(folder: RunFolder, recipe: Recipe, now: Data, accepted: bool) -> None:
    """Refuse to take a run that has ended for one on the data that its recipe would read now.

    :param accepted: only print how they differ.
    :raises RecipeError: naming the plugins and the items.
    """
    before = as_opened(read_data(folder), now)
    changes = differences(before, now) if before else {}
    told = _told(recipe, before, now, changes)
    if changes and not accepted:
        raise RecipeError(
            f"{folder.path}: the data have changed since this run ended ({told}), so it is not the "
            "run of this command; leave out --continue to start a new one, or add --accept-data "
            "to take it as it is"
        )
    if changes:
        print(f"the data have changed: {told}", file=sys.stderr)


def _told(recipe: Recipe, before: Data, data: Data, changes: dict[Section, str]) -> str:
    return "; ".join(
        f"{TITLES[section]}{_sources(recipe, before, data, section)}: {words}"
        for section, words in changes.items()
    )


def note_changes(
    folder: RunFolder, data: Data, changes: dict[Section, str], iteration: int
) -> None:
    """Note in the run folder that its data are other ones from now on."""
    manifest = read_json(folder.manifest)
    changed = [*manifest.get("data_changes", []), {"iteration": iteration, "changes": changes}]
    write_json(folder.manifest, manifest | {"data": digests(data), "data_changes": changed})
    write_json(folder.data, data)


def _by_manifest(folder: RunFolder, data: Data) -> dict[Section, str]:
    """The changes as far as the manifest tells them, where data.json does not list the items.

    Where there are none, data.json is written again.
    """
    recorded = read_json(folder.manifest).get("data")
    if recorded is None:
        if folder.manifest.is_file():
            print(
                f"{folder.path} does not say on which data it was started, so ganlab cannot tell "
                "whether they have changed",
                file=sys.stderr,
            )
        return {}
    now = digests(data)
    told = [{s: described({s: e}) for s, e in found.items()} for found in (recorded, now)]
    changes: dict[Section, str] = {
        section: f"{told[0].get(section, 'none')} -> {told[1].get(section, 'none')}; "
        f"{folder.data.name}, which listed them, is missing or damaged"
        for section in TITLES
        if recorded.get(section) != now.get(section)
    }
    if not changes:
        write_json(folder.data, data)
    return changes


def _sources(recipe: Recipe, before: Data, data: Data, section: Section) -> str:
    """The plugins whose data in a section have changed, with their paths; begins with " of"."""
    old, new = before.get(section, {}), data.get(section, {})
    changed = [p for n, p in recipe.plugins.items() if old.get(n) != new.get(n)]
    paths = [(p.name, [str(v) for _, v in p if isinstance(v, Path)]) for p in changed]
    named = [f"{name} ({', '.join(found)})" if found else name for name, found in paths]
    return f" of {' and '.join(named)}" if named else ""
