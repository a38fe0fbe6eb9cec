"""Ablation: compare a recipe with variants that lack one plugin or have other options."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganlab.assembly import assemble
from ganlab.compare.comparison import Outcome, carry_through
from ganlab.compare.plan import Variant
from ganlab.errors import RecipeError
from ganlab.recipe.bundled import is_bundled
from ganlab.recipe.file import did_you_mean
from ganlab.recipe.model import Recipe, load_recipe, resolved
from ganlab.run import Run
from ganlab.speed.device import pick_device


@dataclass(frozen=True, slots=True)
class Ablation:
    """The variants of a recipe, the whole recipe first, and why other variants are not compared."""

    variants: tuple[Variant, ...]
    refused: dict[str, str]


def ablate_recipe(file: Path, options: dict[str, Any]) -> Outcome:
    """`ganlab ablate`: plan, run, compare, and write the page.

    :param options: those of the command line.
    """
    found = plan_ablation(file, options["overrides"], options["without"], options["vary"])
    words = [f"{name} is not compared: {reason}" for name, reason in found.refused.items()]
    title = f"Ablation of {found.variants[0].name}"
    order = [variant.name for variant in found.variants]
    stem = f"ablate-{found.variants[0].name}"
    return carry_through(title, stem, found.variants, [], order, options, words)


def plan_ablation(
    file: Path, overrides: tuple[str, ...], without: Sequence[str], vary: Sequence[str]
) -> Ablation:
    """Make the variants: without each plugin that can be left out, and with other options.

    Whether a plugin can be left out is found by a trial: without it, the recipe must still be a
    complete experiment with the same shapes and the same held-out images.

    :param without: leave out only these; each plugin of the recipe if this and `vary` are empty.
    :param vary: `key=value,value`, the values in TOML.
    :raises RecipeError: for a plugin or a key that is not in the recipe, or if there is nothing to
        compare.
    """
    if file.is_dir() and not is_bundled(file):
        raise RecipeError(f"{file}: is a folder; name a recipe, such as {file / 'recipe.toml'}")
    recipe = load_recipe(file, overrides)
    for name in without:
        if name not in recipe.plugins:
            raise RecipeError(
                f"--without {name}: the recipe has no plugin '{name}'"
                f"{did_you_mean(name, recipe.plugins) or '; it has ' + ', '.join(recipe.plugins)}"
            )
    whole = task_of(assemble(recipe, pick_device("cpu")))
    variants = [Variant(recipe.name, file, overrides)]
    refused: dict[str, str] = {}
    for name in without or ([] if vary else list(recipe.plugins)):
        variant = Variant(
            f"{recipe.name}-without-{name}", file, (*overrides, f"plugins.{name}=false")
        )
        fault = fault_of(variant, whole)
        if not fault:
            variants.append(variant)
        elif name in without:
            raise RecipeError(f"--without {name}: {fault}")
        else:
            refused[name] = fault
    variants += [v for text in vary for v in _varied(text, recipe, variants[0], whole)]
    variants, alike = _distinct(variants)
    if len(variants) == 1:
        what = f": {'; '.join(alike.values())}" if alike else ""
        raise RecipeError(f"{file}: nothing to compare{what}; vary an option with --vary")
    return Ablation(tuple(variants), refused | alike)


def _distinct(variants: Sequence[Variant]) -> tuple[list[Variant], dict[str, str]]:
    """The variants without repetitions, and for each repetition which variant it repeats."""
    first: dict[str, Variant] = {}
    alike: dict[str, str] = {}
    for variant in variants:
        same = first.setdefault(resolved(variant.recipe(0)), variant)
        if same is not variant:
            alike[variant.name] = f"it is the same recipe as {same.name}"
    return list(first.values()), alike


@dataclass(frozen=True, slots=True)
class Task:
    """What the variants of a recipe must have in common for their figures to be compared."""

    condition_shape: tuple[int, ...]
    real_shape: tuple[int, ...]
    held_out: tuple[str, ...]
    """The names of the held-out images."""


def task_of(run: Run) -> Task:
    return Task(tuple(run.condition_shape), tuple(run.real_shape), tuple(run.held_out))


def fault_of(variant: Variant, whole: Task) -> str:
    """Why a variant is incomplete, or is not the whole recipe's experiment; "" when it is fine."""
    try:
        run = assemble(load_recipe(variant.file, variant.overrides), pick_device("cpu"))
    except RecipeError as error:
        return str(error)
    task = task_of(run)
    for what in ("condition_shape", "real_shape"):
        mine, theirs = getattr(task, what), getattr(whole, what)
        if mine != theirs:
            return f"another task: the {what.partition('_')[0]} would be {mine}, not {theirs}"
    if set(task.held_out) != set(whole.held_out):
        return "it would be evaluated on other images"
    return ""


def _varied(text: str, recipe: Recipe, whole: Variant, task: Task) -> list[Variant]:
    key, equals, values = text.partition("=")
    if key.strip() == "seed":
        raise RecipeError(f"--vary {text}: seeds are paired, not compared; use --seeds")
    try:
        parsed = tomllib.loads(f"values = [{values}]")["values"] if equals else []
        given = _pieces(values) if parsed else []
    except tomllib.TOMLDecodeError:
        parsed, given = [], []
    if not parsed or len(parsed) != len(given):
        raise RecipeError(f"--vary {text}: write it as key=value,value, such as ema.decay=0.9,0.99")
    made = []
    for value in given:
        name = f"{recipe.name}-{key.strip()}-{_plain(value)}"
        variant = Variant(name, whole.file, (*whole.overrides, f"{key.strip()}={value}"))
        if fault := fault_of(variant, task):
            raise RecipeError(f"--vary {text}: with {value}: {fault}")
        made.append(variant)
    return made


def _pieces(values: str) -> list[str]:
    """The values as they were written, split at the commas outside brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces]


def _plain(value: str) -> str:
    """A value in the form of a part of a folder's name."""
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in value.strip("'\""))
