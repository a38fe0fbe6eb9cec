"""ADA: the published transformations, with the published ranges and probabilities."""

import math

import pluggy
import pytest
import torch
from ganlab_plugins import ada
from ganlab_plugins.ada import ADA, Draws

from ganlab import RecipeError, hookimpl, hookspecs
from ganlab.testing import seeded

SPREADS = [name for name in vars(ada) if name.endswith(("_STD", "_MAX"))]


class Images:
    @hookimpl(trylast=True)
    def augment(self, images):
        return images


def augment(plugin, images, seed=0):
    seeded(plugin, seed)
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Images())
    manager.register(plugin)
    manager.check_pending()
    return manager.hook.augment(images=images, condition=images)


def images(n=3, channels=3, height=11, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(n, channels, height, width, dtype=dtype, generator=generator)


def draws(n=4000, p=1.0):
    chance = torch.tensor(p, dtype=torch.float64)
    return Draws(n, chance, torch.Generator().manual_seed(3))


def only(monkeypatch, *names):
    """All ranges of zero width but these."""
    for name in SPREADS:
        if name not in names:
            monkeypatch.setattr(ada, name, 0.0)
    monkeypatch.setattr(Draws, "integers", lambda self, num: self.uniform(0, 0))


# --- what the transformations do ---


def test_an_image_that_no_coin_hits_is_left_alone_to_the_last_bit():
    for dtype in (torch.float32, torch.bfloat16):
        x = images(dtype=dtype)
        assert torch.equal(augment(ADA(), x), x)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (11, 8), (7, 13)])
def test_mirroring_and_half_turns_are_exact(height, width):
    x = images(1, height=height, width=width)
    one = torch.ones(1, dtype=x.dtype)
    torch.testing.assert_close(ada.warp(x, ada.stretch(-one, one)), x.flip(3))
    torch.testing.assert_close(ada.warp(x, ada.turn(math.pi * one).round()), x.flip(2, 3))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_exact(side, quarters):
    x = images(1, height=side, width=side)
    angle = torch.tensor([quarters * math.pi / 2], dtype=x.dtype)
    torch.testing.assert_close(
        ada.warp(x, ada.turn(angle).round()), torch.rot90(x, quarters, (2, 3))
    )


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -3), (-1, 4)])
def test_shifts_by_pixels_are_exact_and_mirror_at_the_edge(right, down):
    x = images(1)
    by = [torch.tensor([float(v)], dtype=x.dtype) for v in (right, down)]
    around = torch.nn.functional.pad(x, (5, 5, 5, 5), mode="reflect")
    expected = around[:, :, 5 - down : 16 - down, 5 - right : 13 - right]
    torch.testing.assert_close(ada.warp(x, ada.shift(*by)), expected)


def blob(x0, y0, height=61, width=41, sx=3.0, sy=3.0):
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2 - y0
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2 - x0
    return (-(x**2) / (2 * sx**2) - y**2 / (2 * sy**2)).exp()[None, None]


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2, 2.5])
def test_a_turn_of_an_image_that_is_not_square_is_a_turn_in_pixels(angle):
    inverse = ada.turn(torch.tensor([angle], dtype=torch.float64))
    at = inverse[0].T @ torch.tensor([6.0, 4.0, 1.0], dtype=torch.float64)
    turned, expected = ada.warp(blob(6, 4), inverse), blob(at[0], at[1])
    middle = (..., slice(17, 44), slice(7, 34))  # free of what is mirrored at the edges
    torch.testing.assert_close(turned[middle], expected[middle], rtol=0, atol=0.02)


def test_a_scale_enlarges_by_its_factor_and_a_stretch_along_its_axis():
    half, one = (torch.tensor([v], dtype=torch.float64) for v in (0.5, 1.0))
    larger = ada.warp(blob(2, -3), ada.stretch(half, half))
    torch.testing.assert_close(larger, blob(4, -6, sx=6.0, sy=6.0), rtol=0, atol=0.02)
    wider = ada.warp(blob(2, -3), ada.stretch(half, one))
    torch.testing.assert_close(wider, blob(4, -3, sx=6.0), rtol=0, atol=0.02)


def test_colours_are_changed_in_the_published_range():
    x, matrix = images(2), torch.rand(2, 4, 4, dtype=torch.float64)
    expected = torch.empty_like(x)
    for i in range(2):
        for row in range(11):
            for column in range(8):
                y = torch.cat([2 * x[i, :, row, column] - 1, torch.ones(1).double()])
                expected[i, :, row, column] = ((matrix[i] @ y)[:3] + 1) / 2
    torch.testing.assert_close(ada.recolor(x, matrix), expected)


