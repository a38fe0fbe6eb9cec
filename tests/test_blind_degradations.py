"""The degradations of Real-ESRGAN and BSRGAN: published parameters, sizes, and each operation."""

import math
from collections import Counter

import pytest
import torch
from ganlab_plugins import bsrgan_degradation, real_esrgan_degradation
from ganlab_plugins.bsrgan_degradation import BSRGANDegradation
from ganlab_plugins.real_esrgan_degradation import RealESRGANDegradation
from pydantic import ValidationError
from test_degradation_plugins import degrade, share_bound
from torch import Tensor

from ganlab import Plugin, RecipeError, degradation, round_to_8_bits

BOTH = [RealESRGANDegradation, BSRGANDegradation]

# The published training options of RealESRGAN_x4plus, first and second round
PUBLISHED = {
    "blur_probability": (1.0, 0.8),
    "kernel_probabilities": ((0.45, 0.25, 0.12, 0.03, 0.12, 0.03),) * 2,
    "sinc_probability": (0.1, 0.1),
    "sigma": ((0.2, 3.0), (0.2, 1.5)),
    "generalized_beta": ((0.5, 4.0), (0.5, 4.0)),
    "plateau_beta": ((1.0, 2.0), (1.0, 2.0)),
    "resize_probabilities": ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3)),
    "resize_range": ((0.15, 1.5), (0.3, 1.2)),
    "gaussian_noise_probability": (0.5, 0.5),
    "noise_sigma": ((1.0, 30.0), (1.0, 25.0)),
    "poisson_scale": ((0.05, 3.0), (0.05, 2.5)),
    "grey_noise_probability": (0.4, 0.4),
    "jpeg_quality": ((30.0, 95.0), (30.0, 95.0)),
}

# nothing but the resizing and the last JPEG, at its finest
HARMLESS = {
    "blur_probability": 0.0,
    "resize_probabilities": (0.0, 0.0, 1.0),
    "gaussian_noise_probability": 1.0,
    "noise_sigma": (0.0, 0.0),
    "jpeg_quality": (100.0, 100.0),
}
CLEAN = {"sharpen": False, "final_sinc_probability": 0.0} | {
    prefix + name: value for name, value in HARMLESS.items() for prefix in ("", "second_")
}


