"""dead_leaves: the law of the radii, of occlusion and of coverage, and what an image repeats."""

import math

import numpy as np
import pytest
import torch
from ganlab_plugins import dead_leaves
from ganlab_plugins.dead_leaves import DeadLeaves, _fall, _topmost, natural_colours, paint
from pydantic import ValidationError

from ganlab.testing import seeded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))


BLACK_AND_WHITE = np.array([[0, 0, 0], [1, 1, 1]], np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_radii_follow_the_power_law():
    # a tiny image and tiny leaves in a vast number: the edge correction is divided out
    table, which, _ = _fall(32, rng(), (1.0, 16.0, 3.0), 400.0)
    reach = 32 + 2 * np.ceil(table) + 1
    density = np.bincount(which, minlength=len(table)) / reach**2
    slope = np.polyfit(np.log(table), np.log(density), 1, w=np.sqrt(np.bincount(which)))[0]
    # per equal step of log r, r^-3 dr is r^-2
    assert abs(slope + 2) < 0.05
    assert table[0] == pytest.approx(2)
    assert table[-1] == pytest.approx(32)


@pytest.mark.parametrize("coverage", [0.5, 2.0])
def test_the_bare_share_of_a_boolean_model_is_exp_of_minus_the_coverage(coverage):
    side, bare = 96, []
    for seed in range(40):
        table, which, centres = _fall(side, rng(seed), (2.0, 8.0, 3.0), coverage)
        bare.append((_topmost(side, table, which, centres) == 0).mean())
    error = 4 * np.std(bare) / math.sqrt(len(bare))
    assert abs(np.mean(bare) - math.exp(-coverage)) < error + 0.02 * math.exp(-coverage)


def test_borders_are_as_covered_as_the_middle():
    # with centres inside the image only, corners would see a quarter of the leaves
    side, corner, middle = 64, [], []
    for seed in range(400):
        covered = _topmost(side, *_fall(side, rng(seed), (4.0, 8.0, 3.0), 0.7)) > 0
        corner.append(covered[0, 0])
        middle.append(covered[32, 32])
    assert abs(np.mean(corner) - np.mean(middle)) < 5 * math.sqrt(0.5 / 400)


def test_the_last_leaf_to_fall_hides_the_others_and_leaves_are_disks():
    table = np.array([3.0, 1.0], np.float32)
    seen = _topmost(9, table, np.array([0, 1]), np.array([[4, 4], [4, 5]]))
    y, x = np.indices((9, 9))
    expected = np.where((y - 4) ** 2 + (x - 4) ** 2 <= 9, 1, 0)
    expected[(y - 4) ** 2 + (x - 5) ** 2 <= 1] = 2
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize("centre", [(-3, 4), (11, 4), (4, -3), (4, 11), (-2, -2), (10, 10)])
def test_a_leaf_across_the_border_is_cut_not_wrapped(centre):
    seen = _topmost(9, np.array([4.0], np.float32), np.array([0]), np.array([centre]))
    y, x = np.indices((9, 9))
    assert np.array_equal(seen, (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= 16)


def test_flat_leaves_show_their_colours_and_softened_edges_alone():
    image = paint(64, BLACK_AND_WHITE, rng(), texture=0.0)
    assert image.dtype == torch.uint8
    # of each 2 x 2 block, 0 to 4 white pixels
    assert set(image.unique().tolist()) <= {0, 64, 128, 191, 255}
    assert torch.equal(image[0], image[1])
    flat = ((image == 0) | (image == 255)).float().mean()
    assert flat > 0.6


def test_texture_is_on_the_share_of_leaves_that_is_asked_for():
    grey = np.full((1, 3), 0.5, np.float32)
    plain, some, all_ = (paint(64, grey, rng(), texture=share) for share in (0.0, 0.5, 1.0))
    touched = [(image != 128).float().mean().item() for image in (plain, some, all_)]
    assert touched[0] == 0
    assert 0.2 < touched[1] < 0.8
    assert touched[2] > 0.8


def test_colours_are_in_range_and_vary_most_in_luminance():
    colours = natural_colours(rng(), 4096)
    assert colours.dtype == np.float32
    assert colours.min() >= 0
    assert colours.max() <= 1
    luminance, yellow, red = (
        colours.mean(1).std(),
        (colours[:, :2].mean(1) - colours[:, 2]).std(),
        (colours[:, 0] - colours[:, 1]).std(),
    )
    assert luminance > yellow > red


def test_the_seed_alone_chooses_the_images():
    def crop(**options: int) -> torch.Tensor:
        plugin = DeadLeaves(num_images=1, size=32, crop=32, flips=False, turns=False, **options)
        return plugin.sample_real(1, CPU)

    assert torch.equal(crop(seed=3), crop(seed=3))
    assert not torch.equal(crop(seed=3), crop(seed=4))


def test_crops_follow_the_streams_of_the_run():
    def crops(seed: int) -> torch.Tensor:
        return seeded(DeadLeaves(num_images=2, size=64, crop=16), seed).sample_real(4, CPU)

    assert torch.equal(crops(1), crops(1))
    assert not torch.equal(crops(1), crops(2))


def test_images_are_painted_once_for_the_same_options(monkeypatch):
    def crop(**options: float) -> torch.Tensor:
        plugin = DeadLeaves(num_images=1, size=32, crop=32, flips=False, turns=False, **options)
        return plugin.sample_real(1, CPU)

    first = crop()
    other = crop(max_radius=50.0)

    def never(*_: object) -> None:
        raise AssertionError("painted again")

    monkeypatch.setattr(dead_leaves, "paint", never)
    assert torch.equal(crop(), first)
    assert torch.equal(crop(max_radius=50.0), other)
    assert not torch.equal(first, other)
    for option in ("min_radius", "exponent", "texture"):
        with pytest.raises(AssertionError, match="painted again"):
            crop(**{option: 1.0 if option != "exponent" else 2.0})


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"min_radius": 5.0, "max_radius": 5.0}, "min_radius must be below max_radius"),
        ({"size": 32, "crop": 64}, "crop must be at most size"),
        ({"exponent": 1.0}, "greater than 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, fault):
    with pytest.raises(ValidationError, match=fault):
        DeadLeaves(**options)
