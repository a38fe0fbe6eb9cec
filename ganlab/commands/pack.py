"""`ganlab pack`: one file with all that another person needs to make a run again, but its data."""

import json
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import tomlkit
from safetensors.torch import save

from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.files import sha256
from ganlab.generator_weights import seals_weights
from ganlab.recipe.model import Recipe
from ganlab.runs.archive import FORMAT, Contents, WeightsRecord, write_archive
from ganlab.runs.data import file_sha256
from ganlab.runs.folder import (
    RunFolder,
    open_run_folder,
    paths_in,
    read_data,
    read_tables,
    recorded_paths,
)
from ganlab.runs.reading import Log, read_json
from ganlab.runs.record import lines_of, of_recipe, read_record
from ganlab.tensor_files import (
    OddFile,
    about_in,
    check_weights,
    iteration_in,
    read_safetensors,
    seal,
    tensors_sha256,
)

_WEIGHTS = ("last", "best")


class Packed(NamedTuple):
    """What was written."""

    file: Path
    names: list[str]
    """Of the files in it."""
    sha256: str


def pack_run(path: Path | str, output: Path | None, weights: bool) -> Packed:
    """Pack a run, finished or not, into one file.

    :param output: the file to write; default: the name of the run folder and `.zip`, in the
        current folder.
    :param weights: whether to put in the generator's weights too.
    :raises RecipeError: when `path` is not a run folder, the run has logged nothing, or the output
        exists or has no folder.
    """
    folder = open_run_folder(path)
    name = folder.path.resolve().name
    target = output or Path(f"{name}.zip")
    if target.exists():
        raise RecipeError(f"{target} exists; give another name with -o, or remove it")
    if not target.parent.is_dir():
        raise RecipeError(
            f"{target}: there is no folder {target.parent}; make it, or choose another -o"
        )
    placeless = placeless_recipe(folder)
    files = {"recipe.toml": placeless.encode(), **_files(folder, placeless)}
    contents = Contents(format=FORMAT, name=name, files={}, weights=_records(folder))
    if weights:
        files |= _weights(folder, placeless)
    try:
        write_archive(target, contents, files)
    except OSError as error:
        raise RecipeError(
            f"{target}: cannot be written: {error.strerror}; choose another -o"
        ) from error
    return Packed(target, ["pack.json", *sorted(files)], file_sha256(target))


def paths_of(recipe: Recipe) -> dict[tuple[str, str], Path]:
    """The options of plugins that are paths: (name of the plugin, option) -> path."""
    return {
        (name, option): path
        for name, plugin in recipe.plugins.items()
        for option, path in paths_in(plugin)
    }


def weights_record(file: Path) -> WeightsRecord | None:
    """The iteration and digest of a generator's weights; None when there are none.

    :raises GanlabError: when the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        tensors, about = read_safetensors(file, sealed=seals_weights(file.parent))
        check_weights(tensors)
        return WeightsRecord(iteration=iteration_in(about), sha256=tensors_sha256(tensors))
    except OddFile as error:
        raise GanlabError(f"{file}: damaged: {error}") from None


def placeless_recipe(folder: RunFolder) -> str:
    """The run's recipe with the last name of each path only: no folder of this machine."""
    document: Any = tomlkit.parse(folder.recipe.read_text(encoding="utf-8"))
    recorded = recorded_paths(folder)
    names: dict[str, str] = {}
    for plugin, options in read_tables(folder)["plugins"].items():
        for option, value in options.items():
            if not isinstance(value, str):
                continue
            if option in recorded[plugin] if plugin in recorded else _is_absolute(value):
                names.setdefault(value, _new_name(Path(value).name or "data", {*names.values()}))
                document["plugins"][plugin][option] = names[value]
    return tomlkit.dumps(document)


def plugin_files(folder: RunFolder) -> dict[str, bytes]:
    """The code of the plugin files that a run's recipe names, by the names of the files."""
    manifest = read_json(folder.manifest)
    return {
        f"{name}.py": _code(folder.path / f"{name}.py", name, manifest)
        for name, options in read_tables(folder)["plugins"].items()
        if str(options.get("use", name)).endswith(".py")
    }


