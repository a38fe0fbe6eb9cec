"""What is told of each loss's pull, and that looking changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kept_gradients import kept
from torch import nn

from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.monitoring.attribution import attributed, gradients, norm
from ganlab.plugin import Losses
from ganlab.recipe.model import load_recipe


def linear(*weights: float) -> nn.Linear:
    module = nn.Linear(len(weights), 1, bias=False)
    module.weight.data = torch.tensor([weights])
    return module


def test_norms_shares_and_cosines_of_linear_losses_are_known() -> None:
    module = linear(1.0, 2.0)
    losses = {
        "G/x": module.weight @ torch.tensor([3.0, 4.0]),  # gradient (3, 4)
        "G/y": module.weight @ torch.tensor([0.0, -15.0]),  # gradient (0, -15)
    }
    with attributed("G", module, {k: v.sum() for k, v in losses.items()}) as seen:
        module.weight.data += torch.tensor([[0.0, 1.0]])
    expected = {
        "gradient/G/x": 5.0,
        "gradient/G/y": 15.0,
        "share/G/x": 0.25,
        "share/G/y": 0.75,
        "cosine/G/x,G/y": -0.8,
        "health/G_update": 1 / 5**0.5,
    }
    assert {k: v.item() for k, v in seen.items()} == pytest.approx(expected, rel=1e-6)


def test_a_loss_without_gradient_has_norm_and_cosine_0() -> None:
    module = linear(1.0, 2.0)
    losses = {"G/x": module.weight.sum(), "G/dead": torch.tensor(7.0)}
    with attributed("G", module, losses) as seen:
        pass
    assert seen["gradient/G/dead"].item() == 0
    assert seen["cosine/G/x,G/dead"].item() == 0
    assert seen["health/G_update"].item() == 0


def test_parameters_that_a_loss_does_not_touch_have_gradient_0() -> None:
    one, other = linear(1.0), linear(2.0)
    first, second = gradients(3 * one.weight.sum(), [one.weight, other.weight])
    assert (first.item(), second.item()) == (3.0, 0.0)
    assert norm([first, second]).item() == 3.0


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["d_steps=3"],
        ["gradient_penalty=false", "r1={ every = 2 }", "wasserstein=false", "bce={}"],
        [
            "num_discriminators=2",
            "second={ use = 'patch_discriminator', width = 4, num_layers = 1 }",
        ],
        ["g_steps=2"],
    ],
    ids=["plain", "several D steps", "lazy penalty", "two discriminators", "several G steps"],
)
def test_looking_at_every_step_changes_no_weight(tiny: Path, overrides: list[str]) -> None:
    def weights(watch_every: int) -> list[torch.Tensor]:
        recipe = load_recipe(tiny, [*overrides, f"watch_every={watch_every}"])
        run = assemble(recipe, torch.device("cpu"))
        for run.iteration in range(3):
            losses = iterate(run)
            assert any(n.startswith("gradient/") for n in losses) == (watch_every > 0)
        assert run.D is not None
        return [*run.G.parameters(), *run.D.parameters()]

    for watched, plain in zip(weights(1), weights(0), strict=True):
        assert torch.equal(watched, plain)


def test_only_the_iterations_that_the_recipe_names_are_watched(tiny: Path) -> None:
    run = assemble(load_recipe(tiny, ["watch_every=6"]), torch.device("cpu"))
    watched = []
    for run.iteration in range(20):
        if "gradient/G/pixel_loss" in iterate(run):
            watched.append(run.iteration)
    # every sixth, and 1, 2, 4, 8, 16 iterations after D's first step
    assert watched == sorted({5, 11, 17} | {1, 2, 4, 8, 16})


def test_the_beginning_of_the_game_is_watched_and_not_that_of_the_pretraining(tiny: Path) -> None:
    run = assemble(
        load_recipe(tiny, ["watch_every=100", "iterations=10", "pretraining={ iterations = 4 }"]),
        torch.device("cpu"),
    )
    watched = []
    for run.iteration in range(10):
        if "gradient/G/pixel_loss" in iterate(run):
            watched.append(run.iteration)
    assert run.progress.game_began == 4
    assert watched == [5, 6, 8]


def test_nothing_is_watched_at_an_interval_of_0(tiny: Path) -> None:
    run = assemble(load_recipe(tiny, ["watch_every=0"]), torch.device("cpu"))
    for run.iteration in range(4):
        assert "gradient/G/pixel_loss" not in iterate(run)


def test_the_gradient_of_the_sum_is_what_the_shares_are_of(tiny: Path) -> None:
    """The norms and the cosine of two losses give the length of their sum, the law of cosines."""
    run = assemble(load_recipe(tiny, ["watch_every=1"]), torch.device("cpu"))
    with kept(run.G_optimizer) as found:
        losses = {name: value.item() for name, value in iterate(run).items()}
    a, b = losses["gradient/G/adversarial"], losses["gradient/G/pixel_loss"]
    cosine = losses["cosine/G/adversarial,G/pixel_loss"]
    whole = norm(found).item()
    assert whole**2 == pytest.approx(a**2 + b**2 + 2 * a * b * cosine, rel=1e-4)


def test_a_loss_alone_has_no_share() -> None:
    module = linear(1.0, 2.0)
    with attributed("G", module, {"G/x": module.weight.sum()}) as seen:
        pass
    assert seen.keys() == {"gradient/G/x", "health/G_update"}


def test_of_several_steps_the_first_is_looked_at_by_the_observer_that_was_given(
    tiny: Path,
) -> None:
    looked: list[str] = []

    @contextmanager
    def look(role: str, module: nn.Module, losses: Losses) -> Iterator[Losses]:
        looked.append(role)
        yield {"seen": torch.tensor(1.0)}

    recipe = load_recipe(tiny, ["d_steps=3", "g_steps=2", "watch_every=1"])
    losses = iterate(assemble(recipe, torch.device("cpu")), look)
    assert looked == ["D", "G"]
    assert "seen" in losses
    assert "gradient/G/pixel_loss" not in losses
