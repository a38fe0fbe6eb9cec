"""Instance noise adds what it says, to real and fake alike, and lets the gradient through."""

import pluggy
import pytest
import torch
from ganlab_plugins.instance_noise import InstanceNoise
from pydantic import ValidationError

from ganlab import Schedule, hookimpl, hookspecs
from ganlab.testing import seeded


class Images:
    @hookimpl(trylast=True)
    def augment(self, images):
        return images


def augment(plugin, images):
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Images())
    manager.register(plugin)
    manager.check_pending()
    return manager.hook.augment(images=images, condition=images)


def in_a_run(plugin, iteration=0):
    return seeded(plugin, 1, iteration, "D", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_normal_with_the_stated_deviation(dtype):
    images = torch.full((8, 3, 40, 41), 0.5, dtype=dtype)
    noise = augment(in_a_run(InstanceNoise(sigma=Schedule.constant(0.2))), images) - images
    assert noise.dtype == dtype
    # 39,360 draws: the standard errors are 0.001 of the mean and 0.0007 of the deviation
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.2, abs=0.004)
    # nothing is clamped: a fourth moment of 3 sigma^4
    assert (noise / 0.2).pow(4).mean().item() == pytest.approx(3, abs=0.2)


def test_every_value_of_every_image_has_its_own_draw():
    noise = augment(in_a_run(InstanceNoise()), torch.zeros(2, 3, 5, 7))
    assert len(set(noise.flatten().tolist())) == noise.numel()


def test_noise_falls_linearly_to_none():
    sigma = Schedule.model_validate({"from": 0.1, "to": 0.0, "over": 100})
    plugin = in_a_run(InstanceNoise(sigma=sigma))
    images = torch.rand(1, 3, 64, 64)
    plugin.sigma.advance(75)
    halfway = augment(plugin, images) - images
    assert halfway.std().item() == pytest.approx(0.025, rel=0.05)
    plugin.sigma.advance(100)
    assert torch.equal(augment(plugin, images), images)


def test_the_gradient_passes_as_if_there_were_no_noise():
    images = torch.rand(1, 3, 5, 7, requires_grad=True)
    weights = torch.randn(1, 3, 5, 7)
    (augment(in_a_run(InstanceNoise()), images) * weights).sum().backward()
    assert torch.equal(images.grad, weights)


def test_real_and_fake_get_different_draws_and_a_moment_always_the_same():
    images = torch.zeros(1, 3, 5, 7)
    plugin = in_a_run(InstanceNoise(), iteration=3)
    real, fake = augment(plugin, images), augment(plugin, images)
    assert not torch.equal(real, fake)
    assert torch.equal(real, augment(in_a_run(InstanceNoise(), iteration=3), images))
    assert not torch.equal(real, augment(in_a_run(InstanceNoise(), iteration=4), images))


def test_torchs_own_stream_is_left_alone():
    plugin = in_a_run(InstanceNoise())
    before = torch.get_rng_state()
    augment(plugin, torch.zeros(1, 3, 5, 7))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_negative_deviation_is_refused():
    with pytest.raises(ValidationError, match="must be at least 0"):
        InstanceNoise(sigma=Schedule.constant(-0.1))
