"""Content losses that need no other network have their closed forms, and G's gradient."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from ganlab_plugins.focal_frequency_loss import FocalFrequencyLoss
from ganlab_plugins.ldl_loss import LDLLoss, artifact_map
from ganlab_plugins.lr_consistency_loss import LRConsistencyLoss
from ganlab_plugins.ms_ssim_loss import MSSSIMLoss
from ganlab_plugins.pixel_loss import PixelLoss
from ganlab_plugins.ssim_loss import SSIMLoss
from ganlab_plugins.total_variation import TotalVariation
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from ganlab import RecipeError, resize, ssim, to_float
from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

REFERENCED = [
    PixelLoss(kind="huber"),
    SSIMLoss(),
    MSSSIMLoss(scales=2),
    FocalFrequencyLoss(),
    FocalFrequencyLoss(alpha=0.0),
    LDLLoss(),
    LDLLoss(detach_weight=True),
]
NAMES = [type(plugin).__name__ + str(i) for i, plugin in enumerate(REFERENCED)]


def images(n=2, shape=(3, 23, 25), seed=0, dtype=torch.float64):
    return torch.rand(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def value_of(plugin, fake, real, average=None):
    """The one term of a plugin; an averaged generator answers `average`, G's own by default."""
    arguments = {"fake": fake, "real": real}
    if isinstance(plugin, LDLLoss):
        answer = fake.detach() if average is None else average
        plugin._average, plugin._precision = (lambda condition: answer), contextlib.nullcontext
        arguments["condition"] = real[..., ::4, ::4]
    ((name, value),) = plugin.generator_loss(**arguments).items()
    assert name == f"G/{plugin.name}" and value.shape == ()
    return value


@pytest.mark.parametrize("plugin", REFERENCED, ids=NAMES)
@pytest.mark.parametrize("n", [1, 3])
def test_the_gradient_reaches_fake_and_never_real(plugin, n):
    fake, real = images(n).requires_grad_(), images(n, seed=1).requires_grad_()
    value = value_of(plugin, fake, real.detach() if isinstance(plugin, PixelLoss) else real)
    assert value > 0
    value.backward()
    per_image = fake.grad.abs().flatten(1)
    assert fake.grad.isfinite().all() and (per_image.sum(1) > 0).all()
    assert real.grad is None


