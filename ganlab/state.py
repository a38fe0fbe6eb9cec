"""The state of a run, with which it continues bit for bit: copied, checked, put into a run."""

import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ganlab.errors import GanlabError
from ganlab.run import Progress, Run
from ganlab.tensor_files import OddFile, check_weights


class _About(BaseModel):
    """What a state says beside progress, networks and plugins."""

    threads: int
    device: str = ""  # a state of an older version says neither this nor the options
    options: dict[str, list[dict[str, Any]]] = {}


_PROGRESS = TypeAdapter(Progress)
_PROGRESS_FIELDS = [field.name for field in fields(Progress)]


def state_of(run: Run) -> dict[str, Any]:
    """All that a checkpoint holds, copied to the host: training may go on during writing."""
    state: dict[str, Any] = copied(live_state(run))
    return state


def copied(value: Any, known: dict[int, Tensor] | None = None) -> Any:
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
        return {key: copied(inner, known) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(inner, known) for inner in value)
    return value


def live_state(run: Run) -> dict[str, Any]:
    """All that a checkpoint holds, not copied: training changes it."""
    networks: dict[str, Any] = {"G": run.G, "G_optimizer": run.G_optimizer}
    if run.D is not None:
        networks |= {"D": run.D, "D_optimizer": run.D_optimizer}
    return {
        **{name: getattr(run.progress, name) for name in _PROGRESS_FIELDS},
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
    mine = live_state(run)
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
    run.progress = Progress(**_progress_in(state))


def _progress_in(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in _PROGRESS_FIELDS if name in state}


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


def check_form(state: Any, iteration: int) -> None:
    """Check that a value has the form of what `state_of` returns.

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
    try:
        _PROGRESS.validate_python(_progress_in(state))
        _About.model_validate(state)
    except ValidationError as error:
        raise OddFile(f"its {error.errors()[0]['loc'][0]} is wrong") from None


def check_networks(state: dict[str, Any]) -> None:
    """Check the weights of the networks in a state that has the right form.

    :raises OddFile: naming the first tensor that is odd, or holds a number that is not finite.
    """
    for name, held in state["networks"].items():
        if not name.endswith("_optimizer"):
            check_weights(held)
