"""Checkpoints: all that a run needs to continue bit for bit.

A checkpoint is `checkpoints/<iteration>.pt` and, beside it, its digest as a line of sha256sum. The
digest is written last, and a file without a matching digest is not used. So a file that is only
half written is never read, and neither are flipped bits, which torch.load does not notice.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ganlab.disk import telling_disk
from ganlab.errors import GanlabError, printable
from ganlab.files import whole, write_text
from ganlab.recipe.model import resolved
from ganlab.run import Progress, Run
from ganlab.runs.reading import read_json
from ganlab.tensor_files import (
    OddFile,
    check_parts,
    check_weights,
    iteration_in,
    read_pickle,
    read_safetensors,
    seal,
    shapes_in,
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
_PROGRESS = TypeAdapter(Progress)
_PROGRESS_FIELDS = {field.name for field in fields(Progress)}


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
        digest = _sha256(temporary)
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
        return (not owner or seal == _seal(owner, digest)) and digest == _sha256(path)
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
    return hashlib.sha256(f"{owner} {digest}".encode()).hexdigest()[:16]


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
    """Read a sound checkpoint's state, which has the form of what `state_of` returns.

    :raises GanlabError: when it has another form, or weights that are not finite.
    """
    state = read_checkpoint(path)
    with _of_ganlab(path):
        _check_form(state, int(path.stem))
    return state


@contextmanager
def _of_ganlab(path: Path) -> Iterator[None]:
    try:
        yield
    except OddFile as error:
        raise GanlabError(
            f"{path}: cannot be read: it is not a checkpoint that ganlab wrote ({error})"
        ) from None


def _check_form(state: Any, iteration: int) -> None:
    """Refuse what has not the form of `state_of`.

    :raises OddFile: saying what is wrong.
    """
    if not isinstance(state, dict) or state.get("iteration") != iteration:
        raise OddFile(f"it is no state of iteration {iteration}")
    for part in ("networks", "plugins"):
        held = state.get(part)
        if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
            raise OddFile(f"its {part} are missing")
    for name, held in state["networks"].items():
        if not isinstance(held, dict):
            raise OddFile(f"its {name} is no state")
        if not name.endswith("_optimizer"):
            check_weights(held)
    try:
        _PROGRESS.validate_python({n: v for n, v in state.items() if n in _PROGRESS_FIELDS})
    except ValidationError as error:
        raise OddFile(f"its {error.errors()[0]['loc'][0]} is wrong") from None
    if not isinstance(state.get("threads"), int):
        raise OddFile("it does not say its threads")


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
            _check_owner(path)
            restore(run, read_state(path), path, changed)
            return run.iteration
        print(f"{path}: damaged (its sha256 differs); trying the one before it", file=sys.stderr)
    raise GanlabError(f"{folder}: no undamaged checkpoint to resume from; start a new run")


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


def lost_best(run: Run, file: Path) -> str:
    """What is wrong with the best generator of a resumed run, for the user; empty if nothing is.

    A power cut can empty a file, and a file system may take it away.
    """
    if run.progress.best is None:
        return ""
    best, _ = run.progress.best
    try:
        tensors, metadata = read_safetensors(file)
        check_weights(tensors)
        found = iteration_in(metadata)  # a later one: the run was killed after it was written
        fault = f"it is of iteration {found:,}" if found < best else ""
    except OddFile as error:
        fault = str(error)
    if not fault:
        return ""
    return (
        f"{file}: the best generator, of iteration {best:,}, is lost ({fault}); the next better "
        "one takes its place"
    )


def last_checkpoint(folder: Path) -> int | None:
    """The iteration of the newest sound checkpoint; None when there is none."""
    kept = reversed(checkpoints_of(folder))
    return next((n for n in kept if is_sound(checkpoint_file(folder, n))), None)


def roll_back(run: Run, folder: Path, since: int) -> int:
    """Restore the newest sound checkpoint from before an iteration, or else the oldest sound one.

    Later checkpoints are deleted, also those kept for good: a resumed run would otherwise continue
    from them. Returns the iteration of the restored one.

    :raises GanlabError: when there is no sound checkpoint; nothing is deleted then.
    """
    kept = checkpoints_of(folder)
    before, after = [n for n in kept if n < since], [n for n in kept if n >= since]
    wanted = (*reversed(before), *after)
    target = next((n for n in wanted if is_sound(checkpoint_file(folder, n))), None)
    if target is None:
        raise GanlabError(f"{folder}: no undamaged checkpoint to go back to")
    for number in kept:
        if number > target:
            delete_checkpoint(folder, number)
    return load_checkpoint(run, folder)


Weights = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and what is known of them."""