@pytest.mark.parametrize("plugin", REFERENCED, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_images_cost_nothing_and_pull_nowhere(plugin, dtype):
    real = images(dtype=dtype)
    fake = real.clone().requires_grad_()
    value = value_of(plugin, fake, real)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert fake.grad.abs().max() < 1e-5  # and not NaN


@pytest.mark.parametrize("plugin", REFERENCED[:3], ids=NAMES[:3])  # the others hold a weight fixed
def test_the_gradient_is_the_slope_of_the_value(plugin):
    real, fake = images(), images(seed=1).requires_grad_()
    direction = images(seed=2) - 0.5
    value_of(plugin, fake, real).backward()
    with torch.no_grad():
        ahead, behind = (value_of(plugin, fake + h * direction, real).item() for h in (1e-6, -1e-6))
    slope = (fake.grad * direction).sum().item()
    assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("plugin", REFERENCED, ids=NAMES)
def test_a_batch_is_the_mean_of_its_images(plugin):
    fake, real = images(3), images(3, seed=1)
    whole = value_of(plugin, fake, real)
    parts = [value_of(plugin, f[None], r[None]) for f, r in zip(fake, real, strict=True)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-9)


# --- huber


def test_huber_is_square_within_delta_and_absolute_beyond():
    fake = torch.tensor([0.0, 0.3, -0.4], dtype=torch.float64).reshape(1, 1, 1, 3)
    value = value_of(PixelLoss(kind="huber", delta=0.3), fake, torch.zeros_like(fake))
    assert value.item() == pytest.approx((0.3**2 / 2 + 0.3 * (0.4 - 0.15)) / 3)


def test_huber_with_a_delta_of_1_is_half_the_squared_error():
    fake, real = images(), images(seed=1)
    huber = value_of(PixelLoss(kind="huber", delta=1.0), fake, real)
    assert huber.item() == pytest.approx(F.mse_loss(fake, real).item() / 2)


def test_a_delta_without_huber_is_refused_and_its_default_is_not():
    PixelLoss(kind="l1", delta=0.1)
    with pytest.raises(ValidationError, match="delta changes nothing with kind = 'mse'"):
        PixelLoss(kind="mse", delta=0.2)


# --- SSIM


def test_the_ssim_loss_is_one_minus_the_score():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(0, 256, (2, 3, 24, 31), dtype=torch.uint8, generator=generator)
        for _ in range(2)
    )
    mixed = ((a.int() + b.int()) // 2).to(torch.uint8)
    loss = value_of(SSIMLoss(), to_float(mixed).double(), to_float(a).double())
    expected = 1 - ssim(mixed, a, shave=0, channel="rgb").mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_ssim_of_two_flat_images_is_that_of_their_means():
    fake, real = torch.full((1, 3, 11, 11), 0.5).double(), torch.full((1, 3, 11, 11), 0.25).double()
    expected = 1 - (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert value_of(SSIMLoss(), fake, real).item() == pytest.approx(expected)
    # four scales agree in contrast, the coarsest alone sees the means
    fake, real = (x[..., :1, :1].expand(-1, -1, 176, 176) for x in (fake, real))
    expected = 1 - (1 - expected) ** 0.1333
    weights = sum((0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
    assert weights == pytest.approx(1, abs=1e-4)
    assert value_of(MSSSIMLoss(), fake, real).item() == pytest.approx(expected, rel=1e-3)


def test_ms_ssim_of_two_scales_by_hand():
    real = images()
    fake = (0.8 * real + 0.2 * images(seed=1)).clamp(0, 1)
    window = torch.exp(-((torch.arange(11.0).double() - 5) ** 2) / 4.5)
    window = torch.outer(window, window) / window.sum() ** 2

    def blurred(x):
        flat = x.flatten(0, 1)[:, None]
        return F.conv2d(flat, window[None, None])[:, 0].unflatten(0, x.shape[:2])

    def factors(a, b):
        m, n = blurred(a), blurred(b)
        v, w, c = blurred(a * a) - m * m, blurred(b * b) - n * n, blurred(a * b) - m * n
        return (2 * m * n + 1e-4) / (m * m + n * n + 1e-4), (2 * c + 9e-4) / (v + w + 9e-4)

    def halved(x):  # 23 x 25 -> 12 x 13, the last row and column of one pixel
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2)

    _, fine = factors(fake, real)
    luminance, coarse = factors(halved(fake), halved(real))
    total = 0.0448 + 0.2856
    similarity = fine.mean((1, 2, 3)) ** (0.0448 / total)
    similarity = similarity * (luminance * coarse).mean((1, 2, 3)) ** (0.2856 / total)
    value = value_of(MSSSIMLoss(scales=2), fake, real)
    assert value.item() == pytest.approx(1 - similarity.mean().item(), rel=1e-9)


def test_an_inverted_image_has_a_finite_gradient():
    real = images()
    fake = (1 - real).requires_grad_()  # every contrast factor is negative
    value = value_of(MSSSIMLoss(scales=2), fake, real)
    value.backward()
    assert value > 0.9 and fake.grad.isfinite().all()


def test_a_scale_without_likeness_does_not_silence_the_others():
    noise = images(1, (3, 24, 24)) - 0.5
    smooth = torch.linspace(0.2, 0.8, 24, dtype=torch.float64).expand(1, 3, 24, 24)
    fake = (smooth - 0.3 * noise).requires_grad_()  # the finest contrast factor is negative
    value_of(MSSSIMLoss(scales=2), fake, smooth + 0.3 * noise).backward()
    assert fake.grad.isfinite().all() and fake.grad.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("plugin", "side"), [(SSIMLoss(), 11), (MSSSIMLoss(), 176), (MSSSIMLoss(scales=3), 44)]
)
def test_a_crop_too_small_for_the_window_is_refused_at_the_start(plugin, side):
    plugin.run_start(run=SimpleNamespace(real_shape=(3, side, side)))
    with pytest.raises(RecipeError, match=rf"at least {side} pixels a side.*enlarge the crop"):
        plugin.run_start(run=SimpleNamespace(real_shape=(3, side, side - 1)))
    fake, real = images(1, (3, side, side)), images(1, (3, side, side), seed=1)
    assert value_of(plugin, fake, real).isfinite()


# --- focal frequency


def test_focal_frequency_loss_of_an_impulse_is_one_over_the_pixels():
    fake = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    fake[0, 0, 2, 5] = 1
    value = value_of(FocalFrequencyLoss(), fake, torch.zeros_like(fake))
    assert value.item() == pytest.approx(1 / 64)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_focal_frequency_loss_of_an_offset_is_its_square(alpha):
    real = images(2, (3, 7, 9))
    value = value_of(FocalFrequencyLoss(alpha=alpha), real + 0.1, real)
    assert value.item() == pytest.approx(0.01)


def test_without_focus_it_is_the_squared_error():
    fake, real = images(), images(seed=1)
    value = value_of(FocalFrequencyLoss(alpha=0.0), fake, real)
    assert value.item() == pytest.approx(F.mse_loss(fake, real).item())


def test_focus_squares_the_smaller_of_two_waves():
    # waves of power 1 and 1/4: w is 1 and 1/2, and no other frequency differs
    x = torch.arange(8.0, dtype=torch.float64)[None, None, None].expand(1, 1, 8, 8)
    fake = torch.cos(2 * math.pi * x / 8) + 0.5 * torch.cos(2 * math.pi * 2 * x / 8)
    value = value_of(FocalFrequencyLoss(), fake, torch.zeros_like(fake))
    assert value.item() == pytest.approx(1 / 2 + 0.5 * 0.25 / 2)


def test_the_focus_gets_no_gradient():
    fake, real = images(1, (1, 6, 5)).requires_grad_(), images(1, (1, 6, 5), seed=1)
    value_of(FocalFrequencyLoss(), fake, real).backward()
    difference = torch.fft.fft2((fake - real).detach(), norm="ortho")
    weight = difference.abs() / difference.abs().max()
    expected = 2 * torch.fft.ifft2(weight * difference, norm="ortho").real / 30
    torch.testing.assert_close(fake.grad, expected)


# --- LDL


def test_the_artifact_map_by_hand():
    fake, average, real = images(2), images(2, seed=1), images(2, seed=2)
    found = artifact_map(fake, average, real)
    residual = (fake - real).abs().sum(1)
    kept = residual >= (average - real).abs().sum(1)
    n, y, x = 1, 10, 12
    local = residual[n, y - 3 : y + 4, x - 3 : x + 4].var()
    expected = residual[n].var() ** 0.2 * local * kept[n, y, x]
    assert found.shape == (2, 1, 23, 25)
    assert found[n, 0, y, x].item() == pytest.approx(expected.item())
    # at a corner the window is mirrored: rows and columns 3 2 1 0 1 2 3
    mirrored = [3, 2, 1, 0, 1, 2, 3]
    corner = residual[0][mirrored][:, mirrored].var() * residual[0].var() ** 0.2
    assert artifact_map(fake, fake, real)[0, 0, 0, 0].item() == pytest.approx(corner.item())


def test_only_what_the_average_gets_better_is_an_artifact():
    fake, real = images(), images(seed=1)
    assert (artifact_map(fake, real, real) > 0).all()  # a perfect average
    assert (artifact_map(fake, fake, real) > 0).all()  # as good
    assert (artifact_map(fake, real + 9, real) == 0).all()  # a useless one
    share = (artifact_map(fake, images(seed=2), real) == 0).double().mean()
    assert 0.1 < share < 0.9


def test_ldl_is_l1_weighted_by_the_map():
    fake, average, real = images(), images(seed=1), images(seed=2)
    value = value_of(LDLLoss(), fake, real, average)
    expected = F.l1_loss(
        artifact_map(fake, average, real) * fake, artifact_map(fake, average, real) * real
    )
    assert value.item() == pytest.approx(expected.item())


def test_a_detached_weight_changes_the_gradient_and_not_the_value():
    gradients, values = [], []
    for detach in (False, True):
        fake, average, real = images().requires_grad_(), images(seed=1), images(seed=2)
        values.append(value_of(LDLLoss(detach_weight=detach), fake, real, average))
        values[-1].backward()
        gradients.append(fake.grad)
    assert torch.equal(*values)
    weight = artifact_map(fake.detach(), average, real)
    expected = weight * (fake - real).detach().sign() / fake.numel()
    torch.testing.assert_close(gradients[1], expected)
    assert not torch.allclose(*gradients)


def test_without_an_averaged_generator_ldl_is_refused_with_a_remedy():
    run = SimpleNamespace(plugins_with=lambda hook: [], real_shape=(3, 32, 32))
    with pytest.raises(RecipeError, match="averaged generator, but there is none; add ema"):
        LDLLoss().check_recipe(run=run)


LDL_RECIPE = """\
iterations = 4
batch_size = 2
evaluate_every = 100
checkpoint_every = 100
d_steps = 0

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
pixel_loss = {}
"""


@pytest.mark.parametrize("order", [("ema", "ldl_loss"), ("ldl_loss", "ema")])
def test_ldl_asks_the_average_wherever_it_stands_in_the_recipe(tmp_path, order):
    file = tmp_path / "recipe.toml"
    file.write_text(LDL_RECIPE + "".join(f"{name} = {{}}\n" for name in order))
    run = assemble(load_recipe(file), torch.device("cpu"))
    for _ in range(2):
        losses = iterate(run)
        run.iteration += 1
    plugin = run.recipe.plugins["ldl_loss"]
    assert plugin._average is run.recipe.plugins["ema"].average is not run.G
    assert losses["G/ldl_loss"] >= 0 and all(p.grad is None for p in plugin._average.parameters())
    file.write_text(LDL_RECIPE + "ldl_loss = {}\n")
    with pytest.raises(RecipeError, match="add ema"):
        assemble(load_recipe(file), torch.device("cpu"))


# --- total variation


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.1 + 0.2), ("mse", 0.01 + 0.04)])
@pytest.mark.parametrize("shape", [(5, 7), (2, 2)])
def test_total_variation_of_a_ramp_is_its_slopes(kind, expected, shape):
    down, right = torch.arange(shape[0]).double(), torch.arange(shape[1]).double()
    ramp = (0.1 * down[:, None] - 0.2 * right).expand(2, 3, *shape).clone().requires_grad_()
    value = TotalVariation(kind=kind, weight=1).generator_loss(fake=ramp)["G/total_variation"]
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert ramp.grad.any()


