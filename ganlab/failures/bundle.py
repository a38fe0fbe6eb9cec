"""A bundle: all that is needed to take an iteration that was not finite again, anywhere.

It is a folder: `recipe.toml` with the plugin files beside it, `state.safetensors` (networks,
optimizers, plugin state and batches, as they were before the iteration), and `bundle.json`, which
is written last. It holds no training data but the batches of that one iteration.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ganlab.errors import RecipeError
from ganlab.files import sha256, whole, write_json
from ganlab.plugin import Batch
from ganlab.state import check_form

_TENSORS, _ABOUT, _RECIPE = "state.safetensors", "bundle.json", "recipe.toml"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An iteration that was not finite."""

    iteration: int
    """Counted from 1."""
    step: str
    """Such as "step 1 of D"; empty when it did not arise in a step."""
    what: str
    """What was not finite, in words."""
    state: dict[str, Any]
    """As `state_of` gives it, before the iteration."""
    batches: list[Batch]
    """The batch of each step of the iteration."""
    samples: list[str]
    """What the data plugins say about the batch of the step; empty when they do not say it."""
    device: str = "cpu"


def write_bundle(bundle: Bundle, recipe: Path, folder: Path) -> int:
    """Write a bundle; returns its size in bytes.

    :param recipe: the resolved recipe; the plugin files beside it are copied too.
    """
    folder.mkdir(exist_ok=True)
    (folder / _ABOUT).unlink(missing_ok=True)
    tensors: dict[str, Tensor] = {}
    pairs = [[batch.real.cpu(), batch.condition.cpu()] for batch in bundle.batches]
    about = {
        "iteration": bundle.iteration,
        "step": bundle.step,
        "what": bundle.what,
        "device": bundle.device,
        "samples": bundle.samples,
        "state": _taken_apart(bundle.state, tensors),
        "batches": _taken_apart(pairs, tensors),
    }
    content = save(tensors)
    about["sha256"] = sha256(content)
    with whole(folder / _TENSORS) as file:
        file.write(content)
    for source in (recipe, *sorted(recipe.parent.glob("*.py"))):
        shutil.copyfile(source, folder / source.name)
    write_json(folder / _ABOUT, about)
    return sum(file.stat().st_size for file in folder.iterdir())


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle. No code of it is run.

    :raises RecipeError: when it is no bundle, or damaged.
    """
    missing = [n for n in (_ABOUT, _TENSORS, _RECIPE) if not (folder / n).is_file()]
    if missing:
        raise RecipeError(f"{folder}: not a bundle of a run: it has no {missing[0]}")
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        content = (folder / _TENSORS).read_bytes()
        if sha256(content) != about["sha256"]:
            raise ValueError(f"the sha256 of {_TENSORS} differs")
        tensors = load(content)
        pairs = _put_together(about["batches"], tensors)
        state = _put_together(about["state"], tensors)
        check_form(state, int(about["iteration"]) - 1)
        return Bundle(
            int(about["iteration"]),
            str(about["step"]),
            str(about["what"]),
            state,
            [Batch(real, condition) for real, condition in pairs],
            list(map(str, about["samples"])),
            str(about["device"]),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError) as error:
        raise RecipeError(f"{folder}: damaged bundle: {type(error).__name__}: {error}") from None


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON, with its tensors put into `tensors` under names."""
    if isinstance(value, Tensor):
        known = next((name for name, tensor in tensors.items() if tensor is value), None)
        name = known or f"t{len(tensors)}"
        tensors[name] = value if known else value.contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _taken_apart(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_taken_apart(inner, tensors) for inner in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _put_together(each, tensors) for key, each in inner}
    if kind == "float":
        return float(inner)
    made: Sequence[Any] = [_put_together(each, tensors) for each in inner]
    return tuple(made) if kind == "tuple" else made
