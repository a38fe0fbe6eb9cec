"""Builds a run and trains it, iteration by iteration, without a run folder."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager, Run


def build(file: Path, overrides: Sequence[str], way: Eager | None = None) -> Run:
    """A run on the CPU, whose steps are taken in this way, or else as they are written."""
    run = assemble(load_recipe(file, overrides), torch.device("cpu"))
    run.execution = way or Eager()
    return run


def train(run: Run, until: int) -> list[dict[str, float]]:
    """The losses of each iteration from that of the run up to `until`."""
    lines = []
    while run.iteration < until:
        lines.append({name: value.item() for name, value in iterate(run).items()})
        run.iteration += 1
    return lines
