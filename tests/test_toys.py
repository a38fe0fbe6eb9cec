"""What toy problems are made of: latent noise, perceptrons, and digits in three channels."""

import math
from pathlib import Path

import pytest
import torch
from ganlab_plugins.latent import Latent
from ganlab_plugins.mlp import MLP
from scipy import stats
from torch import Tensor, nn

from ganlab import RecipeError
from ganlab.engine import assemble
from ganlab.recipe import load_recipe
from ganlab.streams import Streams

CPU = torch.device("cpu")


def noise(images: Tensor, seed: int = 0, **options: object) -> Tensor:
    """What a latent plugin makes of images; a wrapper is a generator, here driven by hand."""
    plugin = Latent(**options)
    plugin._streams = Streams(seed)
    hook = plugin.degrade()
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


def test_latent_noise_refuses_images_that_wait_to_be_enlarged(tmp_path: Path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "iterations = 1\nbatch_size = 1\n[plugins]\nbuiltin = { crop = 8, num_leaves = 1 }\n"
        "latent = { dim = 4 }\nmlp = { width = 2 }\nbce = {}\n"
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
