"""Consent to run code that lies in a run folder.

A run folder has the code of its plugin files, and it may be somebody else's. That code runs only
if this user has run the same code before, or consents with `--trust-code`. Code beside a recipe
that the user names is the user's own: it runs, and its sha256 is remembered.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import platformdirs

from ganlab.errors import RecipeError
from ganlab.files import sha256, write_text

_RECORDS = ("manifest.json", "status.json", "stats.jsonl", "timing.jsonl")
_MOST = 5_000  # digests that are remembered, the newest
_MOST_BYTES = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")

_OWN = (
    ". A folder with a recipe.toml counts as a run folder: if the recipe is your own, give it "
    "another name, and its plugin files run without this question"
)

_consented: set[str] = set()
"""What this process has run, or may run."""
_trusting = False


class Code(NamedTuple):
    """A plugin file as it was read: these bytes are hashed, shown and run, and no others."""

    file: Path
    content: bytes
    is_of_a_run: bool
    """Whether it lies in a run folder."""

    @property
    def sha256(self) -> str:
        return sha256(self.content)

    @property
    def lines(self) -> int:
        return len(self.content.splitlines())


@contextmanager
def trusting_code() -> Iterator[None]:
    """Context in which code of run folders may run: the user gave `--trust-code`."""
    global _trusting
    before, _trusting = _trusting, True
    try:
        yield
    finally:
        _trusting = before


def is_trusting() -> bool:
    """Whether the user gave `--trust-code`."""
    return _trusting


def holds_a_run(folder: Path) -> bool:
    """Whether a folder has records of a run."""
    return any(os.path.lexists(folder / name) for name in _RECORDS)


def is_in_a_run(file: Path, root: Path) -> bool:
    """Whether a file lies in a run folder; looked for up to the folder `root`.

    A folder with a recipe.toml counts as one, since commands open it as one. So nothing is won by
    removing the records.
    """
    return any(
        holds_a_run(folder) or os.path.lexists(folder / "recipe.toml")
        for folder in file.parents
        if folder.is_relative_to(root)
    )


def unknown_code(codes: Collection[Code]) -> list[Code]:
    """The code of run folders that this user has neither run before nor consented to."""
    strange = [code for code in codes if code.is_of_a_run and code.sha256 not in _consented]
    if not strange or _trusting:
        return []
    known = set(_remembered())
    return [code for code in strange if code.sha256 not in known]


def require_consent(codes: Collection[Code]) -> None:
    """Refuse code of a run folder without consent; remember what may run.

    :raises RecipeError: naming the files, and what to type. Nothing has run then.
    """
    if strange := unknown_code(codes):
        listed = "\n".join(f"  {code.file} ({_counted(code.lines)})" for code in strange)
        own = "" if any(map(_has_records, strange)) else _OWN
        raise RecipeError(
            "code in a run folder, which you have not run before; nothing was run. A plugin file "
            f"may do all that you may do:\n{listed}\n"
            f"Read it. To run it, type the same command again with --trust-code{own}"
        )
    _remember([code.sha256 for code in codes])


def _has_records(code: Code) -> bool:
    return any(holds_a_run(folder) for folder in code.file.parents)


def _counted(lines: int) -> str:
    return f"{lines} line{'s' * (lines != 1)}"


def state_folder() -> Path:
    """Where ganlab keeps what it remembers of its user: GANLAB_STATE, or the user's data folder."""
    chosen = os.environ.get("GANLAB_STATE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("ganlab"))


def _file() -> Path:
    return state_folder() / "code-run-before.txt"


def _remembered() -> list[str]:
    """The digests of what was run before, the oldest first; none where the file cannot be read."""
    with suppress(OSError):
        if _file().is_file():
            with _file().open("rb") as file:
                text = file.read(_MOST_BYTES).decode("ascii", errors="replace")
            return [line for line in text.splitlines() if _DIGEST.fullmatch(line)]
    return []


def _remember(digests: Collection[str]) -> None:
    """Add digests to the file; where it cannot be written, `--trust-code` is asked for later."""
    new = [digest for digest in dict.fromkeys(digests) if digest not in _consented]
    _consented.update(new)
    known = _remembered() if new else []
    if new := [digest for digest in new if digest not in known]:
        with suppress(OSError):
            _file().parent.mkdir(parents=True, exist_ok=True)
            write_text(_file(), "".join(f"{digest}\n" for digest in [*known, *new][-_MOST:]))
