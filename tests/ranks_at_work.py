"""Trains recipes by one process, and by several over gloo; they are forks of the server's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from children import CONTEXT
from torch import Tensor, distributed

from ganlab import session
from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.limits import Limits
from ganlab.ranks.many import join
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

CPU = torch.device("cpu")


def trained_by(count: int, recipes: Mapping[str, Path], folder: Path, *settings: str) -> Path:
    """Train recipes by this many processes; returns the folder of the runs.

    Beside each run's folder lies `<name>.pt`, with the gradients of one step before training, in
    float64 and float32: "float64 D 0 weight" -> tensor.
    """
    runs = folder / f"by-{count}"
    runs.mkdir()
    arguments = (count, dict(recipes), runs, settings)
    ranks = [CONTEXT.Process(target=_take_part, args=(n, *arguments)) for n in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0] * count
    return runs


def _take_part(
    rank: int, count: int, recipes: Mapping[str, Path], runs: Path, settings: tuple[str, ...]
) -> None:
    torch.set_num_threads(1)
    if count > 1:
        os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "unused", "MASTER_PORT": "0"}  # a rank has been told them
        store = distributed.FileStore(str(runs / "meeting"), count)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    world = join()
    for name, file in recipes.items():
        told: dict[str, Any] = {}
        for precision in ("float64", "float32"):
            recipe = load_recipe(file, (*settings, f'precision="{precision}"'))
            told |= _gradients(assemble(recipe, CPU, world=world), precision)
        recipe = load_recipe(file, settings)
        if world.leads:
            torch.save(told, runs / f"{name}.pt")
            session.start(recipe, "cpu", Limits(), runs, name)
        else:
            session.take_part(recipe, "cpu")


def _gradients(run: Run, precision: str) -> dict[str, Tensor]:
    """The gradients of each step of an iteration that moves no weight."""
    found: dict[str, Tensor] = {}
    for role, optimizer in run.optimizers.items():

        def note(role: str = role) -> None:
            number = sum(name.startswith(f"{precision} {role} ") for name in found)
            for name, parameter in run.networks[role].named_parameters():
                if parameter.grad is not None:
                    found[f"{precision} {role} {number} {name}"] = parameter.grad.clone()

        optimizer.step = note
    iterate(run)
    return found
