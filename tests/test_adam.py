"""Adam makes the paper's step, and gives each network its own settings."""

import pytest
import torch
from ganlab_plugins.adam import Adam
from pydantic import ValidationError
from torch import nn


def settings(optimizer):
    (group,) = optimizer.param_groups
    return group["lr"], group["betas"], group["eps"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_steps_are_the_papers_algorithm(dtype):
    module = nn.Linear(3, 1, bias=False).to(dtype)
    weight = module.weight.detach().clone().double()
    optimizer = Adam(learning_rate=0.1, betas=(0.5, 0.9), eps=1e-3).make_optimizer(
        module, "generator"
    )
    mean = square = torch.zeros(1, 3, dtype=torch.float64)
    for step in (1, 2):
        gradient = torch.tensor([[1.0, -2.0, 1e-3]], dtype=torch.float64) * step
        mean = 0.5 * mean + 0.5 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        corrected = (mean / (1 - 0.5**step), square / (1 - 0.9**step))
        weight = weight - 0.1 * corrected[0] / (corrected[1].sqrt() + 1e-3)
        module.weight.grad = gradient.to(dtype)
        optimizer.step()
    torch.testing.assert_close(module.weight.detach().double(), weight, rtol=1e-6, atol=1e-6)


def test_both_networks_share_the_settings_unless_told_otherwise():
    plugin = Adam(learning_rate=2e-4, betas=(0.0, 0.9))
    for role in ("generator", "discriminator"):
        assert settings(plugin.make_optimizer(nn.Linear(1, 1), role)) == (2e-4, (0.0, 0.9), 1e-8)


def test_the_discriminator_may_have_its_own_rate_and_betas():
    plugin = Adam(discriminator_learning_rate=4e-4, discriminator_betas=(0.0, 0.9))
    assert settings(plugin.make_optimizer(nn.Linear(1, 1), "generator"))[:2] == (1e-4, (0.9, 0.99))
    assert settings(plugin.make_optimizer(nn.Linear(1, 1), "discriminator"))[:2] == (
        4e-4,
        (0.0, 0.9),
    )


def test_every_parameter_is_optimised():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU())
    (group,) = Adam().make_optimizer(module, "generator").param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters()]


def test_a_list_of_betas_from_a_recipe_is_a_pair():
    plugin = Adam.model_validate_json('{"betas": [0.5, 0.9]}')
    assert plugin.betas == (0.5, 0.9)


@pytest.mark.parametrize(
    "text", ['{"betas": [0.5, 1.0]}', '{"betas": [-0.1, 0.9]}', '{"betas": [0.9]}']
)
def test_betas_that_are_no_pair_of_decays_are_refused(text):
    with pytest.raises(ValidationError, match="betas"):
        Adam.model_validate_json(text)
