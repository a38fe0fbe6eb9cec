"""The BCE losses have the values that TF-GAN's tests print, and the gradients that theory gives."""

import math

import pytest
import torch
from ganlab_plugins.bce import BCE
from torch.nn import functional as F

from ganlab import Schedule

# the vectors of tensorflow_gan/python/losses/losses_impl_test.py
REAL = torch.tensor([-5.0, 1.4, 12.5, 2.7], dtype=torch.float64).reshape(4, 1)
FAKE = torch.tensor([10.0, 4.4, -5.5, 3.6], dtype=torch.float64).reshape(4, 1)


def discriminator_loss(real, fake, real_target=1.0, fake_target=0.0):
    return BCE().discriminator_loss(
        real_logits=real,
        fake_logits=fake,
        real_label=torch.full_like(real, real_target),
        fake_label=torch.full_like(fake, fake_target),
    )


@pytest.mark.parametrize(
    ("real_label", "expected"), [(1.0, 5.833866), (0.875, 6.196366), (0.9, 6.123866)]
)
def test_discriminator_loss_is_the_golden_one_for_smoothed_labels_too(real_label, expected):
    assert discriminator_loss(REAL, FAKE, real_label).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"), [("nonsaturating", 1.385821), ("minimax", -4.510821)]
)
def test_generator_loss_is_the_golden_one(kind, expected):
    loss = BCE(kind=kind).generator_loss(fake_logits=FAKE)["G/adversarial"]
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_discriminator_loss_is_two_softplus():
    expected = F.softplus(-REAL).mean() + F.softplus(FAKE).mean()
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx(expected.item(), rel=1e-12)


def test_swapped_labels_are_swapped_logits():
    swapped = discriminator_loss(REAL, FAKE, real_target=0.0, fake_target=1.0)
    assert swapped.item() == pytest.approx(discriminator_loss(FAKE, REAL).item(), rel=1e-12)


def test_an_undecided_discriminator_costs_ln_2_per_term():
    zeros = torch.zeros(1, 1)
    assert discriminator_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))
    assert BCE().generator_loss(fake_logits=zeros)["G/adversarial"].item() == pytest.approx(
        math.log(2)
    )


@pytest.mark.parametrize("kind", ["nonsaturating", "minimax"])
def test_a_patch_map_is_the_vector_of_its_logits(kind):
    real_map, fake_map = REAL.reshape(1, 1, 2, 2), FAKE.reshape(1, 1, 2, 2)
    assert torch.equal(discriminator_loss(real_map, fake_map), discriminator_loss(REAL, FAKE))
    plugin = BCE(kind=kind)
    as_map = plugin.generator_loss(fake_logits=fake_map)["G/adversarial"]
    assert torch.equal(as_map, plugin.generator_loss(fake_logits=FAKE)["G/adversarial"])


def test_only_the_nonsaturating_generator_learns_from_surely_rejected_fakes():
    slopes = {}
    for kind in ("nonsaturating", "minimax"):
        rejected = torch.full((1, 1), -20.0, dtype=torch.float64, requires_grad=True)
        BCE(kind=kind).generator_loss(fake_logits=rejected)["G/adversarial"].backward()
        slopes[kind] = rejected.grad.item()
    # -(1 - sigmoid(f)) and -sigmoid(f): both ask for a larger logit
    assert slopes["nonsaturating"] == pytest.approx(-1, abs=1e-8)
    assert slopes["minimax"] == pytest.approx(-1 / (1 + math.exp(20)), rel=1e-6)


def test_the_weight_is_on_the_generator_alone():
    half = BCE(weight=Schedule.constant(0.5))
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(FAKE)
    unweighted = half.discriminator_loss(REAL, FAKE, ones, zeros)
    assert torch.equal(unweighted, discriminator_loss(REAL, FAKE))
    assert half.generator_loss(fake_logits=FAKE)["G/adversarial"].item() == pytest.approx(
        1.385821 / 2, abs=1e-6
    )


def test_huge_logits_give_finite_losses():
    huge = torch.tensor([[1e4], [-1e4]])
    assert discriminator_loss(huge, huge).item() == pytest.approx(1e4)
