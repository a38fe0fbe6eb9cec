"""`ganlab check`: everything that can be wrong before any training, one tiny real step included."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ganlab.device import pick_device
from ganlab.engine import Run, assemble, iterate
from ganlab.errors import Diverged, RecipeError
from ganlab.recipe import Recipe, load_recipe

TINY_BATCH = 2


def check_recipe(file: Path, overrides: Iterable[str], device: str) -> Iterator[str]:
    """Lines that say what was checked; an iteration is run on a batch of two.

    With pretraining the adversarial phase is what is tried, for there most can go wrong.

    :raises RecipeError: with the first fault.
    :raises Diverged: when a loss of the first step is not finite.
    """
    recipe = load_recipe(file, overrides)
    yield f"{file}: {len(recipe.plugins)} plugins, every key and value is known"
    small = Recipe.model_validate(
        recipe.model_dump() | {"batch_size": min(recipe.batch_size, TINY_BATCH)}
    )
    small._plugins, small._sources, small._file = recipe.plugins, recipe.sources, recipe.file
    run = assemble(small, pick_device(device))
    yield f"one batch: condition {_shape(run.condition_shape)}, real {_shape(run.real_shape)}"
    for iteration in (0, recipe.iterations - 1):
        run.iteration = iteration
        yield from _try(run)
    yield "ok"


def _try(run: Run) -> Iterator[str]:
    losses = iterate(run)
    shown = "  ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
    bad = [name for name, value in losses.items() if not torch.isfinite(value)]
    if bad:
        raise Diverged(f"{run.recipe.file}: the first step gives {', '.join(bad)} not finite")
    if not losses:
        raise RecipeError(f"{run.recipe.file}: iteration {run.iteration} trains nothing")
    yield f"one step as of iteration {run.iteration}: {shown}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
