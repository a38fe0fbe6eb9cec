"""`ganlab check`: find everything that can be wrong before any training, with tiny real steps."""

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ganlab.assembly import assemble
from ganlab.checking.audit import Audit, table
from ganlab.checking.chains import dropped
from ganlab.checking.effect import Beginning, plugins_without_effect
from ganlab.checking.invariants import evaluation_watched, iterate_watched
from ganlab.checking.rehearsal import (
    evaluate_once,
    require_storable,
    resume_once,
    write_checkpoint_once,
)
from ganlab.checking.repetition import differ, require_the_same
from ganlab.errors import RecipeError
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.requirements import warnings_of
from ganlab.run import Run
from ganlab.runs.folder import new_run_folder
from ganlab.speed.device import pick_device

TINY_BATCH = 2


def check_recipe(file: Path, overrides: Iterable[str], device: str) -> Iterator[str]:
    """Check a recipe; yields lines that say what was checked.

    The run is assembled with the recipe's own values, in a temporary folder. The first and the last
    iteration are run on a small batch. Both are needed because pretraining comes before adversarial
    training. Then all that a run writes is written once: an evaluation, pictures, weights and a
    checkpoint.

    Each loss of both iterations is audited: its gradient must reach its own network and no other.

    :raises RecipeError: at the first fault.
    """
    recipe = load_recipe(file, overrides)
    yield f"{file}: {len(recipe.plugins)} plugins, every key and value is known"
    warnings = warnings_of(recipe)
    yield from (f"warning: {warning}" for warning in warnings)
    with TemporaryDirectory() as parent, new_run_folder(recipe, Path(parent)) as folder:
        run = assemble(recipe, pick_device(device), folder)
        for note in run.notes:
            yield f"note: {note}"
        yield f"one batch: condition {_shape(run.condition_shape)}, real {_shape(run.real_shape)}"
        run.recipe = with_tiny_batch(recipe)
        require_storable(run)
        beginning = Beginning(run)
        moved: dict[str, bool] = {}
        for iteration in sorted({0, recipe.iterations - 1}):
            run.iteration = iteration
            for role, moves in (yield from _try(run)).items():
                moved[role] = moved.get(role, False) or moves
        for role in (role for role, moves in moved.items() if not moves):
            yield (
                f"warning: no step moved a weight of {role}: its gradient or its learning rate is "
                "0, or its optimizer moves other weights"
            )
        with evaluation_watched(run):
            told = evaluate_once(run)
        yield told
        yield from _take_again(run)
        known = {warning.partition(".")[0] for warning in warnings}  # "ema.decay is 0 ..."
        measured = [plugin for name, plugin in recipe.plugins.items() if name not in known]
        for sentence in plugins_without_effect(run, beginning, measured):
            yield f"warning: {sentence}"
        run.hook.run_end(run=run)
    yield "ok"


def with_tiny_batch(recipe: Recipe) -> Recipe:
    """The recipe with the smallest batch that has the same number of parts, and the same plugins.

    The batch divides the recipe's batch, so that what fits a multiple of that fits this one too.
    A part has at least two images, as far as the recipe's parts have so many: batch norm needs two.
    """
    part = recipe.batch_size // recipe.accumulate
    fewest = next((n for n in range(TINY_BATCH, part + 1) if part % n == 0), part)
    return recipe.model_copy(update={"batch_size": recipe.accumulate * fewest})


def _try(run: Run) -> Generator[str, None, dict[str, bool]]:
    """Run one iteration; returns for each network that was trained whether a step moved it."""
    audit = Audit(run)
    yield f"iteration {run.iteration} run once; the norm of each loss's gradient:"
    try:
        losses, guard = iterate_watched(run, audit)
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
    return guard.moved


def _take_again(run: Run) -> Iterator[str]:
    """Take the last iteration twice from one checkpoint: in this run, and in a resumed one."""
    state = write_checkpoint_once(run)
    _, guard = iterate_watched(run)
    _, second = iterate_watched(resume_once(run, state))
    if differ(guard.calls, second.calls):
        _, third = iterate_watched(resume_once(run, state))
        drawn = differ(second.calls, third.calls)
        require_the_same(
            run, (second if drawn else guard).calls, (third if drawn else second).calls, drawn
        )
    yield "a checkpoint was written and read back; from it the same iteration gave the same numbers"
    yield from (f"warning: {sentence}" for sentence in dropped(run, guard.calls))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
