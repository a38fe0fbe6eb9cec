"""MS-SSIM, radial spectrum and checkerboard against closed forms and scikit-image."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ganlab_plugins.checkerboard import Checkerboard
from ganlab_plugins.ms_ssim import MSSSIM
from ganlab_plugins.radial_spectrum import RadialSpectrum
from pydantic import ValidationError
from skimage.metrics import structural_similarity
from torch import Tensor

from ganlab import Plugin, RecipeError, luma

X4 = SimpleNamespace(scale=4)


def noise(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, generator=rng, dtype=torch.uint8)


def flat(value: int, side: int) -> Tensor:
    return torch.full((1, 1, side, side), value, dtype=torch.uint8)


def score(plugin: Plugin, sr: Tensor, hr: Tensor, scale: int = 4) -> float:
    return plugin.score_images(SimpleNamespace(scale=scale), sr, hr)[plugin.name]


PLUGINS = [
    pytest.param(MSSSIM(), 1.0, id="ms_ssim"),
    pytest.param(RadialSpectrum(), 0.0, id="radial_spectrum"),
    pytest.param(Checkerboard(), 1.0, id="checkerboard"),
]


@pytest.mark.parametrize(("plugin", "right"), PLUGINS)
@pytest.mark.parametrize("shape", [(1, 3, 184, 197), (1, 1, 185, 184)])
def test_equal_images_are_right(plugin, right, shape):
    assert score(plugin, noise(*shape), noise(*shape)) == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize(("plugin", "right"), PLUGINS)
def test_flat_images_have_finite_figures(plugin, right):
    figures = plugin.score_images(X4, flat(0, 200), flat(90, 200))
    assert all(math.isfinite(figure) for figure in figures.values())
    figures = plugin.score_images(X4, flat(0, 200), noise(1, 1, 200, 200))
    assert all(math.isfinite(figure) for figure in figures.values())


# --- MS-SSIM -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 110)])
def test_ms_ssim_of_flat_images_is_the_luminance_term_to_the_last_weight(a, b):
    c1 = (0.01 * 255) ** 2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    assert score(MSSSIM(), flat(a, 200), flat(b, 200)) == pytest.approx(luminance**0.1333)


def test_ms_ssim_is_that_of_scikit_images_ssim_on_halved_images():
    hr = noise(1, 3, 197, 210)
    sr = (hr // 2 + noise(1, 3, 197, 210, high=100)).to(torch.uint8)
    a, b = (luma(image)[0, 0, 4:-4, 4:-4].numpy() for image in (sr, hr))
    expected = 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        options = {"K1": 0.01 if weight == 0.1333 else 1e9}  # so large that luminance is 1
        expected *= _similarity(a, b, **options) ** weight
        a, b = (_halved(planes) for planes in (a, b))
    assert score(MSSSIM(), sr, hr) == pytest.approx(expected, abs=1e-9)


def _similarity(a: np.ndarray, b: np.ndarray, **options: float) -> float:
    fixed = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5}
    return structural_similarity(a, b, use_sample_covariance=False, **fixed, **options)


def _halved(planes: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, the edge mirrored where a side is odd."""
    mirrored = np.pad(planes, [(0, side % 2) for side in planes.shape], mode="symmetric")
    return (mirrored[::2] + mirrored[1::2])[:, ::2] / 4 + (mirrored[::2] + mirrored[1::2])[
        :, 1::2
    ] / 4


def test_ms_ssim_of_a_negative_has_a_value():
    hr = noise(1, 1, 190, 190)
    assert score(MSSSIM(), 255 - hr, hr) == 0


def test_ms_ssim_wants_176_pixels_after_the_shave():
    plugin = MSSSIM()
    assert score(plugin, flat(1, 184), flat(1, 184)) == pytest.approx(1)
    with pytest.raises(RecipeError, match="at least 184 pixels a side, not 183 x 183"):
        score(plugin, flat(1, 183), flat(1, 183))
    run = SimpleNamespace(scale=4, held_out={"small": flat(1, 183)[0]})
    with pytest.raises(RecipeError, match="184 pixels a side, and small has 180"):
        plugin.run_start(run)


# --- radial spectrum -----------------------------------------------------------------------------


def test_twice_the_contrast_is_6_decibels_at_every_frequency():
    detail = noise(1, 1, 64, 81, high=90)
    figures = RadialSpectrum().score_images(X4, 2 * detail, detail + 5)
    assert len(figures) == 4
    for figure in figures.values():
        assert figure == pytest.approx(20 * math.log10(2), abs=0.01)  # but for the floor of 1/12


@pytest.mark.parametrize(
    ("cycles", "band"), [(0.05, "low"), (0.1875, "middle"), (0.3, "high"), (0.45, "high")]
)
def test_a_wave_is_found_in_the_band_of_its_frequency(cycles, band):
    hr = noise(1, 1, 128, 96, low=100, high=110)
    wave = 40 * torch.cos(2 * torch.pi * cycles * torch.arange(96.0))
    figures = RadialSpectrum().score_images(X4, (hr + wave).round().to(torch.uint8), hr)
    bands = {name: figures[f"radial_spectrum_{name}"] for name in ("low", "middle", "high")}
    assert max(bands, key=bands.get) == band
    others = [abs(bands[name]) for name in bands.keys() - {band}]
    assert max(others) < 1 < bands[band]  # rounding the wave leaves some at other frequencies


