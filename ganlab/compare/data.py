"""Whether the arms of a comparison have the same data, where their recipes say that they do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from ganlab.assembly import open_run
from ganlab.data import data_of
from ganlab.errors import RecipeError
from ganlab.recipe.model import Recipe
from ganlab.runs.data import TITLES, Data, differences


@dataclass(frozen=True, slots=True)
class ArmData:
    """The data of one arm, and the options of its plugins."""

    name: str
    options: Mapping[str, Any]
    """The table of each plugin in the resolved recipe."""
    data: Data


class DataNow:
    """The data that recipes would read now. Equal options of the plugins are looked up once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[str, Data] = {}

    def of(self, recipe: Recipe) -> Data:
        """The data of a recipe; files that plugins read when they are started are left out.

        :raises RecipeError: when its data cannot be read.
        """
        run = open_run(recipe, self._device)
        asked = [*run.plugins_with("data_digest"), *run.plugins_with("evaluation_images")]
        key = repr([(plugin.name, type(plugin), plugin.model_dump_json()) for plugin in asked])
        if key not in self._known:
            self._known[key] = data_of(run)
        return self._known[key]


def check_same_data(arms: Sequence[ArmData]) -> None:
    """Refuse arms whose plugins have equal options, but read different data.

    :raises RecipeError: naming the arms, the plugin and the items.
    """
    for first, arm in combinations(arms, 2):
        for section, title in TITLES.items():
            mine, theirs = first.data.get(section, {}), arm.data.get(section, {})
            for name in mine.keys() & theirs.keys():
                owners = name.split("+")  # several plugins may hold images out
                one, other = ([a.options.get(o) for o in owners] for a in (first, arm))
                found = differences({section: {name: mine[name]}}, {section: {name: theirs[name]}})
                if one == other and found:
                    raise RecipeError(
                        f"{arm.name} and {first.name} have different {title}, though their recipes "
                        f"name the same: in {arm.name} {found[section]}. Run both again on the "
                        "same data, or add --accept-data to compare them as they are"
                    )
