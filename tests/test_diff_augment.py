"""DiffAugment is the published function, per image, and lets the gradient through."""

import pluggy
import pytest
import torch
from ganlab_plugins import diff_augment
from ganlab_plugins.diff_augment import DiffAugment, color, cut, shift
from pydantic import ValidationError

from ganlab import RecipeError, hookimpl, hookspecs
from ganlab.testing import seeded

KINDS = ["color", "translation", "cutout"]


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


def images(n=3, channels=3, height=11, width=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(n, channels, height, width, dtype=dtype, generator=generator)


def numbers(n, low, high, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


def test_the_colours_are_the_published_formula_in_its_own_range():
    # the published order and ranges, images in -1..1: b in -0.5..0.5, s in 0..2, c in 0.5..1.5
    x = images(4)
    b, s, c = numbers(4, -0.5, 0.5), numbers(4, 0, 2, 2), numbers(4, 0.5, 1.5, 3)
    expected = []
    for i in range(4):
        y = 2 * x[i] - 1
        y = y + b[i]
        mean = y.mean(0)
        y = (y - mean) * s[i] + mean
        mean = y.mean()
        y = (y - mean) * c[i] + mean
        expected.append((y + 1) / 2)
    torch.testing.assert_close(color(x, b / 2, s, c), torch.stack(expected))


def test_a_change_of_colour_of_none_changes_nothing():
    x = images()
    one = torch.ones(3, dtype=x.dtype)
    assert torch.equal(color(x, 0 * one, one, one), x)


def test_saturation_0_is_grey_and_contrast_0_is_flat():
    x = images()
    one = torch.ones(3, dtype=x.dtype)
    grey = color(x, 0 * one, 0 * one, one)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = color(x, 0 * one, one, 0 * one)
    torch.testing.assert_close(flat, x.mean((1, 2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -3), (-1, 4), (11, 0), (0, -9), (30, 30)])
def test_a_shift_moves_every_pixel_and_fills_what_is_left(down, right):
    x = images(1)
    moved = shift(x, torch.tensor([down]), torch.tensor([right]), 0.25)
    for i in range(11):
        for j in range(9):
            inside = 0 <= i - down < 11 and 0 <= j - right < 9
            pixel = x[0, :, i - down, j - right] if inside else torch.full((3,), 0.25).double()
            assert torch.equal(moved[0, :, i, j], pixel)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (2, 3), (-2, 7), (9, -3), (20, 20)])
def test_a_cutout_fills_the_part_of_its_rectangle_within_the_image(top, left):
    x = images(1)
    holed = cut(x, torch.tensor([top]), torch.tensor([left]), (5, 4), 0.25)
    for i in range(11):
        for j in range(9):
            hole = top <= i < top + 5 and left <= j < left + 4
            pixel = torch.full((3,), 0.25).double() if hole else x[0, :, i, j]
            assert torch.equal(holed[0, :, i, j], pixel)


@pytest.mark.parametrize(("policy", "fill"), [(["translation"], 0.5), (["cutout"], 0.5)])
def test_grey_is_to_images_in_0_to_1_what_the_published_zero_is_to_those_in_minus_1_to_1(
    policy, fill
):
    x = images(8)
    ours = augment(DiffAugment(policy=policy), x)
    # the same draws on the images in the published range, filled with its zero
    published = augment(DiffAugment(policy=policy, fill=0.0), 2 * x - 1)
    torch.testing.assert_close(2 * ours - 1, published)
    assert (published == 0).any() and (ours == fill).any()
    black = augment(DiffAugment(policy=policy, fill=0.0), x)
    assert not torch.allclose(2 * black - 1, published)


