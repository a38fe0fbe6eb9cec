"""Noise, resizing and draws of the degradation library, against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import degradation, round_to_8_bits


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n=3, shape=(3, 24, 31), dtype=torch.float64, seed=0) -> Tensor:
    return torch.rand(n, *shape, generator=rng(seed), dtype=dtype)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def binomial_bound(probability: float, draws: int) -> float:
    """Five standard errors of a share."""
    return 5 * math.sqrt(probability * (1 - probability) / draws) + 1e-12


# --- noise ---------------------------------------------------------------------------------------

NOT_GREY = torch.zeros(2, 1, 1, 1, dtype=torch.bool)
FLAT = torch.full((2, 3, 90, 91), 0.5, dtype=torch.float64)


def test_gaussian_noise_has_the_stated_deviation_in_grey_levels():
    noise = degradation.add_gaussian_noise(FLAT, column(5, 20), NOT_GREY, rng()) - 0.5
    for n, sigma in enumerate((5, 20)):  # 24,570 draws: a standard error of 0.5 %
        assert noise[n].std().item() * 255 == pytest.approx(sigma, rel=0.025)
        assert noise[n].mean().item() * 255 == pytest.approx(0, abs=5 * sigma / 150)


@pytest.mark.parametrize("add", [degradation.add_gaussian_noise, degradation.add_speckle_noise])
def test_grey_noise_is_the_same_in_all_channels_and_another_in_each_image(add):
    grey = torch.tensor([True, False, True])[:, None, None, None]
    noise = add(FLAT[:1].expand(3, -1, -1, -1), column(10, 10, 10), grey, rng()) - 0.5
    shared = [torch.equal(n[0], n[1]) and torch.equal(n[0], n[2]) for n in noise]
    assert shared == [True, False, True]
    assert not torch.equal(noise[0], noise[2])


def test_speckle_grows_with_the_image():
    ramp = torch.tensor([0.2, 0.4], dtype=torch.float64)[:, None, None, None].expand(2, 3, 90, 91)
    noise = degradation.add_speckle_noise(ramp, column(20, 20), NOT_GREY, rng()) - ramp
    for n, level in enumerate((0.2, 0.4)):
        assert noise[n].std().item() * 255 == pytest.approx(20 * level, rel=0.025)
    black = torch.zeros_like(FLAT)
    assert torch.equal(degradation.add_speckle_noise(black, column(9, 9), NOT_GREY, rng()), black)


def test_correlated_noise_has_the_stated_covariance():
    covariance = torch.tensor(
        [[[4.0, 1.0, 0.5], [1.0, 2.0, 0.3], [0.5, 0.3, 1.0]]], dtype=torch.float64
    ) * (1e-2**2)
    noise = degradation.add_correlated_noise(FLAT[:1].repeat(1, 1, 2, 1), covariance, rng()) - 0.5
    measured = torch.cov(noise[0].flatten(1))
    torch.testing.assert_close(measured, covariance[0], rtol=0, atol=1.5e-5)


@pytest.mark.parametrize(
    ("num_levels", "photons"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (129, 256), (256, 256)]
)
def test_the_poisson_rate_is_the_next_power_of_two_of_the_number_of_levels(num_levels, photons):
    levels = torch.arange(3 * 10 * 10).remainder(num_levels).view(1, 3, 10, 10)
    half = torch.zeros(1, 3, 10, 10)
    half[..., 5:] = 1.0  # another image beside it counts for itself
    rates = degradation.num_photons(torch.cat([levels / 255, half]))
    assert rates.flatten().tolist() == [photons, 2]


def test_the_poisson_rate_is_that_of_counting_the_unique_levels():
    x = images(4, (3, 9, 7)) ** 3
    for n, image in enumerate(round_to_8_bits(x)):
        number = len(torch.unique(image))
        assert degradation.num_photons(x)[n].item() == 2 ** math.ceil(math.log2(number))


def test_poisson_noise_has_the_variance_of_its_mean_over_the_rate():
    # two levels, so two photons at full intensity; P / 2 - J has variance J / 2
    x = torch.full((1, 3, 200, 100), 51 / 255, dtype=torch.float64)
    x[..., 50:] = 0.0
    scale = 0.05
    ungrey = NOT_GREY[:1]
    noise = degradation.add_poisson_noise(0.5 + 0 * x, column(scale), ungrey, rng()) - 0.5
    assert noise.var().item() == pytest.approx(scale**2 * (128 / 255) / 1, rel=0.03)
    noise = degradation.add_poisson_noise(x, column(scale), ungrey, rng()) - x
    dark, bright = noise[..., 50:], noise[..., :50]
    assert not dark.any()
    # a negative value is not reached: 0.2 - 0.05 * 0.2 is the least
    assert bright.var().item() == pytest.approx(scale**2 * 0.2 / 2, rel=0.05)
    assert bright.mean().item() == pytest.approx(0, abs=5 * scale * (0.1 / 30_000) ** 0.5)


def test_grey_poisson_noise_comes_from_the_luma():
    # red and green of one luma level, so one photon, and the same noise in all channels
    x = torch.tensor([0.8, 0.3, 0.6], dtype=torch.float64)[None, :, None, None]
    x = x.expand(1, 3, 150, 100)
    luma = (0.299 * 0.8 + 0.587 * 0.3 + 0.114 * 0.6) * 255
    noise = degradation.add_poisson_noise(x, column(0.02), ~NOT_GREY[:1], rng()) - x
    torch.testing.assert_close(noise[:, 0], noise[:, 1])
    expected = 0.02**2 * round(luma) / 255
    assert noise[:, 0].var().item() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("make", ["gaussian", "poisson"])
def test_random_noise_is_grey_with_its_probability_and_clipped(make):
    x = images(2000, (3, 2, 2))
    draw = getattr(degradation, f"random_{make}_noise")
    noisy = draw(x, (5.0, 10.0) if make == "gaussian" else (0.05, 3.0), 0.4, rng())
    assert noisy.min() >= 0 and noisy.max() <= 1
    inside = ((noisy > 0) & (noisy < 1)).flatten(1).all(1)
    noise = (noisy - x)[inside]
    share = ((noise[:, 0] - noise[:, 1]).abs().amax((1, 2)) < 1e-9).double().mean().item()
    if make == "gaussian":
        assert share == pytest.approx(0.4, abs=binomial_bound(0.4, int(inside.sum())) + 0.03)
    else:
        assert 0.1 < share < 0.7  # clipping picks among them
    assert torch.equal(noisy, draw(x, *((5.0, 10.0) if make == "gaussian" else (0.05, 3.0),),
                                   0.4, rng()))  # fmt: skip


# --- resizing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", degradation.MODES)
@pytest.mark.parametrize("size", [(24, 31), (7, 9), (50, 41), (1, 1)])
def test_resizing_keeps_a_constant_and_the_stated_size(mode, size):
    made = degradation.resample(torch.full((2, 3, 24, 31), 0.25), size, mode)
    assert made.shape == (2, 3, *size)
    torch.testing.assert_close(made, torch.full_like(made, 0.25))


@pytest.mark.parametrize("mode", degradation.MODES)
def test_resizing_to_the_same_size_changes_nothing(mode):
    torch.testing.assert_close(degradation.resample(images(), (24, 31), mode), images())


def test_area_is_the_mean_of_blocks_and_bilinear_reads_the_middle_alone():
    x = images(1, (1, 12, 16))
    torch.testing.assert_close(degradation.resample(x, (3, 4), "area"), F.avg_pool2d(x, 4))
    middle = F.avg_pool2d(x[..., 1:-1, 1:-1], 2, stride=4)
    torch.testing.assert_close(degradation.resample(x, (3, 4), "bilinear"), middle)


def test_resizing_keeps_the_corners_together():
    # a ramp stays a ramp over the same field of view, whatever the ratio
    ramp = ((torch.arange(50, dtype=torch.float64) + 0.5) / 50).expand(1, 1, 50, 50)
    small = degradation.resample(ramp, (37, 37), "bilinear")[0, 0, 0]
    torch.testing.assert_close(small, (torch.arange(37, dtype=torch.float64) + 0.5) / 37)


def test_random_scales_follow_the_table_of_real_esrgan():
    draws, host = 4000, rng()
    scales = column(
        *(degradation.random_scale((0.2, 0.7, 0.1), (0.15, 1.5), host) for _ in range(draws))
    )
    assert scales.min() >= 0.15 and scales.max() <= 1.5
    for happens, probability in (((scales > 1), 0.2), ((scales < 1), 0.7), ((scales == 1), 0.1)):
        share = happens.double().mean().item()
        assert share == pytest.approx(probability, abs=binomial_bound(probability, draws))
    assert scales[scales < 1].mean().item() == pytest.approx(0.575, abs=0.02)


def test_the_modes_come_equally_often():
    host = rng()
    modes = [degradation.random_mode(degradation.MODES, host) for _ in range(3000)]
    for mode in degradation.MODES:
        assert modes.count(mode) / 3000 == pytest.approx(1 / 3, abs=binomial_bound(1 / 3, 3000))


def test_a_random_order_holds_every_index_once():
    orders = [tuple(degradation.host_order(4, rng(seed))) for seed in range(200)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) == 24


def test_a_chance_of_0_never_and_of_1_always_happens():
    assert not degradation.chance(0.0, torch.zeros(1000), rng()).any()
    assert degradation.chance(1.0, torch.zeros(1000), rng()).all()


def test_draws_need_no_generator_and_follow_one_that_is_given():
    like = torch.zeros(5, dtype=torch.float64)
    assert degradation.uniform((2.0, 3.0), like, None).shape == (5,)
    one, other = (degradation.uniform((2.0, 3.0), like, rng(s)) for s in (1, 2))
    assert torch.equal(one, degradation.uniform((2.0, 3.0), like, rng(1)))
    assert not torch.equal(one, other)
    assert one.dtype == torch.float64 and one.min() >= 2 and one.max() <= 3


def test_wrong_ranges_and_probabilities_are_named():
    with pytest.raises(ValueError, match="lower bound first"):
        degradation.rising((2.0, 1.0))
    for wrong in ((0.5, 0.6), (1.5, -0.5)):
        with pytest.raises(ValueError, match="sum to 1"):
            degradation.summing_to_one(wrong)


def test_all_that_is_exported_exists():
    assert degradation.__all__ == sorted(degradation.__all__)
    assert all(a != b for a, b in pairwise(degradation.__all__))
    assert all(hasattr(degradation, name) for name in degradation.__all__)