def test_a_turn_of_hue_by_a_third_takes_red_to_green_to_blue():
    third = ada.about_grey(torch.tensor([2 * math.pi / 3], dtype=torch.float64))[0]
    torch.testing.assert_close(third, torch.eye(3).double()[[2, 0, 1]])
    turn = ada.about_grey(torch.tensor([0.7], dtype=torch.float64))[0]
    torch.testing.assert_close(turn @ turn.T, torch.eye(3).double())
    assert torch.det(turn).item() == pytest.approx(1)
    torch.testing.assert_close(turn.sum(1), torch.ones(3).double())  # grey stays


def test_the_luma_flip_is_a_negative_of_greys_and_keeps_hues(monkeypatch):
    only(monkeypatch)
    monkeypatch.setattr(Draws, "integers", lambda self, num: self.uniform(1, 1))
    x = images(1, channels=1)
    flip = ada.colors(draws(1))
    torch.testing.assert_close(ada.recolor(x, flip), 1 - x)
    colour = ada.recolor(images(1), flip)
    torch.testing.assert_close(
        colour - colour.mean(1, keepdim=True), images(1) - images(1).mean(1, keepdim=True)
    )


def test_a_grey_image_is_changed_like_a_grey_image_in_colour():
    x, matrix = images(5, channels=1), ada.colors(draws(5))
    colour = ada.recolor(x.expand(-1, 3, -1, -1), matrix)
    torch.testing.assert_close(ada.recolor(x, matrix), colour.mean(1, keepdim=True))


# --- how often and how far ---


def test_blits_are_mirrored_turned_and_shifted_as_published():
    height, width = 32, 48
    inverse = ada.blit(draws(), height, width)
    assert torch.equal(inverse, inverse.round())  # whole pixels
    linear = inverse[:, :2, :2]
    mirrored = (torch.linalg.det(linear) < 0).double().mean()
    assert mirrored.item() == pytest.approx(0.5, abs=0.03)
    kinds, counts = linear.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert (counts - 500).abs().max() < 90  # 4 standard errors
    # back in the axes of the shift, before the turn and the mirror
    by = -(linear.mT @ inverse[:, :2, 2:])[..., 0]
    assert by.abs().amax(0).tolist() == [6.0, 4.0]
    assert by.mean(0).abs().max() < 0.3


def test_every_geometric_spread_is_the_published_one(monkeypatch):
    def logs(axis):
        return ada.geometry(draws(), 32, 48)[:, axis, axis].log2()

    with monkeypatch.context() as patch:
        only(patch, "SCALE_STD")
        assert logs(0).std().item() == pytest.approx(0.2, rel=0.05)
        assert torch.equal(logs(0), logs(1))
    with monkeypatch.context() as patch:
        only(patch, "STRETCH_STD")
        assert logs(0).std().item() == pytest.approx(0.2, rel=0.05)
        torch.testing.assert_close(logs(0), -logs(1))
    with monkeypatch.context() as patch:
        only(patch, "SHIFT_STD")
        by = ada.geometry(draws(), 32, 48)[:, :2, 2]
        torch.testing.assert_close(by.std(0), torch.tensor([6.0, 4.0]).double(), rtol=0.05, atol=0)
        assert abs(torch.corrcoef(by.T)[0, 1].item()) < 0.06
    with monkeypatch.context() as patch:
        only(patch, "TURN_MAX")
        inverse = ada.geometry(draws(), 32, 48)
        angle = torch.atan2(inverse[:, 1, 0], inverse[:, 0, 0])
        assert angle.std().item() == pytest.approx(2 * math.pi / 12**0.5, rel=0.05)


