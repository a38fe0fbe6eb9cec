"""What toy problems are made of: latent noise, perceptrons, and digits in three channels."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from ganlab_plugins.latent import Latent
from ganlab_plugins.mlp import MLP
from ganlab_plugins.stacked_digits import NUM_SAMPLES, StackedDigits, picture
from scipy import stats
from torch import Tensor, nn

from ganlab import RecipeError, read_image
from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.recipe.model import load_recipe
from ganlab.runs.folder import RunFolder
from ganlab.testing import seeded

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[1] / "recipes" / "toy"


def noise(images: Tensor, seed: int = 0, **options: object) -> Tensor:
    """What a latent plugin makes of images; a wrapper is a generator, here driven by hand."""
    hook = seeded(Latent(**options), seed).degrade()
    next(hook)
    with pytest.raises(StopIteration) as stop:
        hook.send(images)
    return stop.value.value


@pytest.mark.parametrize(
    ("distribution", "cdf"),
    [("normal", stats.norm.cdf), ("uniform", stats.uniform(-1, 2).cdf)],
)
def test_latent_numbers_follow_their_distribution(distribution, cdf):
    z = noise(torch.zeros(4000, 2), dim=5, distribution=distribution)
    assert z.shape == (4000, 5)
    assert stats.kstest(z.flatten(), cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(z.T) - torch.eye(5)).max() < 0.08


def test_latent_numbers_say_nothing_of_the_images_and_all_of_the_seed():
    one = noise(torch.zeros(3, 3, 9, 7))
    assert torch.equal(one, noise(torch.rand(3, 1)))
    assert not torch.equal(one, noise(torch.rand(3, 1), seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_latent_numbers_have_the_dtype_of_the_images(dtype, distribution):
    z = noise(torch.zeros(1, 2, dtype=dtype), dim=1, distribution=distribution)
    assert (z.dtype, z.shape) == (dtype, (1, 1))


PHOTOGRAPHS = """\
import torch
from torch import nn
from ganlab import Plugin, hookimpl

class Photographs(Plugin):
    @hookimpl
    def sample_real(self, batch_size):
        return torch.zeros(batch_size, 3, 8, 8)

    @hookimpl
    def evaluation_images(self):
        return {"one": torch.zeros(3, 64, 64, dtype=torch.uint8)}

    @hookimpl
    def make_generator(self):
        return nn.Sequential(nn.Linear(4, 192), nn.Unflatten(1, (3, 8, 8)))
