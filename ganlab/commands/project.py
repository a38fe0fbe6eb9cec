"""`ganlab init`: a folder for experiments, with a recipe and a plugin file to change."""

import os
from pathlib import Path

from ganlab.commands.recipes import copy_bundled
from ganlab.commands.schema import schema_line, write_editor_files
from ganlab.errors import RecipeError, printable
from ganlab.files import write_text

BASE = "wgan_gp"
RECIPE = Path("recipes", "first.toml")
PLUGIN = RECIPE.with_name("edges.py")
PHOTOGRAPHS = Path("photographs")

_RECIPE_TEXT = f"""\
# The first experiment: {BASE}.toml with one loss more, which is in edges.py.
# What is not said here comes from {BASE}.toml. In the folder of the project:
#   ganlab check {RECIPE.as_posix()}
#   ganlab run {RECIPE.as_posix()} --data {PHOTOGRAPHS}
#   ganlab compare recipes/{BASE}.toml {RECIPE.as_posix()} --seeds 0..2
extends = "{BASE}.toml"

[plugins]
edges = {{ use = "./edges.py", weight = 0.1 }}
"""
_PLUGIN_TEXT = '''\
"""A loss on edges: change it into an idea of your own."""

from torch import Tensor

from ganlab import Plugin, hookimpl


class EdgeLoss(Plugin):
    """L1 distance between the horizontal gradients of SR and HR."""

    weight: float = 0.1
    """Weight of the term."""

    @hookimpl
    def generator_loss(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        return {"G/edges": self.weight * (fake.diff() - real.diff()).abs().mean()}
'''
_IGNORED = f"""\
# what ganlab makes, and the images
/runs/
/upscaled/
/.ganlab/
/{PHOTOGRAPHS}/
__pycache__/
"""


def make_project(folder: Path) -> list[Path]:
    """Lay out a project: recipes with a plugin file, a folder for images, files for editors, git's.

    :returns: what was made, relative to the folder.
    :raises RecipeError: when one of the files is there already; nothing is written then.
    """
    texts = {
        RECIPE: schema_line(folder / RECIPE.parent, folder) + _RECIPE_TEXT,
        PLUGIN: _PLUGIN_TEXT,
        Path(".gitignore"): _IGNORED,
    }
    base = RECIPE.with_name(f"{BASE}.toml")
    if there := [name for name in (*texts, base) if os.path.lexists(folder / name)]:
        raise RecipeError(
            f"{printable(str(folder / there[0]))} exists, and nothing is overwritten; name a new "
            "folder"
        )
    (folder / RECIPE.parent).mkdir(parents=True, exist_ok=True)
    (folder / PHOTOGRAPHS).mkdir(exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    copies = copy_bundled(BASE, folder / RECIPE.parent)
    written, _ = write_editor_files(folder)
    made = [path.relative_to(folder) for path in (*copies, *written)]
    return [*texts, *made, PHOTOGRAPHS]