def test_every_colour_spread_is_the_published_one(monkeypatch):
    with monkeypatch.context() as patch:
        only(patch, "BRIGHTNESS_STD")
        matrix = ada.colors(draws())
        assert matrix[:, 0, 3].std().item() == pytest.approx(0.2, rel=0.05)
        torch.testing.assert_close(matrix[:, 0, 3], matrix[:, 2, 3])
        # 0.2 of the range -1..1 is 0.1 of 0..1
        x = torch.full((4000, 3, 1, 1), 0.5, dtype=torch.float64)
        assert ada.recolor(x, matrix).std(0).mean().item() == pytest.approx(0.1, rel=0.05)
    with monkeypatch.context() as patch:
        only(patch, "CONTRAST_STD")
        logs = ada.colors(draws()).diagonal(dim1=1, dim2=2)[:, :3].log2()
        assert logs[:, 0].std().item() == pytest.approx(0.5, rel=0.05)
        torch.testing.assert_close(logs[:, 0], logs[:, 2])
    with monkeypatch.context() as patch:
        only(patch, "SATURATION_STD")
        red_green = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
        logs = (ada.colors(draws()) @ red_green)[:, 0].log2()
        assert logs.std().item() == pytest.approx(1.0, rel=0.05)
    with monkeypatch.context() as patch:
        only(patch, "HUE_MAX")
        cos = (ada.colors(draws())[:, :3, :3].diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        angle = cos.clamp(-1, 1).arccos()
        assert angle.mean().item() == pytest.approx(math.pi / 2, rel=0.05)
        assert angle.max() > 3.1


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(
    "name", ["SCALE_STD", "STRETCH_STD", "SHIFT_STD", "BRIGHTNESS_STD", "CONTRAST_STD", "HUE_MAX"]
)
def test_each_transformation_befalls_a_share_p_of_the_images(monkeypatch, name, p):
    only(monkeypatch, name)
    if name in ("SCALE_STD", "STRETCH_STD", "SHIFT_STD"):
        made = ada.geometry(draws(p=p), 32, 48)
    else:
        made = ada.colors(draws(p=p))
    share = (made - torch.eye(made.shape[-1])).abs().amax((1, 2)) > 1e-12
    assert share.double().mean().item() == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
def test_an_image_is_turned_once_or_twice_with_probability_p(monkeypatch, p):
    only(monkeypatch, "TURN_MAX")
    made = ada.geometry(draws(p=p), 32, 48)
    share = (made - torch.eye(3)).abs().amax((1, 2)) > 1e-12
    assert share.double().mean().item() == pytest.approx(p, abs=0.03)


def test_a_p_above_1_is_as_good_as_1():
    for make in (lambda d: ada.geometry(d, 32, 32), ada.colors):
        assert torch.equal(make(draws(p=1.5)), make(draws(p=1.0)))


# --- what every augmentation must keep to ---


@pytest.mark.parametrize("pipeline", ["blit", "geom", "color", "bg", "bgc"])
@pytest.mark.parametrize("n", [1, 3])
def test_no_image_of_a_batch_sees_another(pipeline, n):
    x = images(n).requires_grad_()
    y = augment(ADA(fixed_p=0.9, pipeline=pipeline), x)
    assert y.shape == x.shape
    weights = torch.rand(y.shape[1:], dtype=y.dtype)
    for i in range(n):
        (gradient,) = torch.autograd.grad((y[i] * weights).sum(), x, retain_graph=True)
        assert gradient[i].any()
        gradient[i] = 0
        assert not gradient.any()


def test_a_batch_is_augmented_as_each_image_alone():
    x, d = images(4), draws(4)
    inverse, matrix = ada.blit(d, 11, 8) @ ada.geometry(d, 11, 8), ada.colors(d)
    whole = ada.recolor(ada.warp(x, inverse), matrix)
    for i in range(4):
        one = slice(i, i + 1)
        alone = ada.recolor(ada.warp(x[one], inverse[one]), matrix[one])
        torch.testing.assert_close(whole[one], alone)


def test_the_gradient_is_the_slope_of_what_it_does():
    x = images(1, height=3, width=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(ADA(fixed_p=1.0), x), (x,))


def test_each_group_of_channels_gets_the_same_draws():
    x = images(6)
    y = augment(ADA(fixed_p=0.8), torch.cat([x, x], 1))
    torch.testing.assert_close(y[:, :3], y[:, 3:])
    torch.testing.assert_close(y[:, :3], augment(ADA(fixed_p=0.8), x))


def test_each_image_has_draws_of_its_own():
    y = augment(ADA(fixed_p=1.0), images(1).expand(8, -1, -1, -1))
    assert len({tuple(image.flatten().tolist()) for image in y}) == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_images_is_kept_and_the_draws_do_not_depend_on_it(dtype):
    y = augment(ADA(fixed_p=1.0), images(dtype=dtype))
    assert y.dtype == dtype
    exact = augment(ADA(fixed_p=1.0), images(dtype=dtype).double())
    rounding = {torch.bfloat16: 3e-2, torch.float32: 1e-4, torch.float64: 0}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=rounding)


def test_a_moment_gives_the_same_draws_and_leaves_torchs_own_stream_alone():
    before = torch.get_rng_state()
    x = images()
    y = augment(ADA(fixed_p=0.5), x)
    assert torch.equal(y, augment(ADA(fixed_p=0.5), x))
    assert not torch.equal(y, augment(ADA(fixed_p=0.5), x, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("x", "words"),
    [(torch.zeros(2, 4, 8, 8), 'set pipeline = "bg"'), (torch.zeros(2, 5), "drop ada")],
)
def test_samples_that_it_cannot_change_are_refused_with_a_remedy(x, words):
    with pytest.raises(RecipeError, match=words):
        augment(ADA(), x)