def photo(n: int = 2, height: int = 48, width: int = 64, dtype=torch.float64) -> Tensor:
    """Smooth images with an edge, [n, 3, height, width]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.3 * torch.sin(x / (5 + c) + y / 9 + c) for c in range(3)]
    image = torch.stack(waves) + 0.15 * (x > width // 3)
    return image.clamp(0, 1).to(dtype).expand(n, -1, -1, -1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_esrgans_defaults_are_the_published_ones(name):
    plugin = RealESRGANDegradation()
    assert (getattr(plugin, name), getattr(plugin, f"second_{name}")) == PUBLISHED[name]


def test_real_esrgan_has_no_other_options_than_the_published_ones():
    rest = {"scale", "sharpen", "kernel_sizes", "final_sinc_probability"}
    rounds = {prefix + name for name in PUBLISHED for prefix in ("", "second_")}
    assert set(RealESRGANDegradation.model_fields) == rest | rounds
    assert RealESRGANDegradation().final_sinc_probability == 0.8
    assert RealESRGANDegradation().kernel_sizes == (7, 21)


def test_bsrgans_defaults_are_the_published_ones():
    expected = {
        "scale": 4,
        "halving_probability": 0.25,
        "anisotropic_probability": 0.5,
        "free_resize_probability": 0.75,
        "noise_sigma": (2, 25),
        "noise_probabilities": (0.4, 0.4, 0.2),
        "jpeg_probability": 0.9,
        "jpeg_quality": (30, 95),
    }
    assert BSRGANDegradation().model_dump() == expected


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("plugin", BOTH)
def test_lr_has_exactly_the_size_range_and_levels_of_a_file(plugin, scale, n):
    hr = photo(n, 12 * scale, 7 * scale, torch.float32)
    for seed in range(6):
        lr = degrade(hr, plugin(scale=scale), seed=seed)
        assert lr.shape == (n, 3, 12, 7) and lr.dtype == torch.float32
        assert lr.min() >= 0 and lr.max() <= 1
        torch.testing.assert_close(lr, round_to_8_bits(lr))


@pytest.mark.parametrize("plugin", BOTH)
def test_images_smaller_than_every_kernel_are_degraded_too(plugin):
    for seed in range(6):
        assert degrade(photo(1, 8, 4), plugin(), seed=seed).shape == (1, 3, 2, 1)


@pytest.mark.parametrize("plugin", BOTH)
def test_the_seed_alone_decides(plugin):
    hr = photo()
    lr = degrade(hr, plugin())
    assert torch.equal(lr, degrade(hr, plugin()))
    assert not torch.equal(lr, degrade(hr, plugin(), seed=2))
    assert lr.dtype == torch.float64


@pytest.mark.parametrize("plugin", BOTH)
def test_equal_images_of_a_batch_are_degraded_differently(plugin):
    lr = degrade(photo(3), plugin())
    assert not torch.equal(lr[0], lr[1]) and not torch.equal(lr[1], lr[2])


@pytest.mark.parametrize("plugin", BOTH)
def test_lr_still_shows_the_image(plugin):
    # the mean over many draws is like HR: no shift, no flip, no channel in another's place
    hr = photo(8)
    means = torch.stack([degrade(hr, plugin(), seed=seed).mean(0) for seed in range(8)]).mean(0)
    small = degradation.resample(hr[:1], (12, 16), "area")[0]

    def likeness(lr: Tensor) -> float:
        return torch.corrcoef(torch.stack([lr.flatten(), small.flatten()]))[0, 1].item()

    assert likeness(means) > 0.75
    for other in (means.flip(-1), means.flip(-2), means.flip(-3), means.roll(1, -1)):
        assert likeness(other) < likeness(means) - 0.05


@pytest.mark.parametrize("plugin", BOTH)
def test_a_size_that_the_scale_does_not_divide_is_refused_with_the_remedy(plugin):
    with pytest.raises(RecipeError, match=r"cannot shrink 66 x 48 images by 4.*multiple of 4"):
        degrade(photo(1, 48, 66), plugin())


# --- Real-ESRGAN ---------------------------------------------------------------------------------


def decibels(one: Tensor, other: Tensor) -> float:
    return -10 * math.log10((one - other).square().mean().item() + 1e-12)


def test_with_every_operation_off_it_is_plain_resizing():
    hr = photo(1).mean(1, keepdim=True).expand(-1, 3, -1, -1)  # JPEG halves chroma at any quality
    plain = [degradation.resample(hr, (12, 16), mode) for mode in degradation.MODES]
    for seed in range(5):
        lr = degrade(hr, RealESRGANDegradation(**CLEAN), seed=seed)
        assert max(decibels(lr, other) for other in plain) > 45


def test_lr_is_made_from_the_sharpened_image():
    hr = photo()
    lr = degrade(hr, RealESRGANDegradation())
    assert torch.equal(lr, degrade(degradation.sharpen(hr), RealESRGANDegradation(sharpen=False)))
    assert not torch.equal(lr, degrade(hr, RealESRGANDegradation(sharpen=False)))


@pytest.mark.parametrize(
    "option",
    [
        {"blur_probability": 1.0},
        {"second_blur_probability": 1.0},
        {"noise_sigma": (30.0, 30.0)},
        {"second_noise_sigma": (25.0, 25.0)},
        {"gaussian_noise_probability": 0.0},
        {"second_gaussian_noise_probability": 0.0},
        {"jpeg_quality": (30.0, 30.0)},
        {"second_jpeg_quality": (30.0, 30.0)},
        {"final_sinc_probability": 1.0},
        {"resize_probabilities": (0.0, 1.0, 0.0), "resize_range": (0.15, 1.0)},
        {"second_resize_probabilities": (0.0, 1.0, 0.0), "second_resize_range": (0.3, 1.0)},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_makes_lr_worse_by_itself(option):
    hr = photo(4)
    clean = degrade(hr, RealESRGANDegradation(**CLEAN))
    worse = degrade(hr, RealESRGANDegradation(**(CLEAN | option)))
    assert (worse - clean).abs().mean() > 0.2 / 255


def operations(monkeypatch: pytest.MonkeyPatch, plugin: Plugin, seed: int) -> list[str]:
    """The library's functions that a plugin called, in order, with the sizes of resizing."""
    called: list[str] = []

    def watched(name, function):
        def call(*arguments):
            called.append(f"{name} {arguments[1]}" if name == "resample" else name)
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("filter_images", "resample", "jpeg", "random_poisson_noise"):
            patch.setattr(degradation, name, watched(name, getattr(degradation, name)))
        degrade(photo(1, 16, 16), plugin, seed=seed)
    return called


def test_the_last_resize_and_sinc_come_before_or_after_the_last_jpeg(monkeypatch):
    plugin = RealESRGANDegradation(second_resize_probabilities=(0.0, 1.0, 0.0), sharpen=False)
    found = Counter()
    for seed in range(60):
        called = operations(monkeypatch, plugin, seed)
        assert called[0] == "filter_images" and called[1].startswith("resample")
        assert called[2:5] == ["random_poisson_noise", "jpeg", "filter_images"]
        assert called[6] == "random_poisson_noise"
        found[tuple(called[7:])] += 1
    before = ("resample (4, 4)", "filter_images", "jpeg")
    after = ("jpeg", "resample (4, 4)", "filter_images")
    assert set(found) == {before, after}
    assert found[before] / 60 == pytest.approx(0.5, abs=share_bound(0.5, 60))


