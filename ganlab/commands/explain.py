"""`ganlab explain`: every value of a recipe with its origin, and the cost of the run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from ganlab.bench.cost import Estimate, clock, estimate
from ganlab.commands.describe import in_words, toml
from ganlab.commands.limits import limits_of
from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.recipe.file import did_you_mean
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.schedule import Schedule
from ganlab.terminal import Terminal


def explain_recipe(
    file: Path, overrides: Iterable[str], key: str | None, device: str, with_cost: bool
) -> dict[str, Any]:
    """The values of a recipe, or one of them, and the cost of the run.

    :param key: show only this value, such as gradient_penalty.weight, or a plugin or a setting.
    :returns: {"recipe", "values": [{"key", "value", "origin", "description", "bounds"}],
        "steps": {...}, "cost": {...} or {"unknown": why}}.
    :raises RecipeError: for a key that the recipe does not have.
    """
    recipe = load_recipe(file, overrides)
    values = [*_settings(recipe), *_options(recipe)]
    if key is not None:
        return {"recipe": str(file), "values": _chosen(values, key)}
    found: dict[str, Any] = {"recipe": str(file), "values": values, "steps": _steps(recipe)}
    if with_cost:
        try:
            found["cost"] = _cost(recipe, estimate(recipe, device))
        except (GanlabError, OSError) as error:
            found["cost"] = {"unknown": str(error)}
    return found


def _settings(recipe: Recipe) -> list[dict[str, Any]]:
    return _values(recipe, recipe, "")


def _options(recipe: Recipe) -> list[dict[str, Any]]:
    found = []
    for name, plugin in recipe.plugins.items():
        source = recipe.sources[name]
        found.append(
            {
                "key": name,
                "value": source.name if source.name != name else "",
                "origin": recipe.origin("plugins", name),
                "description": (type(plugin).__doc__ or "").strip().partition("\n")[0],
                "bounds": {},
            }
        )
        found += _values(recipe, plugin, name)
    return found


def _values(recipe: Recipe, model: BaseModel, plugin: str) -> list[dict[str, Any]]:
    """Every field of the settings or of a plugin."""
    found = []
    limits = limits_of(type(model))
    for name, field in type(model).model_fields.items():
        written = field.alias or name
        value = getattr(model, name)
        where = ("plugins", plugin, written) if plugin else (written,)
        shown = value.model_dump() if isinstance(value, Schedule) else value
        found.append(
            {
                "key": f"{plugin}.{written}" if plugin else written,
                "value": toml(shown if not isinstance(shown, Path) else str(shown)),
                "origin": recipe.origin(*where),
                "description": " ".join((field.description or "").split()),
                "bounds": limits[written],
            }
        )
    return found


def _chosen(values: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    key = key.removeprefix("plugins.")
    chosen = [v for v in values if v["key"] == key or v["key"].startswith(f"{key}.")]
    if not chosen:
        known = [value["key"] for value in values]
        raise RecipeError(f"the recipe has no '{key}'{did_you_mean(key, known)}")
    return chosen


def _steps(recipe: Recipe) -> dict[str, int]:
    return {
        "iterations": recipe.iterations,
        "G steps": recipe.iterations * recipe.g_steps,
        "D steps, at most": recipe.iterations * recipe.d_steps,
        "images for G": recipe.iterations * recipe.g_steps * recipe.batch_size,
        "evaluations": -(-recipe.iterations // recipe.evaluate_every),
    }


def _cost(recipe: Recipe, cost: Estimate) -> dict[str, Any]:
    return {
        "device": cost.device,
        "parameters": cost.parameters,
        "seconds": round(cost.seconds, 1),
        "images/s": round(recipe.iterations * recipe.g_steps * recipe.batch_size / cost.seconds, 1),
        "peak_memory": cost.peak_memory,
        "share of iterations with D": cost.d_share,
    }


def show(found: dict[str, Any]) -> None:
    """Print what `explain_recipe` found."""
    console = Terminal()
    whole = "steps" in found
    table = Table(box=None, pad_edge=False, show_header=False)
    for style in ("", "", "dim"):
        table.add_column(style=style, overflow="fold")
    for value in found["values"]:
        plugin = "." not in value["key"] and value["description"] and not value["value"]
        key = Text(printable(value["key"]), style="bold" if plugin else "")
        table.add_row(key, value["value"], value["origin"])
        if not whole:
            limits = in_words(value["bounds"])
            table.add_row("", value["description"] + (f" ({limits})" if limits else ""), "")
    console.print(table)
    if whole:
        console.print()
        for name, number in found["steps"].items():
            console.print(f"{name}: {number:,}")
        for line in _lines(found.get("cost", {})):
            console.print(line)


def _lines(cost: dict[str, Any]) -> list[str]:
    if not cost:
        return []
    if "unknown" in cost:
        return [f"cost unknown: {cost['unknown']}"]
    counts = ", ".join(f"{name} {count:,}" for name, count in cost["parameters"].items() if count)
    time, memory = clock(cost["seconds"]), f"{cost['peak_memory'] / 2**20:,.0f} MiB"
    return [
        f"parameters: {counts}",
        f"about {time} on {cost['device']}, {cost['images/s']:,.0f} images/s, peak memory "
        f"{memory}; an estimate from seven iterations timed here, without evaluations",
    ]
