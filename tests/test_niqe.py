"""NIQE: its fits against the laws they fit, its numbers against the published evaluator's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ganlab_plugins.builtin import Builtin
from ganlab_plugins.niqe import NIQE, _distance, asymmetric_gaussian, features
from scipy.stats import gennorm
from torch import Tensor, nn

from ganlab import RecipeError, luma

X4 = SimpleNamespace(scale=4)


@pytest.fixture(scope="module")
def camera() -> Tensor:
    return Builtin().evaluation_images()["camera"][None]


def model(mean: np.ndarray, covariance: np.ndarray) -> nn.Module:
    network = nn.Module()
    network.register_buffer("mu_pris_param", torch.from_numpy(mean[None]))
    network.register_buffer("cov_pris_param", torch.from_numpy(covariance))
    return network


def quantiles(shape: float, scale: float, count: int = 96 * 96) -> np.ndarray:
    """As even a sample of a generalised Gaussian as can be, as one block."""
    even = (np.arange(count) + 0.5) / count
    return gennorm.ppf(even, shape, scale=scale).reshape(1, 96, 96)


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_the_fit_finds_the_law_of_a_sample(shape, scale):
    found, left, right = asymmetric_gaussian(quantiles(shape, scale))
    assert found[0] == pytest.approx(shape, rel=0.02)
    assert left[0] == pytest.approx(scale, rel=0.02)
    assert right[0] == pytest.approx(left[0], rel=1e-9)


def test_the_fit_finds_two_scales():
    # the left half three times as wide: density continuous, so with three times the mass
    x = quantiles(2.0, 1.0)
    x = np.concatenate([3 * x[x < 0], 3 * x[x < 0], 3 * x[x < 0], x[x > 0]])[None, None]
    shape, left, right = asymmetric_gaussian(x)
    assert shape[0] == pytest.approx(2, rel=0.01)
    assert left[0] == pytest.approx(3, rel=0.01)
    assert right[0] == pytest.approx(1, rel=0.01)


def test_each_block_is_fitted_alone():
    blocks = np.concatenate([quantiles(1.0, 1.0), quantiles(2.0, 3.0)])
    both = asymmetric_gaussian(blocks)
    for i in range(2):
        alone = asymmetric_gaussian(blocks[i : i + 1])
        assert [values[i] for values in both] == [values[0] for values in alone]


def test_the_features_of_camera_are_those_of_the_published_evaluator(camera):
    # made with BasicSR's evaluator, that agrees with the authors' MATLAB code
    found = features(luma(camera))
    assert found.shape == (25, 36)
    expected = [2.2378, 0.73475, 0.73944, 0.00918, 0.11741, 0.11859, 0.74176, 0.01793]
    assert found.mean(0)[:8] == pytest.approx(expected, abs=2e-5)
    expected = [2.26416, 0.65206, 0.71196, 0.04954, 0.09678, 0.12759, 0.71412, 0.03702]
    assert found.mean(0)[18:26] == pytest.approx(expected, abs=2e-5)


def test_what_fills_no_block_does_not_count(camera):
    planes = luma(camera)[..., :200, :300]
    assert np.array_equal(features(planes), features(planes[..., :192, :288]))


def test_flat_blocks_have_no_fit(camera):
    planes = luma(camera)[..., :192, :192].clone()
    assert not np.isnan(features(planes)).any()
    planes[..., :110] = 128
    assert np.isnan(features(planes)).any(1).tolist() == [True, False, True, False]


def test_the_distance_is_mahalanobis_under_the_mean_of_both_covariances():
    rng = np.random.default_rng(0)
    found = rng.normal(size=(80, 36))
    covariance = np.cov(found, rowvar=False)
    # with S0 = S and m - m0 = S^(1/2) e, the distance is |e|
    values, vectors = np.linalg.eigh(covariance)
    e = np.linspace(0, 1, 36)
    mean = found.mean(0) - vectors @ np.diag(values**0.5) @ vectors.T @ e
    assert _distance(found, model(mean, covariance)) == pytest.approx(np.linalg.norm(e))
    # with S0 = 7 S the pooled covariance is 4 S
    halved = _distance(found, model(mean, 7 * covariance))
    assert halved == pytest.approx(np.linalg.norm(e) / 2)


def test_blocks_without_a_fit_are_left_out_of_the_covariance():
    found = np.random.default_rng(0).normal(size=(80, 36))
    holes = np.concatenate([found, np.full((3, 36), np.nan)])
    photographs = model(np.ones(36), np.eye(36))
    assert _distance(holes, photographs) == _distance(found, photographs)
    assert np.isnan(_distance(holes[79:], photographs))


def test_the_shave_is_the_scale(camera):
    plugin = NIQE()
    plugin._model = model(np.zeros(36), np.eye(36))
    spoilt = 255 - camera
    spoilt[..., 4:-4, 4:-4] = camera[..., 4:-4, 4:-4]
    assert plugin.score_images(X4, spoilt) == plugin.score_images(X4, camera)
    assert plugin.score_images(X4, spoilt) != plugin.score_images(X4, 255 - camera)


def test_an_image_of_less_than_two_blocks_is_refused(camera):
    plugin = NIQE()
    plugin._model = model(np.zeros(36), np.eye(36))
    assert plugin.score_images(X4, camera[..., :104, :200])["niqe"] > 0
    with pytest.raises(RecipeError, match="an image is 199 x 104"):
        plugin.score_images(X4, camera[..., :104, :199])
    run = SimpleNamespace(scale=4, held_out={"small": camera[0, :, :103, :400]})
    with pytest.raises(RecipeError, match="104 pixels a side, and small has 100"):
        plugin.run_start(run)


def test_without_the_file_of_photographs_it_says_where_to_get_it(tmp_path: Path, camera):
    plugin = NIQE(weights=tmp_path / "photographs.npz")
    with pytest.raises(
        RecipeError, match=r"photographs\.npz; get it from https://github\.com/XPix"
    ):
        plugin.score_images(X4, camera)
    np.savez(tmp_path / "photographs.npz", mu_pris_param=np.zeros((1, 36)))
    with pytest.raises(RecipeError, match="should begin with 2a7c182a"):
        plugin.score_images(X4, camera)


def test_an_npz_file_is_read_without_unpickling(tmp_path: Path):
    from ganlab import read_weights

    np.savez(tmp_path / "sound.npz", a=np.arange(3.0))
    found = read_weights(NIQE(), tmp_path / "sound.npz")
    assert found.keys() == {"a"}
    assert torch.equal(found["a"], torch.arange(3.0, dtype=torch.float64))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}]))
    with pytest.raises(RecipeError, match="cannot be read as a file of weights"):
        read_weights(NIQE(), tmp_path / "pickled.npz")


def test_niqe_of_camera_is_that_of_the_published_evaluator(shared_data: Path, camera):
    file = shared_data / "niqe_pris_params.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    found = NIQE(weights=file).score_images(SimpleNamespace(scale=0), camera)
    assert found["niqe"] == pytest.approx(3.09621, abs=1e-4)