def _files(folder: RunFolder, recipe: str) -> dict[str, bytes]:
    manifest = read_json(folder.manifest)
    if not manifest:
        raise GanlabError(f"{folder.manifest}: damaged or absent; this run cannot be verified")
    stats = _sound_lines(folder.stats)
    if not stats:
        raise RecipeError(
            f"{folder.path}: the run has logged nothing yet, so nothing could be verified; "
            f"continue it with `ganlab resume {folder.path}`"
        )
    journal = _changes(folder, recipe)
    # only those of a newer ganlab say their recipe
    told = of_recipe(recipe, journal) if "recipe" in manifest else {}
    files = {
        "manifest.json": _json(manifest | told),
        "status.json": _json(_without_error(folder.read_status())),
        "stats.jsonl": stats,
    }
    for file in (folder.scores, folder.timing, folder.verdicts):
        files |= {file.name: _sound_lines(file)} if file.is_file() else {}
    if journal:
        files[folder.changes.name] = journal.encode()
    if read_data(folder):
        files["data.json"] = folder.data.read_bytes()
    return files | plugin_files(folder)


def _changes(folder: RunFolder, recipe: str) -> str:
    """The journal of the changes, which ends with the packed recipe, and names no folder."""
    record = read_record(folder.path)
    packed = []
    for change in record.changes:
        update = {"recipe": sha256(recipe)} if change.recipe == record.sha256 else {}
        _, _, option = change.key.partition("plugins.")
        name, _, option = option.partition(".")
        if option in recorded_paths(folder).get(name, ()):
            update |= {side: Path(str(getattr(change, side))).name for side in ("old", "new")}
        packed.append(change.model_copy(update=update))
    if any(change.alters for change in packed):
        print(
            f"{folder.path} was changed in the run, so `ganlab verify` cannot make it again",
            file=sys.stderr,
        )
    return lines_of(packed)


def _is_absolute(text: str) -> bool:
    """Whether this is a whole path of some system; an older run does not record which are."""
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _new_name(name: str, taken: set[str]) -> str:
    number = 2
    new = name
    while new in taken:
        new, number = f"{name}-{number}", number + 1
    return new


def _without_error(status: dict[str, Any]) -> dict[str, Any]:
    """A status without the text of an unforeseen error, which may name folders of this machine."""
    return status | ({"message": ""} if status.get("state") == "failed" else {})


def _code(file: Path, name: str, manifest: dict[str, Any]) -> bytes:
    code = file.read_bytes()
    recorded = manifest.get("plugins", {}).get(name, {}).get("sha256")
    if sha256(code) != recorded:
        print(f"plugin {name}: its code has changed since the run started", file=sys.stderr)
    return code


def _sound_lines(file: Path) -> bytes:
    """The lines of a log. Damaged ones are told and left out, and so is a half written last one."""
    log = Log(file)
    content = b"".join(line for _, line in log.pairs())
    if fault := log.fault:
        print(f"{printable(str(file.parent))}: {fault} of the file", file=sys.stderr)
    return content


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _records(folder: RunFolder) -> dict[str, WeightsRecord]:
    files = [folder.weights(which) for which in _WEIGHTS]
    records = {file.name: weights_record(file) for file in files}
    return {name: record for name, record in records.items() if record}


def _weights(folder: RunFolder, recipe: str) -> dict[str, bytes]:
    """The weights of a run; the recipe in their metadata is the packed one.

    :raises RecipeError: when the run has written none.
    """
    found: dict[str, bytes] = {}
    for file in map(folder.weights, _WEIGHTS):
        if weights_record(file):
            tensors, metadata = read_safetensors(file)
            about = about_in(metadata) | {"recipe": recipe}
            about.pop("sha256", None)  # of what it was before
            found[file.name] = save(tensors, seal(tensors, about))
    if not found:
        raise RecipeError(f"{folder.path}: the run has written no weights; leave out --weights")
    return found
