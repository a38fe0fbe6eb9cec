"""gaussian_mixture: the published data, figures of samples that are known, and the picture."""

import math
from pathlib import Path

import pytest
import torch
from ganlab_plugins.gaussian_mixture import (
    NUM_SAMPLES,
    GaussianMixture,
    energy_distance,
    judge,
    mixture,
    picture,
)
from scipy import stats
from torch import Tensor, nn

from ganlab import read_image
from ganlab.assembly import assemble
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.folder import RunFolder
from ganlab.testing import seeded

CPU = torch.device("cpu")
RECIPE = """\
iterations = 1
precision = "float64"
best_metric = "mode_kl"
best_is = "lowest"

[plugins]
gaussian_mixture = {{ layout = "{layout}" }}
latent = {{ dim = 3 }}
mlp = {{ width = 4, num_layers = 1 }}
bce = {{}}
"""


def run_of(folder: Path, layout: str = "ring") -> Run:
    file = folder / "toy.toml"
    file.write_text(RECIPE.format(layout=layout))
    (folder / "samples").mkdir()
    return assemble(load_recipe(file), CPU, RunFolder(folder))


def samples(layout: str, count: int, seed: int = 0) -> Tensor:
    return seeded(GaussianMixture(layout=layout), seed).sample_real(count, CPU)


def evenly(layout: str, count: int = NUM_SAMPLES) -> Tensor:
    centres, _, _ = mixture(layout)
    return centres.repeat(count // len(centres), 1)


@pytest.mark.parametrize(
    ("layout", "count", "radius", "spread", "spacing"),
    [("ring", 8, 1.414427, 0.0141443, 1.0825557), ("grid", 25, 2.0003021, 0.0176803, 0.7072136)],
)
def test_the_mixtures_are_those_of_the_paper(layout, count, radius, spread, spacing):
    centres, found_spread, found_spacing = mixture(layout)
    assert centres.shape == (count, 2)
    assert centres.norm(dim=1).max().item() == pytest.approx(radius, abs=1e-6)
    assert (found_spread, found_spacing) == pytest.approx((spread, spacing), abs=1e-6)
    nearest = torch.cdist(centres, centres).fill_diagonal_(math.inf).min(1).values
    assert nearest.tolist() == pytest.approx([spacing] * count, abs=1e-6)


@pytest.mark.parametrize("layout", ["ring", "grid"])
def test_samples_have_variance_1_and_spread_equally_over_the_centres(layout):
    points = samples(layout, 20_000)
    centres, spread, _ = mixture(layout)
    assert points.var(0).tolist() == pytest.approx([1.0, 1.0], abs=0.03)
    distance, which = torch.cdist(points, centres).min(1)
    counts = torch.bincount(which, minlength=len(centres))
    assert stats.chisquare(counts).pvalue > 1e-3
    assert distance.square().mean().sqrt().item() == pytest.approx(spread * 2**0.5, rel=0.02)


def test_which_samples_come_depends_on_the_seed_alone():
    assert torch.equal(samples("ring", 3), samples("ring", 3))
    assert not torch.equal(samples("ring", 3), samples("ring", 3, seed=1))
    assert samples("grid", 1).shape == (1, 2)


@pytest.mark.parametrize(("layout", "modes"), [("ring", 8), ("grid", 25)])
def test_samples_on_every_centre_are_perfect_and_on_one_centre_they_are_one_mode(layout, modes):
    points = evenly(layout)
    assert judge(points, layout) == pytest.approx({"modes": modes, "near": 1, "mode_kl": 0})
    collapsed = points[:1].expand_as(points)
    expected = {"modes": 1, "near": 1, "mode_kl": math.log(modes)}
    assert judge(collapsed, layout) == pytest.approx(expected)


def test_a_mode_is_covered_by_20_samples_near_it():
    points = evenly("ring")
    _, _, spacing = mixture("ring")
    second = points[1].clone()
    points[1::8] = points[0]
    points[1 : 1 + 8 * 19 : 8] = second
    assert judge(points, "ring")["modes"] == 7
    points[1 + 8 * 19] = second + torch.tensor([0.0, 0.201 * spacing])
    assert judge(points, "ring")["modes"] == 7
    points[1 + 8 * 19] = second + torch.tensor([0.0, 0.199 * spacing])
    assert judge(points, "ring")["modes"] == 8


def test_samples_between_the_modes_are_not_near_but_are_in_the_histogram():
    points = evenly("ring")
    points[::2] = 1.3 * points[0]  # 0.42 outwards, nearest to the first centre all the same
    expected = {"modes": 4, "near": 0.5, "mode_kl": math.log(4) / 2}
    assert judge(points, "ring") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("layout", "expected"), [("ring", 0.0007), ("grid", 0.0024)])
