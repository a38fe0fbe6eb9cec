"""SRResNet is the published network."""

import pytest
import torch
from ganlab_plugins.srresnet import SRResNet
from torch import nn

from ganlab import RecipeError


def generator(scale=4, **options):
    torch.manual_seed(0)
    return SRResNet(**options).make_generator((3, 6, 8), (3, 6 * scale, 8 * scale))


def sample(n=1, height=6, width=8):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("scale", "expected"), [(4, 1_547_350), (2, 1_399_637)])
def test_it_has_the_published_number_of_parameters(scale, expected):
    assert sum(p.numel() for p in generator(scale).parameters()) == expected


def test_without_norm_it_trades_scale_and_shift_for_biases():
    # per normalised convolution: 64 biases instead of 64 scales and 64 shifts; 33 of them
    counts = [sum(p.numel() for p in generator(norm=n).parameters()) for n in ("batch", "none")]
    assert counts[0] - counts[1] == 33 * 64


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7)])
def test_any_size_comes_out_scaled(scale, height, width):
    out = generator(scale, width=4, num_blocks=1)(sample(2, height, width))
    assert out.shape == (2, 3, height * scale, width * scale)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_parameter_learns(norm):
    G = generator(width=4, num_blocks=2, norm=norm)
    G(sample(2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in G.parameters())


def test_the_long_skip_bypasses_all_blocks():
    G = generator(width=4, num_blocks=2, norm="none")
    nn.init.zeros_(G.last_of_blocks[0].weight)
    nn.init.zeros_(G.last_of_blocks[0].bias)
    expected = G.last(G.to_hr(G.first(sample())))
    assert torch.equal(G(sample()), expected)


def test_images_of_a_batch_meet_in_batch_norm_alone():
    batch = sample(4)
    plain, mixed = generator(width=8, num_blocks=2, norm="none"), generator(width=8, num_blocks=2)
    alone = torch.cat([plain(image[None]) for image in batch])
    torch.testing.assert_close(plain(batch), alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed(batch)[:1], mixed(batch[:1]), atol=1e-3)
    mixed.eval()
    torch.testing.assert_close(mixed(batch)[:1], mixed(batch[:1]), rtol=1e-5, atol=1e-6)


def test_nothing_is_clamped():
    # a clamp in the network has no gradient outside 0..1
    G = generator(width=4, num_blocks=1)
    nn.init.constant_(G.last.bias, 5.0)
    images = G(sample())
    assert images.min() > 1
    images.sum().backward()
    assert G.last.bias.grad.tolist() == [images[0, 0].numel()] * 3


@pytest.mark.parametrize("real_shape", [(3, 30, 40), (3, 24, 40), (3, 25, 33)])
def test_other_scales_are_refused_with_a_remedy(real_shape):
    with pytest.raises(RecipeError, match="choose another scale"):
        SRResNet().make_generator((3, 6, 8), real_shape)
