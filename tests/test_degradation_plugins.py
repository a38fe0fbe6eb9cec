"""The degradations as plugins of a chain: shares, ranges, chains and what does not change."""

import math

import pluggy
import pytest
import torch
from ganlab_plugins.gaussian_blur import GaussianBlur
from ganlab_plugins.gaussian_noise import GaussianNoise
from ganlab_plugins.jpeg import Jpeg
from ganlab_plugins.poisson_noise import PoissonNoise
from ganlab_plugins.random_resize import RandomResize
from ganlab_plugins.sinc import Sinc
from pydantic import ValidationError
from torch import Tensor

from ganlab import Plugin, RecipeError, degradation, hookimpl, hookspecs
from ganlab.testing import seeded

EVERY = [GaussianBlur, Sinc, RandomResize, GaussianNoise, PoissonNoise, Jpeg]
SAME_SIZE = [GaussianBlur, Sinc, GaussianNoise, PoissonNoise, Jpeg]


class Images:
    @hookimpl(trylast=True)
    def degrade(self, images):
        return images


def degrade(images: Tensor, *plugins: Plugin, seed: int = 1) -> Tensor:
    """What a chain of plugins makes of images at one moment of a run."""
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Images())
    for plugin in plugins:
        manager.register(seeded(plugin, seed, 0, "D", 0))
    manager.check_pending()
    before = torch.get_rng_state()
    made = manager.hook.degrade(images=images)
    assert torch.equal(torch.get_rng_state(), before), "it drew from torch's own stream"
    return made


def images(n=2, shape=(3, 24, 33), dtype=torch.float64) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def share_bound(probability: float, draws: int) -> float:
    return 5 * math.sqrt(probability * (1 - probability) / draws) + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 24, 33), (1, 7, 5), (3, 1, 1)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("plugin", EVERY)
def test_images_of_any_size_keep_their_range_and_dtype(plugin, n, shape, dtype):
    x = images(n, shape, dtype)
    made = degrade(x, plugin())
    assert made.shape[:2] == x.shape[:2] and made.dtype == dtype
    assert made.isfinite().all()
    assert made.min() >= -1e-6 and made.max() <= 1 + 1e-6
    if plugin in SAME_SIZE:
        assert made.shape == x.shape


@pytest.mark.parametrize("plugin", EVERY)
def test_the_seed_alone_decides(plugin):
    x = images(3)
    made = degrade(x, plugin())
    assert torch.equal(made, degrade(x, plugin()))
    other = degrade(x, plugin(), seed=2)
    assert made.shape != other.shape or not torch.equal(made, other)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("plugin", SAME_SIZE)
def test_it_happens_to_its_share_of_the_images(plugin, probability):
    x = 0.2 + 0.6 * images(1200, (3, 8, 8), torch.float32)
    # the narrowest of kernels leave float32 images as they are
    wide = {"sigma": (1.0, 3.0)} if plugin is GaussianBlur else {}
    changed = (degrade(x, plugin(probability=probability, **wide)) != x).flatten(1).any(1)
    share = changed.double().mean().item()
    assert share == pytest.approx(probability, abs=share_bound(probability, 1200))


@pytest.mark.parametrize("plugin", SAME_SIZE)
def test_equal_images_of_a_batch_become_different_ones(plugin):
    made = degrade(images(1).expand(4, -1, -1, -1), plugin(probability=1.0))
    assert all(not torch.equal(made[0], other) for other in made[1:])


def test_the_blur_has_the_width_of_its_range():
    point = torch.zeros(200, 1, 21, 21, dtype=torch.float64)
    point[..., 10, 10] = 1
    isotropic = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    plugin = GaussianBlur(sigma=(0.5, 1.5), probabilities=isotropic, kernel_sizes=(15, 15))
    blurred = degrade(point, plugin)
    sigma = (-0.5 / (blurred[:, 0, 10, 11] / blurred[:, 0, 10, 10]).log()).sqrt()
    assert sigma.min() > 0.5 - 1e-9 and sigma.max() < 1.5 + 1e-9
    assert sigma.mean().item() == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(200, dtype=torch.float64))


def test_a_sinc_stops_a_wave_above_its_cut_off_and_passes_one_below():
    column = torch.arange(96, dtype=torch.float64)

    def wave(frequency: float) -> Tensor:
        return 0.5 + 0.3 * torch.cos(frequency * column).expand(1, 3, 24, -1)

    plugin = Sinc(probability=1.0, cutoff=(1.5, 1.5), kernel_sizes=(21, 21))
    stopped, passed = (degrade(wave(f), plugin)[..., 20:-20] for f in (2.6, 0.5))
    assert stopped.std() < 0.05 * wave(2.6).std()
    assert passed.std() == pytest.approx(wave(0.5)[..., 20:-20].std().item(), rel=0.1)