def weights_of(run: Run, generator: nn.Module) -> Weights:
    """Copy to the host what `write_weights` writes."""
    tensors = {k: v.contiguous() for k, v in _copied(generator.state_dict()).items()}
    return tensors, {"iteration": run.iteration, "recipe": resolved(run.recipe)}


def write_weights(weights: Weights, path: Path) -> None:
    """Write only a generator's weights and its recipe, for `eval`, `upscale` and other tools."""
    content = save(weights[0], seal(*weights))
    with telling_disk(path, len(content)), whole(path) as file:
        file.write(content)


def weights_iteration(path: Path) -> int | None:
    """The iteration of weights written by `write_weights`; None where the file does not say it."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads(file.metadata()["ganlab"])["iteration"]
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return None
    return found if type(found) is int else None


def load_generator(generator: nn.Module, path: Path) -> None:
    """Read weights written by `write_weights` into a generator.

    :raises GanlabError: when the file is absent, damaged or of another network.
    """
    if not path.is_file():
        raise GanlabError(f"{path}: no such file; the run has not written weights yet")
    try:
        _check_shapes(generator, path)  # first, so that no more is read than the network holds
        tensors, _ = read_safetensors(path, sealed=seals_weights(path.parent))
        check_weights(tensors)
        generator.load_state_dict(tensors)
    except OddFile as error:
        raise GanlabError(f"{path}: damaged: {error}; choose other weights") from None
    except RuntimeError as error:
        raise GanlabError(f"{path}: these are the weights of another network: {error}") from None


def seals_weights(run: Path) -> bool:
    """Whether every file of weights in a run folder has a digest; not in one of an older ganlab."""
    manifest = read_json(run / "manifest.json")
    return bool(manifest.get("id")) and not manifest.get("made_again")


def _check_shapes(network: nn.Module, path: Path) -> None:
    """:raises GanlabError: when names or shapes of the tensors are not those of the network."""
    there, wanted = shapes_in(path), {n: tuple(v.shape) for n, v in network.state_dict().items()}
    for name in [*wanted, *there]:
        one, other = wanted.get(name, "none"), there.get(name, "none")
        if one != other:
            raise GanlabError(
                f"{path}: these are the weights of another network: {printable(name)} has the "
                f"shape {other} in the file, and {one} in the network"
            )


def state_of(run: Run) -> dict[str, Any]:
    """All that a checkpoint holds, copied to the host: training may go on during writing."""
    state: dict[str, Any] = _copied(_state(run))
    return state


def _copied(value: Any, known: dict[int, Tensor] | None = None) -> Any:
    """Copy the tensors in nested dicts, lists and tuples to the host.

    :param known: the copies so far, by the id of the original: a tensor that is there twice is
        copied once.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().to("cpu", copy=True)
        return known[id(value)]
    if isinstance(value, dict):
        return {key: _copied(inner, known) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(inner, known) for inner in value)
    return value