@pytest.mark.parametrize(
    ("height", "width", "largest"),
    [(32, 32, (4, 4)), (31, 25, (3, 3)), (16, 40, (2, 5)), (7, 8, (0, 1))],
)
def test_shifts_are_all_whole_numbers_up_to_an_eighth_of_a_side(height, width, largest):
    # coordinates as pixels, so that the middle pixel tells the shift
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = torch.stack([rows, columns, rows]).double().expand(600, 3, height, width)
    moved = augment(DiffAugment(policy=["translation"]), x)[:, :, height // 2, width // 2]
    for axis, (middle, most) in enumerate(zip((height // 2, width // 2), largest, strict=True)):
        shifts, counts = (middle - moved[:, axis]).unique(return_counts=True)
        assert shifts.tolist() == list(range(-most, most + 1))
        # each equally often: standard error of a count is below its square root
        expected = 600 / (2 * most + 1)
        assert (counts - expected).abs().max() <= 4 * expected**0.5


@pytest.mark.parametrize(("side", "hole"), [(16, 8), (14, 7), (11, 5), (3, 1), (1, 0)])
def test_the_cutout_is_half_of_each_side_with_its_centre_anywhere(side, hole):
    x = torch.zeros(2000, 1, side, 16, dtype=torch.float64)
    holes = augment(DiffAugment(policy=["cutout"]), x)[:, 0] == 0.5
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.flatten(1).sum(1), heights * widths)  # a rectangle
    # centre c = 0..side for an even hole, 0..side - 1 for an odd one; cut to the image
    tops = [c - hole // 2 for c in range(side + 1 - hole % 2)]
    expected = {(max(top, 0), min(top + hole, side) - 1) for top in tops}
    rows = [image.any(1).nonzero()[:, 0].tolist() for image in holes]
    assert {(seen[0], seen[-1]) for seen in rows if seen} == (expected if hole else set())
    assert heights.max() == hole
    full = (heights[widths > 0] == hole).double().mean().item()
    share = sum(0 <= top <= side - hole for top in tops) / len(tops)
    assert not hole or full == pytest.approx(share, abs=0.05)


def test_colour_draws_have_the_published_ranges():
    # a red pixel and a black one: brightness shows in the mean of all, the others in differences
    x = torch.zeros(4000, 3, 1, 2, dtype=torch.float64)
    x[:, 0, 0, 0] = 1.0
    y = augment(DiffAugment(policy=["color"]), x)[:, :, 0]
    brightness = y.mean((1, 2)) - 1 / 6
    contrast = (y[..., 0].mean(1) - y[..., 1].mean(1)) * 3
    saturation = (y[:, 0, 0] - y[:, 1, 0]) / contrast
    for draw, low, high in [(brightness, -0.25, 0.25), (contrast, 0.5, 1.5), (saturation, 0, 2)]:
        assert low - 1e-9 <= draw.min() and draw.max() <= high + 1e-9
        assert draw.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert draw.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_zero_changes_nothing(kind):
    zero = dict.fromkeys(diff_augment._OPTIONS[kind], 0.0)
    assert torch.equal(augment(DiffAugment(policy=[kind], **zero), images()), images())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 3])
def test_no_image_of_a_batch_sees_another(kind, n):
    x = images(n).requires_grad_()
    y = augment(DiffAugment(policy=[kind]), x)
    weights = torch.rand(y.shape[1:], dtype=y.dtype)
    for i in range(n):
        (gradient,) = torch.autograd.grad((y[i] * weights).sum(), x, retain_graph=True)
        assert gradient[i].any()
        gradient[i] = 0
        assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_of_what_it_does(kind):
    x = images(2, height=2, width=4).requires_grad_()
    options = {"translation": 0.5} if kind == "translation" else {}
    plugin = DiffAugment(policy=[kind], **options)
    assert torch.autograd.gradcheck(lambda images: augment(plugin, images), (x,))


def test_filled_pixels_get_no_gradient_and_moved_ones_all_of_it():
    x = images(1).requires_grad_()
    y = shift(x, torch.tensor([3]), torch.tensor([-2]), 0.5)
    y.sum().backward()
    expected = torch.zeros(11, 9, dtype=x.dtype)
    expected[:8, 2:] = 1
    assert torch.equal(x.grad, expected.expand_as(x))


def test_each_image_has_a_draw_of_its_own():
    x = images(1, height=16, width=16).expand(8, 3, 16, 16)
    y = augment(DiffAugment(), x)
    assert len({tuple(image.flatten().tolist()) for image in y}) == 8


def test_each_group_of_channels_gets_the_same_draws():
    # the second group is the first: it must stay so
    x = images(5, height=16, width=16)
    y = augment(DiffAugment(), torch.cat([x, x], 1))
    assert torch.equal(y[:, :3], y[:, 3:])
    assert torch.equal(y[:, :3], augment(DiffAugment(), x))


def test_groups_have_their_own_means():
    x = images(2)
    dark = x / 10
    y = augment(DiffAugment(policy=["color"]), torch.cat([x, dark], 1))
    torch.testing.assert_close(y[:, 3:], augment(DiffAugment(policy=["color"]), dark))


def test_grey_images_know_no_saturation():
    x = images(2, channels=1)
    b, s, c = numbers(2, -0.2, 0.2), numbers(2, 0, 2), torch.ones(2, dtype=x.dtype)
    torch.testing.assert_close(color(x, b, s, c), x + b.view(2, 1, 1, 1))


def test_kinds_are_applied_in_the_order_of_the_policy():
    x = torch.ones(64, 3, 16, 16, dtype=torch.float64)
    late = augment(DiffAugment(policy=["color", "cutout"]), x)
    early = augment(DiffAugment(policy=["cutout", "color"]), x)
    assert (late == 0.5).any()
    assert not (early == 0.5).any()  # brightness has moved the grey


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_images_is_kept(dtype):
    assert augment(DiffAugment(), images(dtype=dtype)).dtype == dtype


def test_a_moment_always_gives_the_same_draws_and_two_calls_in_it_different_ones():
    plugin = DiffAugment()
    x = images(2)
    assert torch.equal(augment(plugin, x), augment(plugin, x))
    assert not torch.equal(augment(plugin, x), augment(plugin, x, seed=1))
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Images())
    manager.register(plugin)
    real, fake = (manager.hook.augment(images=x, condition=x) for _ in range(2))
    assert not torch.equal(real, fake)


def test_torchs_own_stream_is_left_alone():
    before = torch.get_rng_state()
    augment(DiffAugment(), images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": ["cutout"], "brightness": 0.1}, "brightness has no effect"),
        ({"policy": ["color"], "fill": 0.0}, "fill has no effect"),
        ({"policy": ["color"], "cutout": 0.3}, "cutout has no effect"),
        ({"policy": ["color", "color"]}, "name it once"),
        ({"policy": []}, "at least 1"),
        ({"policy": ["colour"]}, "color"),
    ],
)
def test_options_without_effect_and_unknown_kinds_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        DiffAugment(**options)


def test_samples_that_are_no_images_are_refused_with_a_remedy():
    with pytest.raises(RecipeError, match="drop diff_augment"):
        augment(DiffAugment(), torch.zeros(2, 5))


def test_channels_that_are_no_images_are_refused_with_a_remedy():
    with pytest.raises(RecipeError, match="leave color out of the policy"):
        augment(DiffAugment(), images(channels=4))
    assert augment(DiffAugment(policy=["cutout"]), images(channels=4)).shape[1] == 4