def test_the_data_itself_has_the_kl_that_is_documented(layout, expected):
    found = [judge(samples(layout, NUM_SAMPLES, seed), layout) for seed in range(100)]
    assert {(f["modes"], f["near"]) for f in found} == {(len(mixture(layout)[0]), 1.0)}
    mean = sum(f["mode_kl"] for f in found) / len(found)
    assert mean == pytest.approx(expected, rel=0.2)


def test_the_energy_distance_of_two_points_is_twice_their_distance():
    one = torch.zeros(3, 2, dtype=torch.float64)
    other = torch.tensor([[3.0, 4.0]], dtype=torch.float64).expand(700, 2)
    assert energy_distance(one, other) == pytest.approx(10.0)


def test_the_energy_distance_is_that_of_scipy_made_unbiased():
    random = torch.Generator().manual_seed(0)
    one = torch.randn(1203, 1, generator=random, dtype=torch.float64)
    other = 0.5 + torch.randn(701, 1, generator=random, dtype=torch.float64)
    biased = stats.energy_distance(one[:, 0], other[:, 0]) ** 2
    # scipy's means are over all n^2 pairs, the n of a point with itself included
    excess = torch.cdist(one, one).mean() / 1202 + torch.cdist(other, other).mean() / 700
    assert energy_distance(one, other) == pytest.approx(biased - excess.item(), abs=1e-12)


def test_equal_distributions_have_no_energy_distance_on_average():
    pairs = [(samples("ring", 200, s), samples("ring", 200, s + 1000)) for s in range(200)]
    found = torch.tensor([energy_distance(one, other) for one, other in pairs])
    assert abs(found.mean()) < 4 * found.std() / 200**0.5
    assert found.min() < 0 < found.max()


class Perfect(nn.Module):
    """Makes the data, as many samples of each mode."""

    def forward(self, z: Tensor) -> Tensor:
        centres, spread, _ = mixture("ring")
        return centres[torch.arange(len(z)) % 8] + spread * z[:, 1:]


def test_a_perfect_generator_is_judged_so_and_drawn(tmp_path):
    run = run_of(tmp_path)
    run.iteration = 12
    (figures,) = run.hook.evaluate(run=run, generator=Perfect(), images=[])
    assert list(figures) == ["modes", "near", "mode_kl", "energy_distance"]
    assert (figures["modes"], figures["near"], figures["mode_kl"]) == pytest.approx((8, 1, 0))
    assert abs(figures["energy_distance"]) < 5e-3
    assert read_image(tmp_path / "samples" / "0000012.png").shape == (3, 512, 512)


def test_every_evaluation_draws_the_same(tmp_path):
    run = run_of(tmp_path, "grid")
    found = []
    for run.iteration in (1, 2):
        run.streams.moment("evaluation")
        found += run.hook.evaluate(run=run, generator=run.G, images=[])
    assert found[0] == found[1]


def test_a_run_without_a_folder_is_judged_without_a_picture(tmp_path):
    run = run_of(tmp_path)
    run.folder = None
    assert run.hook.evaluate(run=run, generator=run.G, images=[])
    assert not list((tmp_path / "samples").iterdir())


def bluest(image: Tensor) -> tuple[float, float]:
    """The coordinates of the middle of what is blue, not grey."""
    blue = image[2].int() - image[0].int() > 40
    row, column = blue.nonzero().double().mean(0).tolist()
    return (column + 0.5) / 128 - 2, 2 - (row + 0.5) / 128


@pytest.mark.parametrize("place", [(0.5, 1.25), (-1.5, -0.75)])
def test_a_sample_is_drawn_in_blue_at_its_place_and_data_in_grey(place):
    made = torch.tensor([place])
    image = picture(made, torch.tensor([[-1.0, 1.0]]), "")
    assert (image.dtype, image.shape) == (torch.uint8, (3, 512, 512))
    assert bluest(image) == pytest.approx(place, abs=0.01)
    assert image[:, 128, 128].tolist() == [184, 184, 184]


def test_samples_beyond_the_axes_are_left_out():
    outside = torch.tensor([[2.0, 0.0], [0.0, -2.0], [math.nan, 0.0], [1e9, 1e9]])
    empty = picture(torch.zeros(0, 2), torch.zeros(0, 2), "")
    assert torch.equal(picture(outside, outside, ""), empty)
