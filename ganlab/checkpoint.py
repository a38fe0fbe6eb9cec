"""Checkpoints: the states of a run as files.

A checkpoint is `checkpoints/<iteration>.pt` and, beside it, its digest as a line of sha256sum. The
digest is written last, and a file without a matching digest is not used. So a file that is only
half written is never read, and neither are flipped bits, which torch.load does not notice.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from torch import Tensor

from ganlab.disk import telling_disk
from ganlab.errors import GanlabError
from ganlab.files import sha256, sha256_of_file, whole, write_text
from ganlab.run import Run
from ganlab.runs.reading import read_json
from ganlab.state import check_form, check_networks, restore
from ganlab.tensor_files import (
    OddFile,
    check_parts,
    read_pickle,
)


class Keep(NamedTuple):
    """Which checkpoints are kept; the recipe's `keep` and `keep_every`."""

    newest: int = 2
    """How many of the newest. At least 2 in a run, since the newest may turn out to be damaged."""
    every: int = 0
    """Those at multiples of this number of iterations are kept for good; 0 means none are."""

    def superfluous(self, iterations: Sequence[int]) -> list[int]:
        """Those of these iterations, the oldest first, whose checkpoints are not kept."""
        old = iterations[: max(0, len(iterations) - self.newest)]
        return [number for number in old if not self.every or number % self.every]


KEEP = Keep()
_NUMBER = re.compile(r"[0-9]{1,15}")
_MOST_DIGEST = 200  # bytes that are read of a file of a digest


def write_checkpoint(
    state: dict[str, Any],
    folder: Path,
    keep: Keep = KEEP,
    others: Sequence[Callable[[], object]] = (),
) -> Path:
    """Write what `state_of` returned, and delete the checkpoints that are no longer kept.

    The state is emptied as soon as it is in the file, because training needs the memory.

    :param others: called then, before the checkpoint counts: they write the files that a run
        continued from it does not write again.
    :raises GanlabError: when a plugin's state holds other things than tensors, numbers, text,
        lists and dicts.
    :raises NotWritten: at an error of the disk; the checkpoints before it are as they were.
    """
    path = checkpoint_file(folder, state["iteration"])
    with telling_disk(path, _num_bytes(state)), whole(path) as file:
        try:
            _save(state, file)
        finally:
            state.clear()
        file.flush()
        temporary = Path(file.name)
        if not any(folder.glob("*.sha256")):
            _check_loadable(temporary)
        for write in others:
            write()
        digest = sha256_of_file(temporary)
    owner = _id_of(folder)
    named = f"# run {owner} {_seal(owner, digest)}\n" if owner else ""
    with telling_disk(path.with_suffix(".sha256"), len(digest)):
        write_text(path.with_suffix(".sha256"), f"{digest}  {path.name}\n{named}")
    for number in keep.superfluous(checkpoints_of(folder)):
        delete_checkpoint(folder, number)
    return path


def _num_bytes(value: Any) -> int:
    """Bytes of the tensors in nested dicts and lists; nearly all that a checkpoint takes."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    """Write a state into an open file.

    :raises OSError: at an error of the disk. Given a path, torch would raise another error.
    """
    try:
        with _no_crc32():
            torch.save(state, file)
    except RuntimeError as error:  # torch also complains about the file that it could not write
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def checkpoints_of(folder: Path) -> list[int]:
    """The iterations of the complete checkpoints, sound or damaged, the oldest first."""
    return sorted(int(m.stem) for m in folder.glob("*.sha256") if _NUMBER.fullmatch(m.stem))


def checkpoint_file(folder: Path, iteration: int) -> Path:
    """The file of a checkpoint; its digest is beside it."""
    return folder / f"{iteration:07d}.pt"


def is_sound(path: Path) -> bool:
    """Whether a checkpoint's file is as it was written, by its digest."""
    try:
        digest, owner, seal = _told(path)
        return (not owner or seal == _seal(owner, digest)) and digest == sha256_of_file(path)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def owner_of(folder: Path) -> str:
    """The id of the run to which the newest sound checkpoint belongs; empty if none says it."""
    newest = last_checkpoint(folder)
    return "" if newest is None else _told(checkpoint_file(folder, newest))[1]


def _told(path: Path) -> tuple[str, str, str]:
    """Digest, id of the run and seal, as they stand beside a checkpoint; empty if they do not.

    The line of the run begins with a `#`, so that sha256sum passes over it.
    """
    with path.with_suffix(".sha256").open("rb") as file:
        first, _, rest = file.read(_MOST_DIGEST).decode("ascii").partition("\n")
    words = rest.split()
    owner, seal = words[2:4] if len(words) == 4 and words[:2] == ["#", "run"] else ("", "")
    # a line that is damaged is no line without a name
    return (first.split() or [""])[0] if owner or not words else "", owner, seal


def _seal(owner: str, digest: str) -> str:
    """It tells a damaged id from that of another run."""
    return sha256(f"{owner} {digest}")[:16]


def _id_of(folder: Path) -> str:
    """The id of the run whose checkpoints are in this folder; empty in a run without one."""
    found = read_json(folder.parent / "manifest.json").get("id")
    return found if isinstance(found, str) else ""


