"""The encoder-decoder works at every size, starts at the resized input and can learn."""

import pytest
import torch
from ganlab_plugins.encoder_decoder import EncoderDecoder
from torch import nn
from torch.nn import functional as F

from ganlab import RecipeError, resize


def generator(scale=4, channels=3, moved=True, **options):
    torch.manual_seed(0)
    options = {"width": 8} | options
    shapes = (channels, 12, 16), (channels, 12 * scale, 16 * scale)
    G = EncoderDecoder(**options).make_generator(*shapes)
    if moved:  # the last layer begins at zero; move it, or the rest would be invisible
        nn.init.normal_(G.last.weight, std=0.1)
    return G


def sample(n=1, height=12, width=16, channels=3):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (5, 7), (12, 16)])
def test_any_size_comes_out_scaled(scale, height, width):
    G = generator(scale, depth=2, skips=True)
    out = G(sample(2, height, width))
    assert out.shape == (2, 3, height * scale, width * scale)
    assert torch.isfinite(out).all()


def test_odd_sides_are_extended_by_their_last_pixels():
    G = generator(global_skip="none", depth=2)
    odd = sample(1, 5, 7)
    extended = F.pad(odd, (0, 1, 0, 3), mode="replicate")
    assert torch.equal(G(odd), G(extended)[..., :20, :28])


@pytest.mark.parametrize(
    ("global_skip", "expected"),
    [
        ("bicubic", lambda lr: resize(lr, (48, 64))),
        ("nearest", lambda lr: lr.repeat_interleave(4, -1).repeat_interleave(4, -2)),
    ],
)
def test_training_starts_at_the_resized_input(global_skip, expected):
    lr = sample()
    assert torch.equal(generator(global_skip=global_skip, moved=False)(lr), expected(lr))


def test_the_global_skip_adds_a_tenth_of_the_answer_to_the_resized_input():
    lr = sample()
    alone, added = generator(global_skip="none"), generator(global_skip="bicubic")
    added.load_state_dict(alone.state_dict())
    expected = 0.1 * (alone(lr) - 0.5) + resize(lr, (48, 64))
    torch.testing.assert_close(added(lr), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("skips", [False, True])
def test_skips_add_no_parameters_but_another_way(skips):
    G = generator(skips=skips, global_skip="none", depth=2)
    assert sum(p.numel() for p in G.parameters()) == sum(
        p.numel() for p in generator(depth=2).parameters()
    )
    # cut the way through the pooling: without skips nothing of the input is left
    for up in G.up:
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
    assert torch.equal(G(sample()), G(1 - sample())) != skips


@pytest.mark.parametrize(("width", "depth", "expected"), [(64, 1, 1_133_987), (32, 1, 286_643)])
def test_its_size_is_known(width, depth, expected):
    G = generator(width=width, depth=depth)
    assert sum(p.numel() for p in G.parameters()) == expected


@pytest.mark.parametrize("skips", [False, True])
def test_images_of_a_batch_do_not_meet(skips):
    G, batch = generator(skips=skips), sample(4, 5, 7)
    one_by_one = torch.cat([G(image[None]) for image in batch])
    torch.testing.assert_close(G(batch), one_by_one, rtol=1e-5, atol=1e-6)


def test_every_parameter_learns():
    G = generator(depth=2, skips=True)
    for parameter in G.parameters():  # away from the zeros of the initialisation
        nn.init.normal_(parameter, std=0.1)
    G(sample(2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in G.parameters())


def test_transposed_convolutions_make_no_checkerboard():
    # with equal weights, a constant image must stay constant away from the border
    G = generator(scale=4, global_skip="none")
    for up in [*G.up, *(layer for layer in G.to_hr if isinstance(layer, nn.ConvTranspose2d))]:
        nn.init.constant_(up.weight, 0.01)
        out = up(torch.ones(1, up.in_channels, 8, 8))[..., 1:-1, 1:-1]
        torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


def test_features_keep_their_size_through_the_untrained_network():
    G = generator(width=64, global_skip="none", depth=2)
    features = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for layer in (G.encoder[0], G.up[-1], G.to_hr):
        before = torch.randn(1, 128, 16, 16) if layer is G.up[-1] else features
        features = layer(before)
        size = features[..., 4:-4, 4:-4].square().mean() / before.square().mean()
        assert 0.6 < size.item() < 1.6


def test_brightness_is_no_news_to_the_network():
    # grey 0.5 is 0 to it: an untrained one adds nothing, whatever its last weights are
    grey = torch.full((1, 3, 12, 16), 0.5)
    torch.testing.assert_close(generator()(grey), torch.full((1, 3, 48, 64), 0.5))
    torch.testing.assert_close(generator(global_skip="none")(grey), torch.full((1, 3, 48, 64), 0.5))


def test_residual_blocks_begin_as_identities():
    features = torch.randn(1, 8, 5, 7)
    for block in generator().encoder[0][1:]:
        assert torch.equal(block(features), features)


def test_a_few_steps_bring_it_closer_than_bicubic():
    G = generator(scale=2, width=16, moved=False)
    real = torch.nn.functional.interpolate(sample(4, 12, 16).round(), scale_factor=4)
    lr = resize(real, (24, 32))
    optimizer = torch.optim.Adam(G.parameters(), 2e-3)
    before = F.mse_loss(G(lr), real).item()
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(G(lr), real).backward()
        optimizer.step()
    assert F.mse_loss(G(lr), real).item() < 0.5 * before


def test_nothing_is_clamped():
    G = generator(global_skip="none")
    nn.init.constant_(G.last.bias, 5.0)
    assert G(sample()).max() > 1


def test_double_precision_stays_double():
    assert generator().double()(sample().double()).dtype == torch.float64


@pytest.mark.parametrize("real_shape", [(3, 36, 48), (3, 24, 64), (3, 25, 33), (3, 6, 8)])
def test_other_scales_are_refused_with_a_remedy(real_shape):
    with pytest.raises(RecipeError, match="choose another scale"):
        EncoderDecoder().make_generator((3, 12, 16), real_shape)


def test_a_condition_that_cannot_be_added_to_the_image_is_refused_with_a_remedy():
    with pytest.raises(RecipeError, match="global_skip = 'none'"):
        EncoderDecoder().make_generator((4, 12, 16), (3, 48, 64))
    G = EncoderDecoder(width=8, global_skip="none").make_generator((4, 12, 16), (3, 48, 64))
    assert G(sample(channels=4)).shape == (1, 3, 48, 64)
