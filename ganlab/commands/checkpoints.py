"""`ganlab checkpoints`: list the checkpoints of a run, delete old ones, look into one."""

from collections.abc import Iterator
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from ganlab.checkpoint import (
    Keep,
    checkpoint_file,
    checkpoints_of,
    delete_checkpoint,
    is_sound,
    read_state,
)
from ganlab.errors import GanlabError, RecipeError
from ganlab.recipe.model import load_part
from ganlab.runs.folder import RunFolder, open_run_folder
from ganlab.terminal import Terminal


def describe_checkpoints(run: Path | str) -> list[dict[str, Any]]:
    """Each checkpoint of a run, the oldest first.

    :returns: "iteration", "file", "bytes", "written" (local time), "sound".
    :raises RecipeError: when `run` is not a run folder.
    """
    folder = open_run_folder(run, edited=True)  # they are files, whatever the recipe says
    return [_described(folder, number) for number in checkpoints_of(folder.checkpoints)]


def prune_checkpoints(
    run: Path | str, newest: int | None, every: int | None
) -> list[dict[str, Any]]:
    """Delete the checkpoints that are not kept, and the damaged ones; returns the deleted ones.

    :param newest, every: in the place of the recipe's `keep` and `keep_every`.
    :raises GanlabError: when another process uses the run, or no checkpoint is sound; nothing is
        deleted then.
    """
    folder = open_run_folder(run)
    if newest is None or every is None:
        recipe, _ = load_part(folder.recipe, needed=())
        newest = recipe.keep if newest is None else newest
        every = recipe.keep_every if every is None else every
    with folder.lock():
        folder.remove_stale()
        found = describe_checkpoints(folder.path)
        sound = [one["iteration"] for one in found if one["sound"]]
        if found and not sound:
            raise GanlabError(
                f"{folder.checkpoints}: every checkpoint is damaged; nothing is deleted"
            )
        old = Keep(newest, every).superfluous(sound)
        gone = [one for one in found if not one["sound"] or one["iteration"] in old]
        for one in gone:
            delete_checkpoint(folder.checkpoints, one["iteration"])
    return gone


def inspect_checkpoint(run: Path | str, iteration: int) -> dict[str, Any]:
    """What a checkpoint holds. No code of the file is run.

    :returns: what `describe_checkpoints` says of it, and "progress"; "networks": {name: {key:
        leaf}}; "optimizers": {name: {"options": of each group, "state": {key: number of values}}};
        "plugins": {name: {key: leaf}}. A leaf is {"shape", "dtype"} of a tensor, or a value.
    :raises RecipeError: when there is no such checkpoint.
    :raises GanlabError: when it is damaged.
    """
    folder = open_run_folder(run, edited=True)
    if iteration not in (known := checkpoints_of(folder.checkpoints)):
        there = ", ".join(map(str, known)) or "none"
        raise RecipeError(f"{folder.path}: no checkpoint of iteration {iteration}; it has {there}")
    found = _described(folder, iteration)
    if not found["sound"]:
        raise GanlabError(f"{found['file']}: damaged (its sha256 differs); choose another one")
    state = read_state(Path(found["file"]))
    networks, plugins = state.pop("networks"), state.pop("plugins")
    state.pop("options", None)  # as the recipe made them; "optimizers" has those of now
    optimizers = [name for name in networks if name.endswith("_optimizer")]
    return found | {
        "progress": state,
        "networks": {n: dict(_leaves(v)) for n, v in networks.items() if n not in optimizers},
        "optimizers": {name: _optimizer(networks[name]) for name in optimizers},
        "plugins": {name: dict(_leaves(value)) for name, value in plugins.items()},
    }


def _described(folder: RunFolder, iteration: int) -> dict[str, Any]:
    path = checkpoint_file(folder.checkpoints, iteration)
    there = path.stat() if path.is_file() else None
    written = there and datetime.fromtimestamp(there.st_mtime).isoformat(" ", "seconds")
    return {
        "iteration": iteration,
        "file": str(path),
        "bytes": there.st_size if there else 0,
        "written": written or "",
        "sound": is_sound(path),
    }


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The parts of nested dicts and lists with their paths; a tensor as its shape and dtype."""
    if isinstance(value, dict | list | tuple) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in parts:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        yield name, {"shape": list(value.shape), "dtype": dtype}
    else:
        yield name, value


def _optimizer(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's options by group, and how many values it holds under each key."""
    values: dict[str, int] = {}
    for one in state["state"].values():
        for key, value in one.items():
            count = value.numel() if isinstance(value, Tensor) else 1
            values[key] = values.get(key, 0) + count
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    return {"options": groups, "state": values}


def show_list(found: list[dict[str, Any]], run: Path | str) -> None:
    """Print what `describe_checkpoints` returns."""
    console = Terminal(soft_wrap=True)
    if not found:
        console.print(f"{run}: no checkpoint")
        return
    table = Table("iteration", "size", "written", "state", box=None, pad_edge=False)
    for one in found:
        state = "sound" if one["sound"] else "damaged"
        table.add_row(str(one["iteration"]), _size(one["bytes"]), one["written"], state)
    console.print(table)


def show_one(found: dict[str, Any]) -> None:
    """Print what `inspect_checkpoint` returns."""
    print(f"{found['file']}: {_size(found['bytes'])}, written {found['written']}, sound")
    for name, value in found["progress"].items():
        print(f"{name}: {value}")
    for name, tensors in found["networks"].items():
        count = sum(prod(leaf["shape"]) for leaf in tensors.values() if _is_tensor(leaf))
        print(f"\n{name}: {len(tensors)} tensors, {count:,} numbers")
        _show_leaves(tensors)
    for name, optimizer in found["optimizers"].items():
        print(f"\n{name}:")
        for group in optimizer["options"]:
            print("  " + ", ".join(f"{key} {value}" for key, value in group.items()))
        for key, count in optimizer["state"].items():
            print(f"  {key}: {count:,} numbers")
    for name, parts in found["plugins"].items():
        print(f"\nplugin {name}:")
        _show_leaves(parts)


def _show_leaves(leaves: dict[str, Any]) -> None:
    for name, value in leaves.items():
        if _is_tensor(value):
            sides = "x".join(map(str, value["shape"])) or "one number"
            value = f"{sides} {value['dtype']}"
        print(f"  {name}: {value}")


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, dict) and "shape" in leaf  # other dicts are taken apart


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