def _state(run: Run) -> dict[str, Any]:
    networks: dict[str, Any] = {"G": run.G, "G_optimizer": run.G_optimizer}
    if run.D is not None:
        networks |= {"D": run.D, "D_optimizer": run.D_optimizer}
    return {
        **_progress(run),
        "threads": torch.get_num_threads(),
        "device": run.device.type,
        "options": run.optimizer_options,
        "networks": {name: _state_of(part) for name, part in networks.items()},
        "plugins": {
            name: plugin.state_dict()
            for name, plugin in run.recipe.plugins.items()
            if hasattr(plugin, "state_dict")  # torch's Stateful protocol
        },
    }


def _progress(run: Run) -> dict[str, Any]:
    return {field.name: getattr(run.progress, field.name) for field in fields(run.progress)}


def _state_of(part: nn.Module | Optimizer) -> dict[str, Any]:
    """A network's or optimizer's state, the same with captured steps as with plain ones."""
    state = part.state_dict()
    if isinstance(part, Optimizer):
        kept = {"capturable": part.defaults["capturable"]} if "capturable" in part.defaults else {}
        groups = [group | kept | {"lr": float(group["lr"])} for group in state["param_groups"]]
        state = state | {"param_groups": groups}
    return state


def restore(run: Run, state: dict[str, Any], source: Path | str, changed: bool = False) -> None:
    """Put what `state_of` returned into a run of the same recipe.

    :param source: where the state is from, for messages.
    :param changed: whether options of optimizers may have changed since, where the state does not
        tell them: an older ganlab wrote it.
    :raises GanlabError: when it is of other networks or plugins.
    """
    mine = _state(run)
    for part in ("networks", "plugins"):
        if mine[part].keys() != state[part].keys():
            raise GanlabError(
                f"{source}: it holds the {part} {sorted(state[part])}, but the recipe has "
                f"{sorted(mine[part])}; resume with the recipe that made it"
            )
    for name, values in state["networks"].items():
        try:
            getattr(run, name).load_state_dict(values)
        except Exception as error:  # of all kinds, since the state may be a stranger's
            raise GanlabError(f"{source}: its {name} is of another network: {error}") from None
    for name, optimizer in run.optimizers.items():
        _lay_out(optimizer)
        made = run.optimizer_options.get(name, [])
        unknown: list[dict[str, Any]] = [{} for _ in made] if changed else []
        _renew_options(optimizer, state.get("options", {}).get(name, unknown), made)
    for name, values in state["plugins"].items():
        plugin: Any = run.recipe.plugins[name]
        plugin.load_state_dict(values)
    if state["threads"] != torch.get_num_threads():
        print(
            f"checkpoint made with {state['threads']} CPU threads, now {torch.get_num_threads()}: "
            "the last digits of float sums will differ",
            file=sys.stderr,
        )
    if (device := state.get("device", run.device.type)) != run.device.type:
        print(
            f"checkpoint made on {device}, now on {run.device.type}: the run goes on, but other "
            "devices round differently, so its numbers will differ",
            file=sys.stderr,
        )
    # a checkpoint of an older version lacks the newer ones
    run.progress = Progress(**{name: state[name] for name in _progress(run) if name in state})


def _renew_options(
    optimizer: Optimizer, before: list[dict[str, Any]], now: list[dict[str, Any]]
) -> None:
    """Set the options that the recipe makes otherwise since a change, such as the learning rate.

    :param before, now: the options with which the optimizer was made, then and now.
    """
    if len(before) == len(now) == len(optimizer.param_groups):
        for group, old, new in zip(optimizer.param_groups, before, now, strict=True):
            group |= {key: value for key, value in new.items() if value != old.get(key)}


def _lay_out(optimizer: Optimizer) -> None:
    """Lay out each moment in memory as its parameter is.

    Fused kernels pair values by their place in memory. In a checkpoint of a network that stores its
    weights channels last, or does not, these places are others.
    """

    def laid_out(parameter: Tensor, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        if value.stride() == parameter.stride():
            return value
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    for parameter, moments in optimizer.state.items():
        optimizer.state[parameter] = tree_map(partial(laid_out, parameter), moments)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
