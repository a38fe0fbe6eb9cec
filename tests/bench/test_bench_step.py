"""What an iteration is made of: the steps, what penalties add to D's, the average of G."""

import pytest
import torch
from torch import nn

from ganlab.iteration import iterate
from ganlab.run import Run

CPU = torch.device("cpu")


def step(benchmark, run: Run, role: str) -> None:
    batch = run.hook.sample_batch(batch_size=run.recipe.batch_size, device=CPU)
    losses = benchmark(getattr(run.hook, f"{role}_step"), run=run, batch=batch)
    assert losses and all(loss.isfinite() for loss in losses.values())


@pytest.mark.benchmark(group="a discriminator step")
@pytest.mark.parametrize("penalty", ["none", "gradient_penalty", "r1"])
def test_a_discriminator_step(benchmark, build, penalty: str) -> None:
    step(benchmark, build(*([] if penalty == "none" else [f"{penalty}={{}}"])), "discriminator")


@pytest.mark.benchmark(group="a generator step")
def test_a_generator_step(benchmark, build) -> None:
    step(benchmark, build(), "generator")


@pytest.mark.benchmark(group="an iteration")
@pytest.mark.parametrize("first", ["discriminator", "generator"])
def test_an_iteration(benchmark, build, first: str) -> None:
    assert benchmark(iterate, build(f"first={first}"))["G/pixel_loss"] > 0


def one_by_one(average: nn.Module, current: nn.Module) -> None:
    for mine, theirs in zip(average.parameters(), current.parameters(), strict=True):
        mine.mul_(0.999).add_(theirs.detach(), alpha=0.001)


@pytest.mark.benchmark(group="the average of SRResNet's weights")
@pytest.mark.parametrize("way", ["all at once", "one by one"])
def test_averaging_the_generator(benchmark, build, way: str) -> None:
    run = build("srresnet.width=64", "srresnet.num_blocks=16", "ema={ warmup = false }")
    ema = run.recipe.plugins["ema"]
    if way == "all at once":
        benchmark(ema.iteration_end, run=run)
    else:
        benchmark(one_by_one, ema.average, run.G)
    pairs = zip(ema.average.parameters(), run.G.parameters(), strict=True)
    assert all(torch.allclose(mine, theirs, rtol=1e-3) for mine, theirs in pairs)