"""


def test_latent_noise_refuses_images_that_wait_to_be_enlarged(tmp_path: Path):
    (tmp_path / "photographs.py").write_text(PHOTOGRAPHS)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'iterations = 1\nd_steps = 0\n[plugins]\nphotographs = { use = "./photographs.py" }\n'
        "latent = { dim = 4 }\npixel_loss = {}\n"
    )
    with pytest.raises(RecipeError, match=r"r\.toml:5: plugins\.latent: .*held-out images"):
        assemble(load_recipe(recipe), CPU)


def weights(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")]


def test_the_networks_of_the_paper_have_their_sizes():
    plugin = MLP(width=512, num_layers=3)
    G, D = plugin.make_generator((2,), (2,)), plugin.make_discriminator((2,))
    assert weights(G) == [(512, 2), (512, 512), (512, 512), (2, 512)]
    assert weights(D) == [(512, 2), (512, 512), (512, 512), (1, 512)]
    assert sum(p.numel() for p in G.parameters()) == 527_874
    assert sum(isinstance(m, nn.ReLU) for m in G) == 3


def test_the_discriminator_may_have_sizes_of_its_own():
    plugin = MLP(width=4, num_layers=2, discriminator_width=7, discriminator_num_layers=1)
    assert weights(plugin.make_generator((3,), (2,))) == [(4, 3), (4, 4), (2, 4)]
    assert weights(plugin.make_discriminator((2,))) == [(7, 2), (1, 7)]
    plugin = MLP(width=4, num_layers=2, discriminator_num_layers=0)
    assert weights(plugin.make_discriminator((2,))) == [(1, 2)]


@pytest.mark.parametrize("shape", [(2,), (3, 9, 7), (1,)])
def test_samples_of_any_shape_are_made_and_judged(shape):
    plugin = MLP(width=3, num_layers=1)
    fake = plugin.make_generator((5,), shape)(torch.randn(1, 5))
    assert fake.shape == (1, *shape)
    assert plugin.make_discriminator(shape)(fake).shape == (1, 1)


def test_without_hidden_layers_it_is_a_linear_map_of_the_flattened_condition():
    G = MLP(num_layers=0).make_generator((2, 3), (4,)).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    assert torch.allclose(G(x), x.flatten(1) @ G[1].weight.T + G[1].bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("activation", "below"), [("relu", 0.0), ("leaky_relu", -0.2)])
def test_the_activation_stands_after_hidden_layers_alone(activation, below):
    D = MLP(width=1, num_layers=1, activation=activation).make_discriminator((1,))
    for parameter in D.parameters():
        nn.init.constant_(parameter, 0.0)
    for layer in D:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 1.0)
    assert D(torch.tensor([[-1.0], [2.0]])).flatten().tolist() == pytest.approx([below, 2.0])
    nn.init.constant_(D[-1].bias, -3.0)
    assert D(torch.tensor([[2.0]])).item() == pytest.approx(-1.0)


def test_a_sigmoid_keeps_images_between_0_and_1():
    plugin = MLP(width=2, num_layers=0, output="sigmoid")
    G = plugin.make_generator((1,), (1,))
    nn.init.constant_(G[1].weight, math.log(3.0))
    nn.init.zeros_(G[1].bias)
    assert G(torch.tensor([[0.0], [1.0], [-1.0]])).flatten().tolist() == pytest.approx(
        [0.5, 0.75, 0.25]
    )


@pytest.fixture(scope="module")
def stacked() -> StackedDigits:
    return seeded(StackedDigits())


def numbers(plugin: StackedDigits, wanted: list[int]) -> Tensor:
    """An image of each of these numbers, hundreds in the first channel."""
    images, labels = plugin.digits(CPU)
    digits = torch.tensor([[n // 100, n // 10 % 10, n % 10] for n in wanted])
    first = torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])
    return images[first[digits]]


def test_stacked_digits_are_those_of_scikit_learn(stacked: StackedDigits):
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    images, labels = stacked.digits(CPU)
    assert torch.equal(images * 16, torch.tensor(found.images, dtype=torch.float32))
    assert torch.equal(labels, torch.tensor(found.target))
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)


def test_every_channel_is_a_digit_of_its_own(stacked: StackedDigits):
    batch = seeded(stacked, 0, 0).sample_real(6000, CPU)
    assert batch.shape == (6000, 3, 8, 8)
    images, labels = stacked.digits(CPU)
    distance, which = torch.cdist(batch.flatten(2).flatten(0, 1), images.flatten(1)).min(1)
    assert distance.max() < 0.01
    digits = labels[which].view(-1, 3).double()
    assert torch.corrcoef(digits.T).fill_diagonal_(0).abs().max() < 0.05
    assert stats.chisquare(torch.bincount(labels[which])).pvalue > 1e-4
    assert torch.equal(seeded(stacked, 0, 0).sample_real(6000, CPU), batch)


def test_the_nearest_digit_is_right_as_often_as_documented(stacked: StackedDigits):
    images, labels = stacked.digits(CPU)
    distance = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(math.inf)
    assert (labels[distance.argmin(1)] == labels).sum() == 1776  # of 1797: 98.8 %


@pytest.mark.parametrize(
    ("made", "modes", "kl"),
    [
        (list(range(1000)), 1000, 0.0),
        ([0], 1, math.log(1000)),
        ([7, 70, 700, 777], 4, math.log(250)),
        ([123, 123, 123, 321], 2, math.log(1000) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
    ],
)
def test_modes_and_kl_of_known_numbers(stacked: StackedDigits, made, modes, kl):
    assert stacked.figures(numbers(stacked, made)) == pytest.approx(
        {"modes": modes, "mode_kl": kl}, abs=1e-12
    )


def test_the_data_itself_has_all_modes_and_the_kl_that_is_documented(stacked: StackedDigits):
    figures = stacked.figures(stacked.sample_real(NUM_SAMPLES, CPU))
    assert figures == pytest.approx({"modes": 1000, "mode_kl": 0.020}, abs=0.002)


def test_stacked_digits_are_evaluated_and_drawn_by_a_run(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ganlab_plugins.stacked_digits.NUM_SAMPLES", 100)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "iterations = 1\nbest_metric = 'modes'\n[plugins]\nstacked_digits = {}\n"
        "latent = { dim = 4 }\nmlp = { width = 2, output = 'sigmoid' }\nbce = {}\n"
    )
    (tmp_path / "samples").mkdir()
    run = assemble(load_recipe(recipe), CPU, RunFolder(tmp_path))
    (figures,) = run.hook.evaluate(run=run, generator=run.G, images=[])
    assert 1 <= figures["modes"] < 20
    assert read_image(tmp_path / "samples" / "0000000.png").shape == (3, 18 + 8 * 36, 16 * 36)


def test_samples_are_drawn_at_the_left_and_data_at_the_right():
    made = torch.linspace(-0.5, 1.5, 64).view(-1, 1, 1, 1).expand(64, 3, 8, 8)
    image = picture(made, torch.zeros(64, 3, 8, 8))
    cells = image[0, 18:].view(8, 36, 16, 36)[:, 18, :, 18]
    expected = (made[:, 0, 0, 0].clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(cells[:, :8].flatten(), expected)
    assert not cells[:, 8:].any()


@pytest.mark.long
def test_r1_covers_the_ring_evenly(tmp_path: Path):
    arguments = ["run", str(RECIPES / "ring_r1.toml"), "--device", "cpu", "--name", "ring"]
    result = CliRunner().invoke(main, [*arguments, "--runs", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "ring" / "status.json").read_text())["scores"]
    assert scores["modes"] == 8
    assert scores["near"] > 0.85
    assert scores["mode_kl"] <= 0.01
    assert scores["energy_distance"] <= 0.02