def test_the_power_of_white_noise_is_its_variance_at_every_frequency():
    # uniform over 0..99: variance 833.25, here with the rounding's 1/12 against a flat image's
    figures = RadialSpectrum().score_images(X4, noise(1, 1, 256, 256, high=100), flat(9, 256))
    expected = 10 * math.log10((833.25 + 1 / 12) / (1 / 12))
    for band in ("middle", "high"):  # the smallest rings have too few frequencies for a mean
        assert figures[f"radial_spectrum_{band}"] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("edges", [(0.2, 0.2), (0.3, 0.2), (0.2, 0.22)])
def test_bands_too_narrow_for_a_ring_are_refused(edges):
    with pytest.raises(ValidationError, match="or lower middle_from"):
        RadialSpectrum(middle_from=edges[0], high_from=edges[1])


# --- checkerboard --------------------------------------------------------------------------------


def board(side: int, period: int, height: int) -> Tensor:
    """Of every `period` pixels a side, one pixel raised."""
    pixels = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    pixels[..., ::period, ::period] = height
    return pixels


@pytest.mark.parametrize("period", [2, 4])
def test_the_power_of_a_pattern_is_known(period):
    # of the pattern's power the share (s^2 - 1) / s^4 of height^2 is at the stride, in s^2 - 1
    # places; a Hann window raises each by (sum v)^2 / sum v^2 = side^2 (1/4)^2 / (3/8)^2
    height, side = 30, 8 * period
    power = height**2 / period**4 * side**2 * (4 / 9)
    found = score(Checkerboard(), 50 + board(128, period, height), flat(50, 128), period)
    assert found == pytest.approx((power + 1 / 12) / (1 / 12), rel=1e-9)


def test_twice_the_pattern_has_four_times_the_power():
    one, two = (100 + board(128, 4, height) for height in (40, 80))
    assert score(Checkerboard(), two, one) == pytest.approx(4, rel=1e-3)


def test_a_wave_of_another_period_is_no_checkerboard():
    hr = noise(1, 1, 128, 128, low=100, high=110)
    for cycles, found in ((3 / 8, False), (1 / 4, True), (1 / 2, True)):
        wave = 20 * torch.cos(2 * torch.pi * cycles * torch.arange(128.0))
        ratio = score(Checkerboard(), (hr + wave).round().to(torch.uint8), hr)
        assert (ratio > 20) == found
        assert found or abs(ratio - 1) < 0.1


def test_the_stride_is_that_of_the_run_or_its_own():
    hr = noise(1, 1, 128, 128, low=100, high=110)
    sr = hr + board(128, 4, 20) - board(128, 2, 5)  # not of period 2 alone
    assert score(Checkerboard(stride=4), sr, hr, 2) == score(Checkerboard(), sr, hr, 4)
    assert score(Checkerboard(stride=2), sr, hr, 4) == score(Checkerboard(), sr, hr, 2)
    assert score(Checkerboard(), sr, hr, 4) != score(Checkerboard(), sr, hr, 2)


def test_a_stride_is_asked_for_where_the_generator_does_not_enlarge():
    run = SimpleNamespace(scale=1, held_out={"a": flat(0, 32)[0]})
    with pytest.raises(RecipeError, match="set stride"):
        Checkerboard().run_start(run)
    Checkerboard(stride=8).run_start(run)
    with pytest.raises(RecipeError, match="36 pixels a side, and a has 32"):
        Checkerboard(stride=9).run_start(run)


def test_a_transposed_convolution_with_an_uneven_kernel_prints_a_checkerboard():
    # Odena et al.: kernel 3 at stride 2 overlaps on every other pixel, kernel 4 on all alike
    hr = noise(1, 1, 128, 128, low=100, high=110)
    lr = torch.full((1, 1, 65, 65), 100.0)
    for kernel, prints in ((3, True), (4, False)):
        weight = torch.full((1, 1, kernel, kernel), 4 / kernel**2)
        made = torch.nn.functional.conv_transpose2d(lr, weight, stride=2)[..., 1:129, 1:129]
        sr = (made + hr - 105).clamp(0, 255).round().to(torch.uint8)
        assert (score(Checkerboard(), sr, hr, 2) > 100) == prints


@pytest.mark.cuda
@pytest.mark.parametrize(("plugin", "right"), PLUGINS)
def test_a_gpu_measures_the_same(plugin, right):
    sr, hr = noise(1, 3, 190, 210), noise(1, 3, 210, 190).transpose(2, 3)
    here, there = plugin.score_images(X4, sr, hr), plugin.score_images(X4, sr.cuda(), hr.cuda())
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert float(there[name]) == pytest.approx(float(value), rel=1e-6)