def test_the_kind_of_noise_is_drawn_for_each_image_with_its_probability():
    flat = torch.full((1500, 3, 4, 4), 0.5, dtype=torch.float64)
    # Poisson of one photon at scale 2 jumps by far more than Gaussian noise of one level
    options = {"noise_sigma": (1.0, 1.0), "poisson_scale": (2.0, 2.0)}
    plugin = RealESRGANDegradation(gaussian_noise_probability=0.3, **options)
    weak = (plugin._noisy(flat, "") - 0.5).abs().flatten(1).amax(1) < 0.1
    assert weak.double().mean().item() == pytest.approx(0.3, abs=share_bound(0.3, 1500))


def test_even_kernels_are_refused():
    with pytest.raises(ValidationError, match="must be odd"):
        RealESRGANDegradation(kernel_sizes=(8, 21))


def test_the_two_modules_share_no_mathematics_of_their_own():
    for module in (real_esrgan_degradation, bsrgan_degradation):
        assert not {"conv2d", "exp", "poisson", "randn"} & set(dir(module))


# --- BSRGAN --------------------------------------------------------------------------------------


def test_the_orders_are_all_those_with_the_shrink_to_lr_after_the_free_one():
    orders = Counter(
        tuple(bsrgan_degradation.order(torch.Generator().manual_seed(seed))) for seed in range(6000)
    )
    names = ["blur", "blur", "jpeg", "noise", "shrink freely", "shrink to LR"]
    assert all(sorted(order) == names for order in orders)
    assert all(order.index("shrink freely") < order.index("shrink to LR") for order in orders)
    # 6! / 2 for the two equal blurs / 2 for the fixed pair
    assert len(orders) == 180
    assert max(orders.values()) < 3 * 6000 / 180


def test_a_quarter_of_the_batches_are_halved_first_at_x4_alone(monkeypatch):
    monkeypatch.setattr(bsrgan_degradation, "order", lambda generator: [])
    monkeypatch.setattr(BSRGANDegradation, "_compressed", lambda self, images: images)
    for scale, expected, draws in ((4, 0.25, 200), (2, 0.0, 20)):
        plugin = BSRGANDegradation(scale=scale)
        halved = [degrade(photo(1, 8, 8), plugin, seed=s).shape[-1] == 4 for s in range(draws)]
        assert sum(halved) / draws == pytest.approx(expected, abs=share_bound(expected, draws))


def test_the_shifted_gaussian_keeps_the_image_in_its_place():
    # a ramp sampled every s-th pixel after it has the values of the means of s x s pixels
    ramp = (torch.arange(64, dtype=torch.float64) / 64).expand(1, 3, 64, 64)
    plugin = BSRGANDegradation(free_resize_probability=0.0)
    for scale in (2, 3, 4):
        side = 64 // scale * scale
        small = plugin._shrunk_freely(ramp[..., :side, :side], scale)
        block = torch.nn.functional.avg_pool2d(ramp[..., :side, :side], scale)
        inside = slice(16 // scale, -16 // scale)
        torch.testing.assert_close(small[..., inside], block[..., inside], rtol=0, atol=2e-3)


def test_a_free_shrink_is_by_1_to_twice_the_scale():
    plugin = BSRGANDegradation(free_resize_probability=1.0)
    sides = [plugin._shrunk_freely(photo(1, 160, 160), 4).shape[-1] for _ in range(60)]
    assert min(sides) >= 20 and max(sides) <= 160 and len(set(sides)) > 20


def test_noise_is_grey_colour_or_correlated_with_the_stated_probabilities():
    flat = torch.full((1500, 3, 4, 4), 0.5, dtype=torch.float64)
    noise = BSRGANDegradation()._noisy(flat) - 0.5
    grey = (noise[:, 0] == noise[:, 1]).flatten(1).all(1)
    assert grey.double().mean().item() == pytest.approx(0.4, abs=share_bound(0.4, 1500))
    flat = flat[:300].repeat(1, 1, 8, 8)
    noise = BSRGANDegradation(noise_probabilities=(0.0, 0.0, 1.0))._noisy(flat) - 0.5
    # all covariances are positive, and the deviation at most that of the loudest noise
    products = (noise[:, 0] * noise[:, 1]).mean((1, 2))
    assert (products > 0).double().mean() > 0.9
    assert noise.flatten(1).std(1).max() * 255 < 27


def test_random_covariances_are_symmetric_and_of_the_stated_level():
    generator = torch.Generator().manual_seed(0)
    made = bsrgan_degradation.random_covariance(torch.zeros(200, 3), 0.1, generator)
    assert made.shape == (200, 3, 3) and (made >= 0).all()
    torch.testing.assert_close(made, made.mT)
    trace = made.diagonal(dim1=1, dim2=2).sum(1) / 0.1**2  # of D: three of U(0, 1)
    assert trace.max() < 3 and trace.mean().item() == pytest.approx(1.5, abs=0.15)
    assert torch.linalg.matrix_rank(made).min() == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_sigma": (25, 2)}, "lower bound first"),
        ({"noise_probabilities": (0.4, 0.4, 0.4)}, "sum to 1"),
        ({"jpeg_quality": (30, 101)}, "less than or equal to 100"),
        ({"scale": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        BSRGANDegradation(**options)