def _check_owner(path: Path) -> None:
    """Refuse a checkpoint of another run.

    A copy of a run folder has the id of the run, since it holds the same run.
    """
    mine, owner = _id_of(path.parent), _told(path)[1]
    if mine and not owner:
        print(f"{path}: it does not say of which run it is; it is taken for one of this run",
              file=sys.stderr)  # fmt: skip
    elif mine != owner and owner and mine:
        raise GanlabError(
            f"{path}: this is a checkpoint of another run (its id begins with {owner[:8]}, that of "
            f"this run with {mine[:8]}), so the run could not go on from it; move it away"
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a sound checkpoint's state, with its tensors on the CPU; it runs no code of the file.

    :raises GanlabError: when it holds other things than a checkpoint does, such as code.
    """
    with _of_ganlab(path):
        state = read_pickle(path)
        check_parts(state)
        return cast(dict[str, Any], state)


def read_state(path: Path) -> dict[str, Any]:
    """Read a sound checkpoint's state, and check that it is such as `state_of` returns.

    :raises GanlabError: when it has another form, or weights that are not finite.
    """
    state = read_checkpoint(path)
    with _of_ganlab(path):
        check_form(state, int(path.stem))
        check_networks(state)
    return state


@contextmanager
def _of_ganlab(path: Path) -> Iterator[None]:
    try:
        yield
    except OddFile as error:
        raise GanlabError(
            f"{path}: cannot be read: it is not a checkpoint that ganlab wrote ({error})"
        ) from None


def delete_checkpoint(folder: Path, iteration: int) -> None:
    """Delete a checkpoint, its digest first: a file without a digest is not used."""
    path = checkpoint_file(folder, iteration)
    path.with_suffix(".sha256").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def load_checkpoint(run: Run, folder: Path, changed: bool = False) -> int:
    """Load the newest undamaged checkpoint into a newly assembled run; returns its iteration.

    A damaged checkpoint is reported on stderr, and the one before it is used. A run that was
    stopped before its first checkpoint begins again at iteration 0, which gives the same run.

    :param changed: whether the run's recipe has been changed since its start.
    :raises GanlabError: when all are damaged, or when they are of other networks or plugins.
    """
    kept = checkpoints_of(folder)
    _check_digests(folder, kept)
    if not kept:
        return 0
    for number in reversed(kept):
        path = checkpoint_file(folder, number)
        if is_sound(path):
            _load(run, path, changed)
            return number
        print(f"{path}: damaged (its sha256 differs); trying the one before it", file=sys.stderr)
    raise GanlabError(f"{folder}: no undamaged checkpoint to resume from; start a new run")


def _load(run: Run, path: Path, changed: bool = False) -> None:
    _check_owner(path)
    restore(run, read_state(path), path, changed)


def _check_digests(folder: Path, kept: list[int]) -> None:
    """Say which checkpoints have no digest, and refuse to begin again where there had been some.

    A run that is killed while it writes its first checkpoint leaves one file without a digest. Two
    files, or the one of a run that ended in order, had digests.
    """
    alone = sorted(f for f in folder.glob("*.pt") if f.stem.isdigit() and int(f.stem) not in kept)
    status = read_json(folder.parent / "status.json")
    ended = status.get("state") in ("done", "stopped") and status.get("iteration")
    if alone and not kept and (len(alone) > 1 or ended):
        raise GanlabError(
            f"{folder}: the digests (.sha256) of {', '.join(one.name for one in alone)} are gone, "
            "so nothing tells whether they are as they were written. Put them back; or move the "
            "checkpoints away, and the run begins again at iteration 0"
        )
    for file in alone:
        print(f"{file}: it has no digest (.sha256), so it is not used", file=sys.stderr)


def last_checkpoint(folder: Path) -> int | None:
    """The iteration of the newest sound checkpoint; None when there is none."""
    return _first_sound(folder, reversed(checkpoints_of(folder)))


def _first_sound(folder: Path, iterations: Iterable[int]) -> int | None:
    return next((n for n in iterations if is_sound(checkpoint_file(folder, n))), None)


def roll_back(run: Run, folder: Path, since: int) -> int:
    """Restore the newest sound checkpoint from before an iteration, or else the oldest sound one.

    Later checkpoints are deleted, also those kept for good: a resumed run would otherwise continue
    from them. Returns the iteration of the restored one.

    :raises GanlabError: when there is no sound checkpoint, or when it is of another run, other
        networks or other plugins; nothing is deleted then.
    """
    kept = checkpoints_of(folder)
    before, after = [n for n in kept if n < since], [n for n in kept if n >= since]
    target = _first_sound(folder, [*reversed(before), *after])
    if target is None:
        raise GanlabError(f"{folder}: no undamaged checkpoint to go back to")
    _load(run, checkpoint_file(folder, target))
    for number in kept:
        if number > target:
            delete_checkpoint(folder, number)
    return target


@contextmanager
def _no_crc32() -> Iterator[None]:
    """Context in which torch.save computes no CRC-32, half of its time: the digest is stronger."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _check_loadable(path: Path) -> None:
    try:
        # each tensor is read, checked and dropped: together they would fill the memory
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        raise GanlabError(
            "the checkpoint could not be read back: the state of a plugin may hold tensors, "
            f"numbers, text, lists and dicts only ({error})"
        ) from None
