"""The two-sample tests of patches: right on samples of one law, sharp on two; their patches."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from ganlab_plugins.c2st import C2ST, classifier_test
from ganlab_plugins.mmd import MMD, kernel_test
from scipy.stats import kstest
from torch import Tensor

from ganlab import EvaluatedImage, RecipeError, log_spectrum, luma, random_patches, require_held_out
from ganlab.testing import seeded

SIZES = [(3, 40, 52), (3, 33, 47), (1, 64, 37)]


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(seed))


def evaluated(item: str, hr: Tensor, sr: Tensor) -> EvaluatedImage:
    return EvaluatedImage(item, hr, hr[:, ::4, ::4].expand(3, -1, -1), sr, sr, {})


def perfect() -> list[EvaluatedImage]:
    """Images that a generator restored without a fault."""
    images = [image(i, shape) for i, shape in enumerate(SIZES)]
    return [evaluated(str(i), hr, hr.expand(3, -1, -1)) for i, hr in enumerate(images)]


def faint() -> list[EvaluatedImage]:
    """The same with the finest detail missing: each pixel the mean of itself and its neighbour."""
    return [
        evaluated(
            one.name, one.hr, ((one.sr.int() + one.sr.roll(1, -1).int()) // 2).to(torch.uint8)
        )
        for one in perfect()
    ]


# --- patches -------------------------------------------------------------------------------------


def test_patches_are_cut_at_the_same_places_of_sr_and_hr():
    sr, hr = random_patches(seeded(MMD(), 0, 0), perfect(), 8, 50)
    assert sr.dtype == torch.uint8
    assert sr.shape == (50, 3, 8, 8)
    assert torch.equal(sr, hr)


def test_every_place_of_every_image_is_as_likely_as_its_neighbours():
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij")
    first = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    second = first[:, :3, :4] + torch.tensor([0, 0, 1], dtype=torch.uint8)[:, None, None]
    pair = [evaluated("first", first, first), evaluated("second", second, second)]
    patches, _ = random_patches(seeded(MMD(), 0, 0), pair, 3, 4000)
    corners = [tuple(corner) for corner in patches[:, :, 0, 0].tolist()]
    counts = {corner: corners.count(corner) for corner in set(corners)}
    places = {(y, x, 0) for y in range(4) for x in range(7)} | {(0, 0, 1), (0, 1, 1)}
    assert counts.keys() == places
    for corner, count in counts.items():
        expected = 4000 / 2 / (2 if corner[2] else 28)
        assert abs(count - expected) < 5 * expected**0.5


def test_a_grey_image_is_compared_as_grey():
    grey = evaluated("grey", torch.full((1, 9, 9), 7, dtype=torch.uint8), image(0, (3, 9, 9)))
    sr, hr = random_patches(seeded(MMD(), 0, 0), [grey], 9, 1)
    assert torch.equal(hr, torch.full_like(hr, 7))
    mean = (grey.sr.double().mean(0) + 0.5).floor().to(torch.uint8)
    assert torch.equal(sr[0], mean.expand(3, -1, -1))


def test_patches_depend_on_the_moment_and_the_name_alone():
    first, again, later = (random_patches(seeded(MMD(), 0, m), perfect(), 8, 9) for m in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])


def test_an_image_smaller_than_a_patch_is_named():
    random_patches(MMD(), perfect(), 33, 1)
    with pytest.raises(RecipeError, match="34 pixels a side, and 1 has 33"):
        random_patches(MMD(), perfect(), 34, 1)


def test_a_run_with_images_too_small_for_the_figures_does_not_start():
    run = SimpleNamespace(scale=4, held_out={"a": image(0, (3, 35, 90))})
    require_held_out(MMD(), run, 32)
    with pytest.raises(RecipeError, match="33 pixels a side, and a has 32"):
        require_held_out(MMD(), run, 33)
    run.held_out = {}
    for plugin in (MMD(), C2ST()):
        with pytest.raises(RecipeError, match="there are none"):
            plugin.run_start(run)


def test_a_cosine_is_one_feature_and_a_flat_patch_none_but_its_brightness():
    flat = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    features = log_spectrum(flat)[0]
    brightness = luma(flat)[0, 0, 0, 0] * 8  # of 8 x 8 pixels, orthonormal
    assert features[0].item() == pytest.approx(brightness.log1p().item())
    assert features[1:].abs().max() < 1e-12
    across = torch.cos(torch.pi * 3 * (torch.arange(8) + 0.5) / 8) * 90
    wave = (100 + across).round().to(torch.uint8).expand(1, 3, 8, 8)
    assert log_spectrum(wave)[0, 1:].argmax() == 2  # 3 half periods across, 0 down


# --- maximum mean discrepancy --------------------------------------------------------------------


def test_mmd_is_the_sum_over_pairs_of_its_definition():
    both = torch.randn(10, 3, generator=stream(0), dtype=torch.float64)
    distance = torch.tensor([(a - b).norm().item() for a, b in itertools.combinations(both, 2)])
    width = distance.median()  # of an odd number of pairs, 45

    def kernel(i, j):
        return torch.exp(-(both[i] - both[j]).square().sum() / (2 * width**2)).item()

    same = [kernel(i, j) for half in (range(5), range(5, 10)) for i in half for j in half if i != j]
    cross = [kernel(i, j) for i in range(5) for j in range(5, 10)]
    expected = sum(same) / 20 - 2 * sum(cross) / 25
    assert kernel_test(both, 19, stream(0))[0] == pytest.approx(expected, rel=1e-6)


def test_mmd_of_the_same_points_is_below_zero_by_what_their_own_pairs_add():
    # cross sum = within sum + n, the n pairs of a point with itself
    x = torch.randn(6, 2, generator=stream(1), dtype=torch.float64)
    value, p = kernel_test(torch.cat([x, x]), 99, stream(0))
    assert value < 0
    assert p > 0.5


def test_p_values_of_mmd_are_uniform_on_samples_of_one_law():
    p = [
        kernel_test(torch.randn(60, 2, generator=stream(i), dtype=torch.float64), 99, stream(-i))[1]
        for i in range(300)
    ]
    assert kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 0.01


def test_mmd_tells_two_laws_apart():
    x, y = torch.randn(2, 100, 2, generator=stream(0), dtype=torch.float64)
    assert kernel_test(torch.cat([x, y + 1]), 99, stream(0))[1] == 0.01
    assert kernel_test(torch.cat([x, 2 * y]), 99, stream(0))[1] == 0.01


def test_constant_features_are_of_one_law():
    value, p = kernel_test(torch.ones(8, 2, dtype=torch.float64), 19, stream(0))
    assert (value, p) == (0, 1)


# --- classifier ----------------------------------------------------------------------------------


def test_p_values_of_the_classifier_are_uniform_on_samples_of_one_law():
    p = []
    for seed in range(150):
        x, y = torch.randn(2, 200, 3, generator=stream(seed), dtype=torch.float64)
        p.append(classifier_test(x, y)[1])
    assert kstest(p, "uniform").pvalue > 0.01


def test_the_p_value_is_that_of_the_normal_law_of_the_paper():
    # one feature of 0 in the first, and of 1 in a fifth of the second: accuracy (1 + 1/5) / 2
    x = torch.zeros(200, 1, dtype=torch.float64)
    y = (torch.arange(200) % 5 == 0).double()[:, None]
    accuracy, p = classifier_test(x, y)
    assert accuracy == pytest.approx(0.6)
    # 0.1 over a standard deviation of sqrt(1 / (4 * 200)): 2.83 of them
    assert p == pytest.approx(0.0023389, rel=1e-4)


def test_the_classifier_is_tried_on_other_rows_than_it_was_fitted_to():
    # the first halves tell the kinds apart perfectly, the second halves not at all
    x = torch.cat([torch.zeros(50, 1), torch.ones(25, 1), torch.zeros(25, 1)]).double()
    y = torch.cat([torch.ones(50, 1), torch.ones(25, 1), torch.zeros(25, 1)]).double()
    assert classifier_test(x, y)[0] == 0.5


def test_the_classifier_tells_two_laws_apart():
    x, y = torch.randn(2, 4000, 3, generator=stream(0), dtype=torch.float64)
    accuracy, p = classifier_test(x, y + torch.tensor([2.0, 0, 0]))
    assert accuracy == pytest.approx(0.841, abs=0.02)  # the best possible is Phi(1)
    assert p < 1e-6


# --- as plugins ----------------------------------------------------------------------------------

PLUGINS = [
    pytest.param(lambda: MMD(patch=8, num_patches=40, num_permutations=99), id="mmd"),
    pytest.param(lambda: C2ST(patch=8, num_patches=200), id="c2st"),
]


@pytest.mark.parametrize("make", PLUGINS)
def test_a_perfect_generator_gets_uniform_p_values(make):
    # would the two patches of a place be compared, p would be near 1 throughout
    judged_images, plugin = perfect(), make()
    p = [seeded(plugin, 0, i).evaluate(judged_images)[f"{plugin.name}_p"] for i in range(60)]
    assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("make", PLUGINS)
def test_missing_detail_is_found(make):
    plugin = seeded(make(), 0, 0)
    figures = plugin.evaluate(faint())
    assert figures.keys() == {plugin.name, f"{plugin.name}_p"}
    assert figures[f"{plugin.name}_p"] <= 0.01
    assert figures[plugin.name] > (0.8 if isinstance(plugin, C2ST) else 0.1)


@pytest.mark.parametrize("make", PLUGINS)
def test_an_evaluation_is_a_function_of_seed_and_moment(make):
    first, again = (seeded(make(), 0, 3).evaluate(faint()) for _ in range(2))
    assert first == again
    assert make().evaluate([]) == {}