def test_noise_of_a_single_strength_has_it():
    flat = torch.full((1, 3, 120, 120), 0.5, dtype=torch.float64)
    noise = degrade(flat, GaussianNoise(sigma=(12, 12), grey_probability=0.0)) - 0.5
    assert noise.std().item() * 255 == pytest.approx(12, rel=0.02)
    noise = degrade(flat, PoissonNoise(scale=(0.1, 0.1), grey_probability=0.0)) - 0.5
    # one level, so one photon: variance 0.1^2 * 128 / 255
    assert noise.var().item() == pytest.approx(0.01 * 128 / 255, rel=0.05)


@pytest.mark.parametrize("plugin", [GaussianNoise, PoissonNoise])
@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_grey_noise_has_equal_channels(plugin, grey):
    flat = torch.full((4, 3, 9, 9), 0.5, dtype=torch.float64)
    strength = {"sigma": (5.0, 9.0)} if plugin is GaussianNoise else {"scale": (0.05, 0.1)}
    noise = degrade(flat, plugin(grey_probability=grey, **strength))
    equal = torch.equal(noise[:, 0], noise[:, 1]) and torch.equal(noise[:, 0], noise[:, 2])
    assert equal is bool(grey)


def test_jpeg_of_a_single_quality_is_that_of_the_library():
    x = images(3)
    made = degrade(x, Jpeg(quality=(40, 40)))
    assert torch.equal(made, degradation.jpeg(x, torch.full((3,), 40.0)))


def test_only_the_differentiable_jpeg_lets_the_gradient_through():
    for differentiable in (True, False):
        x = images(1).requires_grad_()
        degrade(x, Jpeg(differentiable=differentiable)).sum().backward()
        assert bool(x.grad.any()) is differentiable


# --- resizing ------------------------------------------------------------------------------------


def test_random_sizes_follow_the_probabilities_and_stay_in_the_range():
    x = images(1, (1, 200, 100), torch.float32)
    heights = [degrade(x, RandomResize(), seed=seed).shape[-2] for seed in range(150)]
    assert min(heights) >= 30 and max(heights) <= 300
    for share, probability in (
        (sum(h > 200 for h in heights) / 150, 0.2),
        (sum(h < 200 for h in heights) / 150, 0.7),
        (sum(h == 200 for h in heights) / 150, 0.1),
    ):
        assert share == pytest.approx(probability, abs=share_bound(probability, 150))


def test_a_chain_that_ends_at_a_scale_has_exactly_that_size():
    x = images(2, (3, 24, 36))
    for seed in range(10):
        chain = RandomResize(), GaussianNoise(), RandomResize(to_scale=4)
        assert degrade(x, *chain, seed=seed).shape == (2, 3, 6, 9)


@pytest.mark.parametrize("mode", degradation.MODES)
def test_a_single_mode_is_that_of_the_library(mode):
    x = images(2, (3, 24, 36))
    made = degrade(x, RandomResize(to_scale=3, modes=(mode,)))
    assert torch.equal(made, degradation.resample(x, (8, 12), mode).clamp(0, 1))


def test_what_the_scale_does_not_divide_is_refused_with_the_remedy():
    with pytest.raises(RecipeError, match=r"cannot shrink 33 x 24 images by 4.*multiple of 4"):
        degrade(images(), RandomResize(to_scale=4))


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "options", "words"),
    [
        (GaussianBlur, {"sigma": (3.0, 0.2)}, "lower bound first"),
        (GaussianBlur, {"sigma": (0.0, 0.2)}, "greater than 0"),
        (GaussianBlur, {"kernel_sizes": (8, 21)}, "must be odd"),
        (GaussianBlur, {"probabilities": (0.5, 0.5, 0.5, 0.0, 0.0, 0.0)}, "sum to 1"),
        (GaussianBlur, {"generalized_beta": (2.0, 4.0)}, "contains 1"),
        (Sinc, {"cutoff": (1.0, 4.0)}, "less than or equal to 3.14"),
        (Sinc, {"kernel_sizes": (7, 20)}, "must be odd"),
        (RandomResize, {"range": (1.2, 1.5)}, "less than or equal to 1"),
        (RandomResize, {"to_scale": 4, "range": (0.2, 1.5)}, "leave range out"),
        (RandomResize, {"modes": ()}, "at least 1"),
        (GaussianNoise, {"sigma": (1.0, 300.0)}, "less than or equal to 255"),
        (PoissonNoise, {"scale": (-1.0, 1.0)}, "greater than or equal to 0"),
        (Jpeg, {"quality": (0.0, 50.0)}, "greater than or equal to 1"),
        (Jpeg, {"probability": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_options_are_refused(plugin, options, words):
    with pytest.raises(ValidationError, match=words):
        plugin(**options)


def test_to_scale_beside_spelt_out_defaults_is_accepted():
    defaults = {name: getattr(RandomResize(), name) for name in ("range", "probabilities")}
    assert RandomResize(to_scale=4, **defaults).to_scale == 4
