"""What an iteration is made of, timed: `uv run pytest tests/bench --benchmark-enable`."""

from pathlib import Path

import pytest
import torch

from ganlab.checkpoint import save_checkpoint
from ganlab.engine import Run, assemble, iterate
from ganlab.recipe import load_recipe

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny: Path) -> Run:
    return assemble(load_recipe(tiny), CPU)


def test_dispatch_of_a_chained_hook(benchmark, run: Run) -> None:
    images = torch.zeros(1, 3, 4, 4)
    benchmark(run.hook.augment, images=images, condition=images)


def test_sampling_a_batch(benchmark, run: Run) -> None:
    benchmark(run.hook.sample_batch, batch_size=16, device=CPU)


def test_a_discriminator_step(benchmark, run: Run) -> None:
    batch = run.hook.sample_batch(batch_size=2, device=CPU)
    benchmark(run.hook.discriminator_step, run=run, batch=batch)


def test_a_generator_step(benchmark, run: Run) -> None:
    batch = run.hook.sample_batch(batch_size=2, device=CPU)
    benchmark(run.hook.generator_step, run=run, batch=batch)


def test_an_iteration(benchmark, run: Run) -> None:
    benchmark(iterate, run)


def test_a_checkpoint(benchmark, run: Run, tmp_path: Path) -> None:
    benchmark(save_checkpoint, run, tmp_path)