def test_total_variation_of_a_flat_image_is_zero_with_a_finite_gradient():
    flat = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    value = TotalVariation().generator_loss(fake=flat)["G/total_variation"]
    value.backward()
    assert value == 0 and (flat.grad == 0).all()


# --- consistency with LR


def consistency(plugin, fake, condition):
    ((name, value),) = plugin.generator_loss(fake=fake, condition=condition).items()
    assert name == f"G/{plugin.name}"
    return value


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.1), ("mse", 0.01)])
@pytest.mark.parametrize("shape", [(3, 24, 20), (1, 9, 15)])
def test_an_offset_from_the_shrunk_image_is_what_it_costs(kind, expected, shape):
    fake = images(2, shape).requires_grad_()
    condition = resize(fake.detach(), (shape[1] // 3, shape[2] // 3))
    plugin = LRConsistencyLoss(kind=kind)
    value = consistency(plugin, fake, condition + 0.1)
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert (fake.grad.flatten(1).abs().sum(1) > 0).all()
    assert consistency(plugin, fake, condition) < 1e-12


def test_rounding_the_condition_costs_a_quarter_of_a_grey_level():
    real = images(1, (3, 256, 256))
    condition = (resize(real, (64, 64)) * 255).round() / 255
    value = consistency(LRConsistencyLoss(), real, condition)
    assert value.item() == pytest.approx(1 / 1020, rel=0.03)


def test_a_condition_that_is_no_image_is_refused():
    run = SimpleNamespace(condition_shape=(2,), real_shape=(2,))
    with pytest.raises(RecipeError, match="a condition that is a smaller image"):
        LRConsistencyLoss().run_start(run=run)


def test_every_loss_is_weighted():
    fake, real = images(), images(seed=1)
    for plugin in REFERENCED:
        options = plugin.model_dump(exclude={"weight"})
        once = value_of(type(plugin)(**options, weight=1), fake, real)
        twice = value_of(type(plugin)(**options, weight=2), fake, real)
        assert twice.item() == pytest.approx(2 * once.item())


def test_the_averaged_generator_is_never_trained():
    network = nn.Conv2d(3, 3, 1).double()
    plugin = LDLLoss()
    plugin._average, plugin._precision = network, contextlib.nullcontext
    fake, real = images().requires_grad_(), images(seed=1)
    (value,) = plugin.generator_loss(fake=fake, real=real, condition=real).values()
    value.backward()
    assert network.weight.grad is None and fake.grad is not None
