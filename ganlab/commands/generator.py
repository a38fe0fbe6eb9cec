"""A run's generator, to evaluate or to use it, built from as few plugins as that needs.

Losses, optimizers, data and the rest of a run are not loaded. So a run still enlarges where their
packages are missing, and no code of theirs runs.
"""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ganlab.assembly import build_network, open_run
from ganlab.checkpoint import checkpoints_of
from ganlab.commands.model_card import GeneratorFacts
from ganlab.errors import GanlabError, RecipeError
from ganlab.files import write_text
from ganlab.generator_weights import load_generator
from ganlab.recipe.discovery import installed
from ganlab.recipe.file import read_alone
from ganlab.recipe.model import Recipe, load_part
from ganlab.requirements import providers
from ganlab.run import Run
from ganlab.runs.folder import (
    RunFolder,
    enlarges,
    open_run_folder,
    read_json,
    read_tables,
    recorded_hooks,
)
from ganlab.speed.device import pick_device

_MAKES = {"make_generator"}
_DEGRADES = {"degrade"}
_SCORES = {"score_images", "evaluate"}


def load_for_use(
    path: Path | str, which: str, device: str, judging: bool = False
) -> tuple[Run, torch.nn.Module, RunFolder]:
    """Load a run's generator; its training data and its other plugins are not needed.

    :param judging: load also the plugins that degrade images, and those that score them, as far as
        they can be had. Those that are left out are told on stderr.
    :raises GanlabError: when the run has written no weights yet, or its records are damaged.
    :raises RecipeError: when its generator enlarges no images, as in a toy problem.
    """
    folder = open_run_folder(path)
    manifest = read_json(folder.manifest)
    if "real_shape" not in manifest:
        raise GanlabError(f"{folder.manifest}: damaged or absent; the generator's shape is unknown")
    if not enlarges(folder):
        raise RecipeError(
            f"{folder.path}: its generator makes samples, it enlarges no images; name another run"
        )
    recipe = _recipe(folder, judging)
    run = open_run(recipe, pick_device(device), folder, whole=False)
    if len(makers := providers(run.manager, "make_generator")) != 1:
        found = " and ".join(plugin.name for plugin in makers) or "none"
        raise RecipeError(
            f"{folder.recipe}: one plugin must make the generator; here {found}, of the plugins "
            "that can be loaded"
        )
    run.condition_shape = tuple(manifest["condition_shape"])
    run.real_shape = tuple(manifest["real_shape"])
    generator = build_network(run, "make_generator", run.real_shape).eval()
    if which == "best" and folder.weights().is_file() and not folder.weights("best").is_file():
        raise RecipeError(
            f"{folder.path}: it has no best generator yet: it chooses by {run.recipe.best_metric} "
            "at the evaluations of its recipe, and none has given that figure; use --weights last"
        )
    made = load_generator(generator, folder.weights(which))
    _tell_age(folder, which, made)
    return run, generator, folder


def load_file_for_use(file: Path, facts: GeneratorFacts) -> torch.nn.Module:
    """The generator of a file of weights that lies in no run folder, on the CPU.

    It is built by installed plugins: a file brings no code along, and none of this machine runs
    because a file names it.

    :raises RecipeError: when no installed plugin makes it.
    :raises GanlabError: when the file is damaged.
    """
    with TemporaryDirectory() as place:
        written = Path(place) / f"{facts.name}.toml"
        write_text(written, facts.recipe)
        named = {**read_alone(written).get("plugins", {})}
        known = {
            n for n, o in named.items() if isinstance(o, dict) and o.get("use", n) in installed()
        }
        recipe, _ = load_part(written, (), known)
    run = open_run(recipe, torch.device("cpu"), whole=False)
    run.condition_shape, run.real_shape = facts.condition_shape, facts.real_shape
    if len(providers(run.manager, "make_generator")) != 1:
        raise RecipeError(
            f"{file}: no installed plugin makes its generator; install the one that does, or name "
            "the run folder, which has the code of its plugin files"
        )
    generator = build_network(run, "make_generator", run.real_shape).eval()
    load_generator(generator, file)
    return generator


def _tell_age(folder: RunFolder, which: str, made: int | None) -> None:
    """Say of which iteration the weights are, where the run has come further."""
    reached = max([folder.read_status().get("iteration", 0), *checkpoints_of(folder.checkpoints)])
    if made is not None and made < reached:
        print(f"the {which} weights are of iteration {made:,}; the run has come to {reached:,}",
              file=sys.stderr)  # fmt: skip


def _recipe(folder: RunFolder, judging: bool) -> Recipe:
    """The run's recipe with the plugins that are needed, according to the hooks recorded.

    An older run records no hooks. Then all its plugins are loaded: to enlarge as far as they can
    be had, to judge without exception.
    """
    recorded, names = recorded_hooks(folder), read_tables(folder)["plugins"]
    unrecorded = {name for name in names if name not in recorded}
    needed = _MAKES | (_DEGRADES if judging else set())
    wanted = _SCORES if judging else set()
    must = {name for name in names if needed & {*recorded.get(name, ())}}
    may = {name for name in names if wanted & {*recorded.get(name, ())}} - must
    if judging:
        must |= unrecorded
    else:
        may |= unrecorded
    recipe, left_out = load_part(folder.recipe, must, may)
    left_out |= dict(_absent(names, [n for n in names if n not in must | may]))
    if left_out:
        told = "; ".join(f"{name} ({reason})" for name, reason in left_out.items())
        print(f"left out: {told}", file=sys.stderr)
    return recipe


def _absent(plugins: dict[str, Any], unneeded: Collection[str]) -> Iterator[tuple[str, str]]:
    """The plugins that are not needed and not plainly here, each with the reason."""
    for name in unneeded:
        use = str(plugins[name].get("use", name))
        if use.endswith(".py"):
            yield name, f"its code, {use}, is not needed here"
        elif use not in installed():
            yield name, "not installed, and not needed here"
