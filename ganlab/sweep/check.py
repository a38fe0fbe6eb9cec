"""Checks the space of a sweep against its recipe, before anything runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlab.assembly import assemble
from ganlab.compare.ablation import Task, fault_of, task_of
from ganlab.compare.plan import Variant
from ganlab.errors import RecipeError
from ganlab.recipe.file import did_you_mean
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.report.figures import HIGHER_IS_BETTER
from ganlab.speed.device import pick_device
from ganlab.sweep.space import SpaceFile

MOST_LOADED = 100
"""Of so many values of an option each is tried in the recipe; of more only both ends."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a sweep looks for: the best value of one figure of evaluation."""

    figure: str
    highest: bool
    at: str
    """Which evaluation of a run counts: "last" or "best"."""

    @property
    def sign(self) -> int:
        return 1 if self.highest else -1

    def __str__(self) -> str:
        return f"the {'highest' if self.highest else 'lowest'} {self.figure}"


@dataclass(frozen=True, slots=True)
class Base:
    """The recipe of a sweep, as it is without the trial's values."""

    file: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    task: Task

    def variant(self, values: dict[str, str], name: str = "") -> Variant:
        """The recipe with the values of a trial."""
        more = (f"{key}={text}" for key, text in values.items())
        return Variant(name or self.recipe.name, self.file, (*self.overrides, *more))


def base_of(file: Path, overrides: tuple[str, ...], space: SpaceFile) -> tuple[Base, Goal]:
    """The recipe of a sweep, and what is looked for.

    :raises RecipeError: when the recipe cannot run, or the space does not fit it.
    """
    recipe = load_recipe(file, overrides)
    for option in space.options:
        _check_key(space, option, overrides)
    _check_pruned(space)
    goal = _goal(space, recipe)
    return Base(file, overrides, recipe, task_of(assemble(recipe, pick_device("cpu")))), goal


def check_values(space: SpaceFile, base: Base) -> None:
    """Refuse a space that the recipe does not allow: try both ends of each range, each choice.

    Each is loaded and assembled, and must be the recipe's own task: the same shapes, the same
    held-out images. Of up to a hundred values each is loaded at least.

    :raises RecipeError: with file, line, option, value, fault and remedy.
    """
    for option in space.options:
        for text, what in _tried(space, option):
            _require(space, option, text, what, base)


def _tried(space: SpaceFile, option: str) -> Iterator[tuple[str, str]]:
    """The values of an option to load, as TOML with their names; those to assemble come first."""
    probes = space.options[option].probes()
    yield from probes.items()
    texts = space.options[option].texts() or []
    if len(texts) <= MOST_LOADED:
        yield from ((text, f"its value {text}") for text in texts if text not in probes)


def _require(space: SpaceFile, option: str, text: str, what: str, base: Base) -> None:
    """Refuse a value that the recipe refuses."""
    variant = base.variant({option: text})
    try:
        load_recipe(variant.file, variant.overrides)
        fault = fault_of(variant, base.task) if text in space.options[option].probes() else ""
    except RecipeError as error:
        fault = str(error)
    if fault:
        fault = fault.removeprefix(f"--set {option}={text}: ").rstrip()
        remedy = _as_whole(space, option, text, base)
        raise RecipeError(f"{space.place(option)}: {what} is refused: {fault}{remedy}")


def _as_whole(space: SpaceFile, option: str, text: str, base: Base) -> str:
    """The remedy for a range of fractions where the option is a whole number."""
    if space.options[option].floats is None:
        return ""
    low, high = map(round, space.options[option].ends)
    try:
        variant = base.variant({option: str(round(float(text)))})
        load_recipe(variant.file, variant.overrides)
    except RecipeError:
        return ""
    return f" Write int = [{low}, {high}]"


def _check_key(space: SpaceFile, option: str, overrides: tuple[str, ...]) -> None:
    if option == "seed":
        raise RecipeError(
            f'{space.place(option)}: seeds are replicates, not options; write seeds = "0..2" '
            "above [options]"
        )
    keys = [override.partition("=")[0].strip().removeprefix("plugins.") for override in overrides]
    if option in keys:
        raise RecipeError(
            f"{space.place(option)}: --set gives this option too, and would have no effect; leave "
            "one of them out"
        )


def _check_pruned(space: SpaceFile) -> None:
    """Refuse to stop runs early by evaluations that are not at the same iterations."""
    for option in ("iterations", "evaluate_every"):
        if option in space.options and space.space.pruner != "none":
            raise RecipeError(
                f'{space.place(option)}: with pruner = "{space.space.pruner}" the runs must be '
                'evaluated at the same iterations; take it out, or set pruner = "none"'
            )


def _goal(space: SpaceFile, recipe: Recipe) -> Goal:
    """What the space looks for; the recipe's own metric where it does not say it."""
    figure = space.space.figure or recipe.best_metric
    best = space.space.best
    if best is None and figure == recipe.best_metric:
        best = recipe.best_is
    if best is None:
        higher = HIGHER_IS_BETTER.get(figure)
        if higher is None:
            raise RecipeError(
                f'{space.setting("figure")}: figure = "{figure}": say which value is the best: '
                'best = "highest" or "lowest"'
            )
        best = "highest" if higher else "lowest"
    return Goal(figure, best == "highest", space.space.at)


def require_figure(space: SpaceFile, goal: Goal, figures: dict[str, Any], run: Path) -> None:
    """Refuse to go on when no evaluation has the figure that decides.

    :param figures: of an evaluation of this run.
    :raises RecipeError: with what there is.
    """
    if goal.figure in figures:
        return
    there = f"only {', '.join(figures)}{did_you_mean(goal.figure, figures)}"
    nothing = "nothing at all; give the data plugin held-out images"
    raise RecipeError(
        f'{space.setting("figure")}: figure = "{goal.figure}" decides, but {run} was evaluated '
        f"for {there if figures else nothing}"
    )
