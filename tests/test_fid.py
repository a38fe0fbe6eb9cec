"""FID and KID against closed forms and torchmetrics, with a small network for Inception."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ganlab_plugins.fid import FID, frechet_distance
from ganlab_plugins.kid import KID, kernel_distance
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from ganlab import EvaluatedImage, InceptionFeatures, RecipeError
from ganlab.testing import seeded

CPU = SimpleNamespace(device=torch.device("cpu"), scale=4, held_out={})
BOTH = pytest.mark.parametrize("kind", [FID, KID])


def normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def with_moments(mean: Tensor, root: Tensor, rows: int = 50) -> Tensor:
    """A sample whose mean and covariance root^T root are exactly these."""
    sample = normal(rows, len(mean))
    sample = torch.linalg.qr(sample - sample.mean(0)).Q * (rows - 1) ** 0.5
    return sample @ root + mean


class MeanColour(nn.Module):
    """In place of Inception: the three mean levels of an image."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mean((2, 3))


def with_network(plugin, network: nn.Module):
    plugin._network = network
    return seeded(plugin)


def evaluated(shift: int = 0) -> list[EvaluatedImage]:
    rng = torch.Generator().manual_seed(1)
    hr = torch.randint(0, 200, (3, 50, 60), dtype=torch.uint8, generator=rng)
    return [EvaluatedImage("a", hr, hr[:, ::4, ::4], hr + shift, hr, {})]


# --- the distances -------------------------------------------------------------------------------


def test_fid_of_gaussians_along_the_axes_is_known():
    means = torch.tensor([[1.0, 2, 3], [1, 0, 3]], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 2, 3], [4, 2, 1]], dtype=torch.float64)
    first, second = (with_moments(m, d.diag()) for m, d in zip(means, deviations, strict=True))
    # |m1 - m2|^2 = 4, and the squared differences of the deviations: 9 + 0 + 4
    assert frechet_distance(first, second).item() == pytest.approx(17, rel=1e-12)


def test_fid_of_turned_gaussians_has_the_closed_form():
    roots = normal(2, 4, 4, seed=3)
    means = normal(2, 4, seed=4)
    first, second = (with_moments(m, r) for m, r in zip(means, roots, strict=True))
    s1, s2 = (root.T @ root for root in roots)
    values, vectors = torch.linalg.eigh(s1)
    half = vectors @ torch.diag(values.sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(half @ s2 @ half).sqrt().sum()
    expected = (means[0] - means[1]).square().sum() + s1.trace() + s2.trace() - 2 * overlap
    assert frechet_distance(first, second).item() == pytest.approx(expected.item(), rel=1e-9)


def test_fid_is_that_of_torchmetrics():
    metric = FrechetInceptionDistance(feature=MeanColour())
    images = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator())
    other = images[:30] // 2
    metric.update(images, real=True)
    metric.update(other, real=False)
    features = [MeanColour()(batch).double() for batch in (images, other)]
    assert frechet_distance(*features).item() == pytest.approx(metric.compute().item(), rel=1e-5)


@pytest.mark.parametrize("rows", [2, 5, 40])
def test_fid_is_exact_with_fewer_patches_than_dimensions(rows):
    sample = normal(rows, 10)
    assert frechet_distance(sample, sample).item() == pytest.approx(0, abs=1e-11)
    assert frechet_distance(sample, sample + 1).item() == pytest.approx(10, rel=1e-9)
    scaled = frechet_distance(sample - sample.mean(0), 3 * (sample - sample.mean(0)))
    assert scaled.item() == pytest.approx(4 * sample.var(0).sum().item(), rel=1e-9)


def test_fid_of_few_patches_is_too_high_and_kid_is_not():
    fid, kid = [], []
    for seed in range(300):
        first, second = normal(2, 8, 4, seed=seed)
        fid.append(frechet_distance(first, second))
        kid.append(kernel_distance(first, second))
    assert torch.stack(fid).min() > 0
    kid = torch.stack(kid)
    assert abs(kid.mean() / (kid.std() / 300**0.5)) < 3


