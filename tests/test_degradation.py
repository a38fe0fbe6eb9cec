"""The degradation library: kernels and filters against closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import degradation

SIDE = 21


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n=3, shape=(3, 24, 31), dtype=torch.float64, seed=0) -> Tensor:
    return torch.rand(n, *shape, generator=rng(seed), dtype=dtype)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def binomial_bound(probability: float, draws: int) -> float:
    """Five standard errors of a share."""
    return 5 * math.sqrt(probability * (1 - probability) / draws) + 1e-12


# --- kernels -------------------------------------------------------------------------------------

SIGMA, OTHER, ANGLE = column(0.2, 1.3, 3.0), column(2.0, 0.7, 1.1), column(0.0, 0.6, -2.5)
BETA = column(0.5, 1.0, 4.0)
KERNELS = {
    "iso": lambda **more: degradation.gaussian_kernels(SIDE, SIGMA, **more),
    "aniso": lambda **more: degradation.gaussian_kernels(SIDE, SIGMA, OTHER, ANGLE, **more),
    "generalized": lambda **more: degradation.generalized_gaussian_kernels(
        SIDE, BETA, SIGMA, OTHER, ANGLE, **more
    ),
    "plateau": lambda **more: degradation.plateau_kernels(SIDE, BETA, SIGMA, OTHER, ANGLE, **more),
    "sinc": lambda **more: degradation.sinc_kernels(SIDE, column(1.1, 2.0, math.pi), **more),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_has_sum_1_and_is_its_own_half_turn(kind):
    kernels = KERNELS[kind]()
    assert kernels.shape == (3, SIDE, SIDE)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(kernels, kernels.flip(1, 2))
    assert (kernels.amax((1, 2)) == kernels[:, SIDE // 2, SIDE // 2]).all()


@pytest.mark.parametrize("kind", ["iso", "sinc"])
def test_an_isotropic_kernel_is_symmetric_in_rows_and_columns(kind):
    kernels = KERNELS[kind]()
    torch.testing.assert_close(kernels, kernels.mT)
    torch.testing.assert_close(kernels, kernels.flip(1))


@pytest.mark.parametrize("kind", KERNELS)
def test_a_support_cuts_the_kernel_and_pads_it_with_zeros(kind):
    whole, cut = KERNELS[kind](), KERNELS[kind](support=column(7, 13, 21))
    for index, side in enumerate((7, 13, 21)):
        margin = (SIDE - side) // 2
        inner = whole[index, margin : SIDE - margin, margin : SIDE - margin]
        expected = F.pad(inner / inner.sum(), [margin] * 4)
        torch.testing.assert_close(cut[index], expected)


def test_a_gaussian_falls_as_the_exponential_of_the_squared_distance():
    row = degradation.gaussian_kernels(SIDE, column(1.7))[0, SIDE // 2]
    distance = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    torch.testing.assert_close(row / row.max(), torch.exp(-(distance**2) / (2 * 1.7**2)))


def test_the_covariance_of_an_anisotropic_gaussian_is_the_rotated_one():
    sigma_x, sigma_y, angle = 2.0, 1.0, 0.7
    kernel = degradation.gaussian_kernels(31, column(sigma_x), column(sigma_y), column(angle))[0]
    axis = torch.arange(31, dtype=torch.float64) - 15
    covariance = torch.stack(
        [
            (kernel * axis[None, :] ** 2).sum(),
            (kernel * axis[None, :] * axis[:, None]).sum(),
            (kernel * axis[:, None] ** 2).sum(),
        ]
    )
    c, s = math.cos(angle), math.sin(angle)
    expected = column(4 * c * c + s * s, (4 - 1) * c * s, 4 * s * s + c * c)
    torch.testing.assert_close(covariance, expected, rtol=1e-4, atol=1e-4)


def test_a_generalized_gaussian_of_beta_1_is_the_gaussian():
    ones = torch.ones(3, dtype=torch.float64)
    made = degradation.generalized_gaussian_kernels(SIDE, ones, SIGMA, OTHER, ANGLE)
    torch.testing.assert_close(made, KERNELS["aniso"]())


def test_large_betas_make_a_box_of_both_families():
    # q^beta is 0 inside q = 1 and infinite outside: a disc of radius sigma
    beta, sigma = column(5000.0), column(4.5)
    axis = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    disc = (axis[:, None] ** 2 + axis**2 < 4.5**2).to(torch.float64)
    for family in (degradation.generalized_gaussian_kernels, degradation.plateau_kernels):
        torch.testing.assert_close(family(SIDE, beta, sigma)[0], disc / disc.sum())


def test_a_plateau_is_half_as_high_at_distance_sigma_whatever_beta():
    kernels = degradation.plateau_kernels(SIDE, column(1.0, 1.5, 2.0), column(3.0, 3.0, 3.0))
    torch.testing.assert_close(
        kernels[:, 10, 13] / kernels[:, 10, 10], torch.full((3,), 0.5, dtype=torch.float64)
    )


def test_a_sinc_has_its_first_zero_where_the_bessel_function_has():
    # J1 vanishes at 3.8317: the sign changes between 4 and 5 pixels for a cut-off of 0.85
    row = degradation.sinc_kernels(SIDE, column(0.85))[0, 10, 10:]
    assert (row[:5] > 0).all() and row[5] < 0
    scipy_special = pytest.importorskip("scipy.special")
    rho = torch.arange(1, 11, dtype=torch.float64)
    expected = torch.from_numpy(0.85 * scipy_special.j1(0.85 * rho.numpy())) / (2 * math.pi * rho)
    # torch's J1 itself is off by 1e-6 here and there
    expected = expected / (0.85**2 / (4 * math.pi))
    torch.testing.assert_close(row[1:] / row[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_sinc_passes_what_is_below_its_cut_off_and_stops_what_is_above(cutoff):
    kernel = degradation.sinc_kernels(41, column(cutoff))[0]
    gain = torch.fft.fft2(kernel, s=(256, 256)).abs()[0]  # along one axis
    frequency = torch.arange(256) * 2 * math.pi / 256
    assert gain[0].item() == pytest.approx(1)
    assert (gain[frequency < cutoff - 0.25] - 1).abs().max() < 0.13
    assert gain[(frequency > cutoff + 0.25) & (frequency < math.pi)].max() < 0.09


def test_a_vanishing_sigma_gives_the_identity_kernel():
    identity = degradation.identity_kernels(SIDE, column(0.0))
    assert identity.sum() == 1 and identity[0, 10, 10] == 1
    torch.testing.assert_close(degradation.gaussian_kernels(SIDE, column(0.0)), identity)


def test_an_offset_moves_the_centre_of_mass():
    kernel = degradation.gaussian_kernels(25, column(1.0), offset=1.5)[0]
    axis = torch.arange(25, dtype=torch.float64) - 12
    assert (kernel.sum(0) @ axis).item() == pytest.approx(1.5, abs=1e-3)
    assert (kernel.sum(1) @ axis).item() == pytest.approx(1.5, abs=1e-3)


def test_an_even_side_is_refused():
    with pytest.raises(ValueError, match="must be odd"):
        degradation.gaussian_kernels(20, SIGMA)
    with pytest.raises(ValueError, match="must be odd"):
        degradation.filter_images(images(), torch.ones(1, 2, 3, dtype=torch.float64))


# --- random kernels ------------------------------------------------------------------------------


def test_each_kind_of_kernel_comes_with_its_probability():
    draws, probabilities = 10_000, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    kinds = degradation.choice(probabilities, torch.zeros(draws, dtype=torch.float64), rng())
    for kind, probability in enumerate(probabilities):
        share = (kinds == kind).double().mean().item()
        assert share == pytest.approx(probability, abs=binomial_bound(probability, draws))


@pytest.mark.parametrize("kind", [0, 2, 5])
def test_a_kind_of_probability_1_is_always_drawn(kind):
    certain = [float(k == kind) for k in range(6)]
    assert (degradation.choice(certain, torch.zeros(100), rng()) == kind).all()
    assert {degradation.host_choice(certain, rng(seed)) for seed in range(20)} == {kind}


def test_sizes_are_the_odd_numbers_from_7_to_21_equally_often():
    draws = 10_000
    sizes = degradation.random_sizes(torch.zeros(draws), (7, 21), rng())
    assert sorted(set(sizes.tolist())) == [7, 9, 11, 13, 15, 17, 19, 21]
    for size in range(7, 22, 2):
        share = (sizes == size).double().mean().item()
        assert share == pytest.approx(1 / 8, abs=binomial_bound(1 / 8, draws))


def mixture(n: int, probabilities, sigma=(0.2, 3.0), sizes=(21, 21), seed=0) -> Tensor:
    like = torch.zeros(n, dtype=torch.float64)
    return degradation.random_gaussian_kernels(
        like, probabilities, sigma, (0.5, 4.0), (1.0, 2.0), sizes, rng(seed)
    )


@pytest.mark.parametrize("kind", range(6))
def test_only_the_isotropic_kinds_are_round(kind):
    kernels = mixture(40, [float(k == kind) for k in range(6)], sigma=(0.6, 3.0))
    round_ones = (kernels - kernels.mT).abs().amax((1, 2)) < 1e-12
    assert round_ones.all() if kind % 2 == 0 else not round_ones.any()
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(40, dtype=torch.float64))


def test_gaussian_widths_are_uniform_over_their_range():
    kernels = mixture(4000, (1.0, 0, 0, 0, 0, 0), sigma=(0.5, 2.0))
    # k(1) / k(0) = exp(-1 / (2 sigma^2))
    sigma = (-0.5 / (kernels[:, 10, 11] / kernels[:, 10, 10]).log()).sqrt()
    assert sigma.min() >= 0.5 - 1e-9 and sigma.max() <= 2 + 1e-9
    assert sigma.mean().item() == pytest.approx(1.25, abs=0.04)
    assert (sigma < 0.875).double().mean().item() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("kind", [2, 4])
def test_half_of_the_betas_lie_below_1(kind):
    kernels = mixture(4000, [float(k == kind) for k in range(6)], sigma=(2.0, 2.0))
    near, far, middle = kernels[:, 10, 11], kernels[:, 10, 12], kernels[:, 10, 10]
    if kind == 2:  # exp(-q^beta / 2), q = 1/4 at one pixel
        beta = (-2 * (near / middle).log()).log() / math.log(1 / 4)
        low, high, at_most_1 = 0.5, 4.0, 0.5
    else:
        beta = (middle / near - 1).log() / math.log(1 / 4)
        low, high, at_most_1 = 1.0, 2.0, 0.5
        torch.testing.assert_close(far / middle, torch.full_like(far, 0.5))  # q = 1 at two pixels
    assert beta.min() > low - 1e-6 and beta.max() < high + 1e-6
    share = (beta < 1 + 1e-9).double().mean().item()
    assert share == pytest.approx(at_most_1, abs=binomial_bound(0.5, 4000))


def test_a_share_of_the_kernels_is_sinc_instead():
    kernels = degradation.random_kernels(
        torch.zeros(5000, dtype=torch.float64),
        (1.0, 0, 0, 0, 0, 0), 0.1, (0.2, 3.0), (0.5, 4.0), (1.0, 2.0), (7, 21), rng(),
    )  # fmt: skip
    share = (kernels.amin((1, 2)) < 0).double().mean().item()  # a Gaussian is nowhere negative
    assert share == pytest.approx(0.1, abs=binomial_bound(0.1, 5000))


def test_the_cut_off_of_a_large_sinc_begins_lower():
    def cutoffs(sizes: tuple[int, int]) -> Tensor:
        kernels = degradation.random_sinc_kernels(
            torch.zeros(3000, dtype=torch.float64),
            (math.pi / 3, math.pi), sizes, rng(), (math.pi / 5, math.pi),
        )  # fmt: skip
        # k(1) / k(0) = 2 J1(c) / c falls from 1 as c rises to pi
        c = torch.linspace(0.3, 3.3, 3001, dtype=torch.float64)
        ratio = 2 * torch.special.bessel_j1(c) / c
        middle = sizes[1] // 2
        found = kernels[:, middle, middle + 1] / kernels[:, middle, middle]
        return c[torch.searchsorted(-ratio, -found).clamp(max=3000)]

    small, large = cutoffs((7, 11)), cutoffs((13, 21))
    assert math.pi / 3 - 0.01 < small.min() < math.pi / 3 + 0.02
    assert math.pi / 5 - 0.01 < large.min() < math.pi / 5 + 0.02
    assert small.max() < math.pi + 0.01 and large.max() < math.pi + 0.01


# --- filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 24, 31), (1, 5, 9), (4, 1, 2)])
def test_the_identity_kernel_leaves_images_as_they_are(shape, dtype):
    x = images(2, shape, dtype)
    assert torch.equal(degradation.filter_images(x, degradation.identity_kernels(SIDE, x)), x)


def test_every_image_meets_its_own_kernel_in_all_channels():
    x = images(3)
    kernels = KERNELS["aniso"]()
    filtered = degradation.filter_images(x, kernels)
    padded = F.pad(x, [10] * 4, mode="reflect")
    for n in range(3):
        for c in range(3):
            expected = F.conv2d(padded[n, c][None, None], kernels[n][None, None])[0, 0]
            torch.testing.assert_close(filtered[n, c], expected)
    alone = degradation.filter_images(x[1:2], kernels[1:2])
    torch.testing.assert_close(alone, filtered[1:2])


def test_a_kernel_off_the_middle_reads_in_its_direction():
    shift = torch.zeros(1, 3, 3, dtype=torch.float64)
    shift[0, 1, 2] = 1  # reads the pixel to the right
    x = images(1)
    moved = degradation.filter_images(x, shift)
    assert torch.equal(moved[..., :-1], x[..., 1:])
    assert torch.equal(moved[..., -1], x[..., -2])  # reflected, the border not repeated


def test_a_margin_larger_than_the_image_is_reflected_to_and_fro():
    x = torch.tensor([0.0, 1.0, 2.0]).expand(1, 1, 3, 3)
    row = degradation.reflected(x, 0, 5)[0, 0, 0]
    assert row.tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    small = degradation.reflected(images(1, (1, 8, 9)), 7, 8)
    torch.testing.assert_close(small, F.pad(images(1, (1, 8, 9)), (8, 8, 7, 7), mode="reflect"))


def test_the_gradient_of_a_filter_reaches_every_pixel():
    x = images(2, (3, 12, 13)).requires_grad_()
    kernels = degradation.gaussian_kernels(5, column(1.0, 2.0))
    assert torch.autograd.gradcheck(lambda i: degradation.filter_images(i, kernels), x[:, :1])


def test_sharpening_is_unsharp_masking_with_a_gaussian_of_side_51_and_sigma_8():
    x = images(1, (3, 60, 70))
    axis = torch.arange(51, dtype=torch.float64) - 25
    bell = torch.exp(-(axis**2) / (2 * 8.0**2))
    kernel = torch.outer(bell, bell)[None]
    kernel = kernel / kernel.sum()
    residual = x - degradation.filter_images(x, kernel)
    mask = degradation.filter_images((residual.abs() * 255 > 10).double(), kernel)
    expected = mask * (x + 0.5 * residual).clamp(0, 1) + (1 - mask) * x
    torch.testing.assert_close(degradation.sharpen(x), expected)


def test_sharpening_leaves_small_differences_and_steepens_large_ones():
    flat = 0.5 + 9 / 255 * (images(1, (3, 40, 40)) - 0.5)  # all within the threshold of 10
    assert torch.equal(degradation.sharpen(flat), flat)
    step = torch.full((1, 3, 40, 64), 0.3, dtype=torch.float64)
    step[..., 32:] = 0.7
    sharp = degradation.sharpen(step)
    assert sharp[..., 31].max() < 0.3 and sharp[..., 32].min() > 0.7
    assert sharp.min() >= 0 and sharp.max() <= 1
