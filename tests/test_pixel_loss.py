"""The pixel loss has its closed form, and G's gradient."""

import pytest
import torch
from ganlab_plugins.pixel_loss import PixelLoss

from ganlab import Schedule, degradation

REAL = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
FAKE = torch.tensor([0.0, 0.3, -0.4], dtype=torch.float64).reshape(1, 1, 1, 3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("l1", 0.7 / 3),
        ("mse", 0.25 / 3),
        ("charbonnier", (1e-3 + (0.09 + 1e-6) ** 0.5 + (0.16 + 1e-6) ** 0.5) / 3),
    ],
)
def test_each_kind_has_its_closed_form(kind, expected):
    loss = PixelLoss(kind=kind).generator_loss(fake=FAKE, real=REAL)["G/pixel_loss"]
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["l1", "mse", "charbonnier"])
def test_the_gradient_reaches_the_fake_image_alone(kind):
    fake, real = FAKE.clone().requires_grad_(), REAL.clone()
    PixelLoss(kind=kind).generator_loss(fake=fake, real=real)["G/pixel_loss"].backward()
    # zero where the pixel is right (d = 0), and pointing away from the real image elsewhere
    assert torch.sign(fake.grad).flatten().tolist() == [0, 1, -1]
    assert real.grad is None


@pytest.mark.parametrize("kind", ["l1", "mse", "charbonnier"])
def test_the_loss_does_not_depend_on_how_pixels_fall_into_batches(kind):
    fake, real = torch.rand(4, 3, 5, 7), torch.rand(4, 3, 5, 7)
    whole = PixelLoss(kind=kind).generator_loss(fake=fake, real=real)["G/pixel_loss"]
    parts = [
        PixelLoss(kind=kind).generator_loss(fake=f[None], real=r[None])["G/pixel_loss"]
        for f, r in zip(fake, real, strict=True)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_weight_is_read_at_every_iteration():
    weight = Schedule.model_validate({"from": 1.0, "to": 0.0, "over": 10})
    plugin = PixelLoss(weight=weight)
    plugin.weight.advance(4)
    loss = plugin.generator_loss(fake=FAKE, real=REAL)["G/pixel_loss"]
    assert loss.item() == pytest.approx(0.6 * 0.7 / 3)


def test_a_bfloat16_fake_is_compared_in_the_precision_of_the_real_image():
    real = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fake = (real + 0.01).bfloat16()
    loss = PixelLoss(kind="charbonnier").generator_loss(fake=fake, real=real)["G/pixel_loss"]
    expected = torch.sqrt((fake.float() - real) ** 2 + 1e-6).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_two_losses_of_one_recipe_are_logged_under_their_own_names():
    plugin = PixelLoss().bind(name="coarse_loss")
    assert list(plugin.generator_loss(fake=FAKE, real=REAL)) == ["G/coarse_loss"]


def test_it_aims_at_the_sharpened_image_when_asked():
    real = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    sharp = degradation.sharpen(real)
    assert (sharp - real).abs().max() > 0.05
    loss = PixelLoss(sharpen=True)
    assert loss.generator_loss(fake=sharp, real=real)["G/pixel_loss"] == 0
    expected = (sharp - real).abs().mean().item()
    assert loss.generator_loss(fake=real, real=real)["G/pixel_loss"].item() == pytest.approx(
        expected
    )