def test_kid_is_unbiased_over_all_draws_of_a_small_population():
    # the cubic kernel of one dimension compares three moments: MMD^2 = 3 d1^2 + 3 d2^2 + d3^2
    values, others = [0.0, 1.0, 2.0], [1.0, 3.0]
    draws = [
        kernel_distance(*(torch.tensor(z, dtype=torch.float64)[:, None] for z in (x, y)))
        for x in itertools.product(values, repeat=2)
        for y in itertools.product(others, repeat=2)
    ]
    moments = [[sum(v**k for v in law) / len(law) for k in (1, 2, 3)] for law in (values, others)]
    d1, d2, d3 = (a - b for a, b in zip(*moments, strict=True))
    assert torch.stack(draws).mean().item() == pytest.approx(3 * d1**2 + 3 * d2**2 + d3**2)


def test_kid_is_unbiased_though_the_two_patches_of_a_place_are_dependent():
    # y is a function of x, so all draws of the pairs: the law of y is {1, 3, 5}
    values = [0.0, 1.0, 2.0]
    draws = [
        kernel_distance(x, 2 * x + 1)
        for pair in itertools.product(values, repeat=2)
        for x in [torch.tensor(pair, dtype=torch.float64)[:, None]]
    ]
    moments = [[sum(v**k for v in law) / 3 for k in (1, 2, 3)] for law in (values, [1.0, 3, 5])]
    d1, d2, d3 = (a - b for a, b in zip(*moments, strict=True))
    assert torch.stack(draws).mean().item() == pytest.approx(3 * d1**2 + 3 * d2**2 + d3**2)


def test_kid_is_that_of_torchmetrics_but_for_the_pairs_of_a_place():
    first, second = normal(2, 12, 5)
    cross = (first @ second.T / 5 + 1) ** 3
    others = (cross.sum() - cross.trace()) / (12 * 11)
    expected = poly_mmd(first, second) + 2 * cross.mean() - 2 * others
    assert kernel_distance(first, second).item() == pytest.approx(expected.item(), rel=1e-9)
    assert kernel_distance(first, first).item() == pytest.approx(0, abs=1e-12)


# --- the network ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception() -> InceptionFeatures:
    torch.manual_seed(0)
    return InceptionFeatures(64)


def test_inception_has_the_names_of_the_published_file(inception):
    # 94 convolutions, each with scale, shift, mean and variance, and the last layer
    names = inception.state_dict().keys()
    assert len(names) == 94 * 5 + 2
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var"} <= names
    numbers = sum(tensor.numel() for tensor in inception.state_dict().values())
    assert 0 < 95_628_359 - 4 * numbers < 100_000  # the size of the file, less names and shapes
    assert not inception.training
    assert not any(p.requires_grad for p in inception.parameters())


def test_features_of_an_image_depend_on_no_other(inception):
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8)
    together = inception(images)
    assert together.shape == (3, 64)
    torch.testing.assert_close(together[1:2], inception(images[1:2]), rtol=1e-4, atol=1e-5)


@BOTH
def test_without_the_weights_file_it_says_where_to_get_it(kind, tmp_path: Path):
    plugin = kind(weights=tmp_path / "inception.pth", patch=32)
    run = SimpleNamespace(device=CPU.device, scale=4, held_out={"a": evaluated()[0].hr})
    with pytest.raises(
        RecipeError, match=r"inception\.pth; get it from https://github\.com/toshas"
    ):
        plugin.check_recipe(run)


@BOTH
def test_a_file_with_another_digest_is_refused(kind, tmp_path: Path):
    torch.save({}, tmp_path / "inception.pth")
    plugin = kind(weights=tmp_path / "inception.pth", patch=32)
    with pytest.raises(RecipeError, match="should begin with 6726825d"):
        plugin.evaluate(CPU, evaluated())


# --- as plugins ----------------------------------------------------------------------------------


@BOTH
def test_a_perfect_generator_has_distance_zero(kind):
    plugin = with_network(kind(patch=32, num_patches=20), MeanColour())
    assert plugin.evaluate(CPU, evaluated())[plugin.name] == pytest.approx(0, abs=1e-6)
    assert plugin.evaluate(CPU, []) == {}


def test_fid_of_brighter_images_is_the_squared_distance_of_the_means():
    plugin = with_network(FID(patch=32, num_patches=20), MeanColour())
    assert plugin.evaluate(CPU, evaluated(10))["fid"] == pytest.approx(300, rel=1e-5)


@BOTH
def test_the_figure_is_a_function_of_seed_and_moment(kind):
    figures = [
        with_network(kind(patch=32, num_patches=20), MeanColour()).evaluate(CPU, evaluated(3))
        for _ in range(2)
    ]
    assert figures[0] == figures[1]
