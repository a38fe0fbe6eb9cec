"""The Wasserstein losses are differences of means."""

import pytest
import torch
from ganlab_plugins.wasserstein import Wasserstein

from ganlab import Schedule

# the vectors of tensorflow_gan/python/losses/losses_impl_test.py
REAL = torch.tensor([-5.0, 1.4, 12.5, 2.7], dtype=torch.float64).reshape(4, 1)
FAKE = torch.tensor([10.0, 4.4, -5.5, 3.6], dtype=torch.float64).reshape(4, 1)


def test_both_losses_are_the_golden_ones():
    loss = Wasserstein()
    assert loss.discriminator_loss(REAL, FAKE).item() == pytest.approx(0.225)
    assert loss.generator_loss(FAKE)["G/adversarial"].item() == pytest.approx(-3.125)


def test_critic_loss_ignores_a_constant_on_all_logits():
    shifted = Wasserstein().discriminator_loss(REAL + 100, FAKE + 100)
    assert shifted.item() == pytest.approx(0.225)


def test_a_patch_map_is_the_vector_of_its_logits():
    loss = Wasserstein()
    real_map, fake_map = REAL.reshape(1, 1, 2, 2), FAKE.reshape(1, 1, 2, 2)
    assert loss.discriminator_loss(real_map, fake_map).item() == pytest.approx(0.225)
    assert loss.generator_loss(fake_map)["G/adversarial"].item() == pytest.approx(-3.125)


def test_critic_is_asked_to_raise_real_and_lower_fake_and_the_generator_to_raise_fake():
    real, fake = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    Wasserstein().discriminator_loss(real, fake).backward()
    assert (real.grad.item(), fake.grad.item()) == (-1, 1)
    fake.grad = None
    Wasserstein().generator_loss(fake)["G/adversarial"].backward()
    assert fake.grad.item() == -1


def test_the_weight_is_on_the_generator_alone():
    loss = Wasserstein(weight=Schedule.constant(0.01))
    assert loss.discriminator_loss(REAL, FAKE).item() == pytest.approx(0.225)
    assert loss.generator_loss(FAKE)["G/adversarial"].item() == pytest.approx(-0.03125)
