"""`ganlab check`: find everything that can be wrong before any training, with tiny real steps."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ganlab.assembly import assemble
from ganlab.commands.audit import Audit, table
from ganlab.engine import iterate
from ganlab.errors import RecipeError
from ganlab.evaluation.scores import eval_mode, evaluate_images
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.requirements import warnings_of
from ganlab.run import Run
from ganlab.speed.device import pick_device

TINY_BATCH = 2


def check_recipe(file: Path, overrides: Iterable[str], device: str) -> Iterator[str]:
    """Check a recipe; yields lines that say what was checked.

    The first and the last iteration of the recipe are run on a batch of two. Both are needed
    because pretraining comes before adversarial training. The smallest held-out image is evaluated.

    Each loss of both iterations is audited: its gradient must reach its own network and no other.

    :raises RecipeError: at the first fault.
    """
    recipe = load_recipe(file, overrides)
    yield f"{file}: {len(recipe.plugins)} plugins, every key and value is known"
    for warning in warnings_of(recipe):
        yield f"warning: {warning}"
    small = Recipe.model_validate(
        recipe.model_dump() | {"batch_size": min(recipe.batch_size, TINY_BATCH), "accumulate": 1}
    )
    small._plugins, small._sources, small._file = recipe.plugins, recipe.sources, recipe.file
    run = assemble(small, pick_device(device))
    for note in run.notes:
        yield f"note: {note}"
    yield f"one batch: condition {_shape(run.condition_shape)}, real {_shape(run.real_shape)}"
    for iteration in sorted({0, recipe.iterations - 1}):
        run.iteration = iteration
        yield from _try(run)
    if run.held_out:
        name = min(run.held_out, key=lambda name: run.held_out[name].numel())
        with eval_mode(run.hook.evaluation_generator(generator=run.G)) as generator:
            (evaluated,) = evaluate_images([(name, run.held_out[name])], generator, run)
        yield f"{len(run.held_out)} held-out images; {name}: {_shown(evaluated.scores)}"
    yield "ok"


def _try(run: Run) -> Iterator[str]:
    audit = Audit(run)
    yield f"iteration {run.iteration} run once; the norm of each loss's gradient:"
    try:
        losses = iterate(run, audit)
    except RecipeError:
        yield from table(audit.found)
        raise
    yield from table(audit.found)
    yield from (f"note: {note}" for note in audit.unseen(losses))
    bad = [name for name, value in losses.items() if not torch.isfinite(value)]
    if bad:
        raise RecipeError(f"{run.recipe.file}: not finite at the first step: {', '.join(bad)}")
    if not losses:
        raise RecipeError(f"{run.recipe.file}: iteration {run.iteration} trains no network")


def _shown(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
