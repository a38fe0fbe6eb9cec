"""Changes the files in an archive of a run, as a forger would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ganlab.runs.archive import unpack, write_archive


def forged(archive: Path, target: Path, name: str, change: Callable[[str], str]) -> Path:
    """A copy of an archive with one file changed, and with digests that fit."""
    return forged_bytes(archive, target, name, lambda content: change(content.decode()).encode())


def forged_bytes(archive: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """The same for a file that is no text."""
    folder = target.with_suffix("")
    folder.mkdir()
    contents = unpack(archive, folder)
    files = {file: (folder / file).read_bytes() for file in contents.files}
    write_archive(target, contents, files | {name: change(files[name])})
    return target


def changed_json(key: str, value: Any) -> Callable[[str], str]:
    """A change of one entry of a JSON file."""

    def change(text: str) -> str:
        return json.dumps(json.loads(text) | {key: value})

    return change
