"""Changes the files in an archive of a run, as a forger would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ganlab.runs.archive import Contents, unpack, write_archive


def forged(archive: Path, target: Path, name: str, change: Callable[[str], str]) -> Path:
    """A copy of an archive with one file changed, and with digests that fit."""
    folder = target.with_suffix("")
    folder.mkdir()
    contents = unpack(archive, folder)
    files: dict[str, bytes | Path] = {file: folder / file for file in contents.files}
    files[name] = change((folder / name).read_text()).encode()
    write_archive(target, Contents(**contents.model_dump()), files)
    return target


def changed_json(key: str, value: Any) -> Callable[[str], str]:
    """A change of one entry of a JSON file."""

    def change(text: str) -> str:
        return json.dumps(json.loads(text) | {key: value})

    return change
