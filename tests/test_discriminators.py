"""The discriminators are the published networks, at every size that they promise."""

import pytest
import torch
from ganlab_plugins.gradient_penalty import GradientPenalty
from ganlab_plugins.patch_discriminator import PatchDiscriminator
from ganlab_plugins.unet_discriminator import UnetDiscriminator
from ganlab_plugins.vgg_discriminator import VGGDiscriminator
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import RecipeError

NORMS = ("none", "batch", "instance", "layer", "spectral")
OF_ONE_IMAGE = ("none", "instance", "layer", "spectral")


def patch(size=32, channels=3, **options):
    torch.manual_seed(0)
    return PatchDiscriminator(**{"width": 4} | options).make_discriminator((channels, size, size))


def vgg(size=64, channels=3, **options):
    torch.manual_seed(0)
    return VGGDiscriminator(**{"width": 4} | options).make_discriminator((channels, size, size))


def unet(size=32, channels=3, **options):
    torch.manual_seed(0)
    return UnetDiscriminator(**{"width": 4} | options).make_discriminator((channels, size, size))


def sample(n=1, height=32, width=None, channels=3):
    shape = (n, channels, height, width or height)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def size_of(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("none", 2_764_737),
        ("spectral", 2_764_737),
        ("batch", 2_764_737 - 896 + 2 * 896),
        ("instance", 2_764_737 - 896),
        ("layer", 2_764_737 + 2 * 896),
    ],
)
def test_patch_discriminator_has_the_published_number_of_parameters(norm, expected):
    assert size_of(patch(96, width=64, norm=norm)) == expected


def test_a_bias_before_instance_norm_would_change_nothing():
    # why pix2pix's 896 biases are left out
    D = patch(norm="instance")
    with_bias = patch(norm="instance")
    for i, layer in enumerate(with_bias):
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.randn(layer.out_channels))
            assert isinstance(with_bias[i + 1], nn.InstanceNorm2d)
    torch.testing.assert_close(with_bias(sample()), D(sample()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("num_layers", "patch_size"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_a_patch_of_the_stated_size(num_layers, patch_size):
    size = 2 * patch_size + 2**num_layers * 4
    D = patch(size, width=2, num_layers=num_layers)
    images = sample(1, size).requires_grad_()
    logits = D(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = images.grad.abs().sum(1)[0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch_size, patch_size]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_smallest_crop_works_and_a_smaller_one_is_refused_with_a_remedy(norm, num_layers):
    smallest = 3 * 2**num_layers
    logits = patch(smallest, norm=norm, num_layers=num_layers)(sample(2, smallest))
    assert logits.shape == (2, 1, 1, 1)
    assert torch.isfinite(logits).all()
    with pytest.raises(RecipeError, match="use fewer layers or a larger crop"):
        patch(smallest - 1, norm=norm, num_layers=num_layers)


def test_patch_logits_form_a_map_that_follows_the_image():
    D = patch(96)
    assert D(sample(2, 96)).shape == (2, 1, 10, 10)
    assert D(sample(1, 33, 47)).shape == (1, 1, 2, 3)


@pytest.mark.parametrize(
    ("layout", "size", "expected"), [("vgg", 128, 14_499_401), ("srgan", 96, 23_563_649)]
)
def test_vgg_discriminator_has_the_published_number_of_parameters(layout, size, expected):
    assert size_of(vgg(size, width=64, layout=layout)) == expected


@pytest.mark.parametrize("layout", ["vgg", "srgan"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97)])
def test_vgg_discriminator_gives_one_logit_per_image(layout, norm, height, width):
    plugin = VGGDiscriminator(width=2, layout=layout, norm=norm, num_features=5)
    logits = plugin.make_discriminator((3, height, width))(sample(2, height, width))
    assert logits.shape == (2, 1)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (31, {"layout": "vgg", "norm": "none"}),
        (32, {"layout": "vgg", "norm": "instance"}),
        (16, {"layout": "srgan", "norm": "instance"}),
    ],
)
def test_a_crop_too_small_for_vgg_discriminator_is_refused_with_a_remedy(size, options):
    with pytest.raises(RecipeError, match="use a larger crop"):
        vgg(size, **options)


@pytest.mark.parametrize("make", [patch, vgg])
@pytest.mark.parametrize("norm", OF_ONE_IMAGE)
def test_images_of_a_batch_do_not_meet_without_batch_norm(make, norm):
    D = make(64, norm=norm).eval()  # in training, spectral norm sharpens its estimate at each call
    batch = sample(4, 64)
    one_by_one = torch.cat([D(image[None]) for image in batch])
    torch.testing.assert_close(D(batch), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [patch, vgg])
def test_images_of_a_batch_do_meet_in_batch_norm(make):
    D, batch = make(64, norm="batch"), sample(4, 64).requires_grad_()
    D(batch)[0].sum().backward()
    assert batch.grad[1:].abs().max() > 0


@pytest.mark.parametrize("make", [patch, vgg])
def test_spectral_norm_holds_every_layer_to_a_slope_of_1(make):
    D = make(64, norm="spectral")
    for _ in range(60):
        D(sample(1, 64))
    D.eval()
    layers = [m for m in D.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
        assert norm.item() == pytest.approx(1, abs=0.02)
    assert len(layers) == (5 if make is patch else 12)


@pytest.mark.parametrize("make", [patch, vgg])
def test_layer_norm_is_over_channels_and_pixels_of_one_image(make):
    D = make(64, norm="layer")
    layers = list(D)
    norms = [i for i, layer in enumerate(layers) if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == (3 if make is patch else 9)
    features = D[: norms[0]](sample(3, 64))
    normalised = D[: norms[0] + 1](sample(3, 64))
    torch.testing.assert_close(normalised, F.layer_norm(features, features.shape[1:]))
    # a bias is not taken away again, for it differs between the channels
    assert all(layers[i - 1].bias is not None for i in norms)


def test_layer_norm_in_vgg_discriminator_adds_its_biases():
    assert (
        size_of(vgg(128, width=64, norm="layer")) == 14_499_401 + 64 + 2 * 128 + 2 * 256 + 4 * 512
    )


@pytest.mark.parametrize("make", [patch, vgg])
@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_of_a_discriminator_learns(make, norm):
    D = make(64, norm=norm)
    D(sample(3, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in D.parameters())


@pytest.mark.parametrize("make", [patch, vgg])
@pytest.mark.parametrize("norm", OF_ONE_IMAGE)
def test_a_gradient_penalty_reaches_every_weight(make, norm):
    D = make(64, norm=norm)
    penalty = GradientPenalty().penalty(D, sample(2, 64), 1 - sample(2, 64))
    penalty["D/gradient_penalty"].backward()
    weights = [p for p in D.parameters() if p.dim() > 1]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in weights)


@pytest.mark.parametrize("make", [patch, vgg])
def test_other_numbers_of_channels_are_taken_from_the_images(make):
    assert make(64, channels=6)(sample(1, 64, channels=6)).shape[:2] == (1, 1)


def test_double_precision_stays_double():
    assert patch().double()(sample().double()).dtype == torch.float64


def test_spectral_norm_is_torchs_own():
    # the same parametrization a stranger would write, so checkpoints carry the usual names
    expected = set(spectral_norm(nn.Conv2d(3, 4, 4)).state_dict())
    first = {key for key in patch(norm="spectral").state_dict() if key.startswith("0.")}
    assert {key.removeprefix("0.") for key in first} == expected


def halved(images):
    """The mean of the up to 3x3 pixels around every second one."""
    ones = torch.ones_like(images)
    kernel = torch.ones(3, 1, 3, 3)
    sums, counts = (F.conv2d(x, kernel, stride=2, padding=1, groups=3) for x in (images, ones))
    return sums / counts


@pytest.mark.parametrize(("downsample", "times"), [(1, 0), (2, 1), (4, 2)])
def test_a_patch_discriminator_of_a_coarser_scale_judges_a_smaller_image(downsample, times):
    D, plain = patch(64, num_layers=1, downsample=downsample), patch(64, num_layers=1)
    images = smaller = sample(2, 50, 37)
    for _ in range(times):
        smaller = halved(smaller)
    torch.testing.assert_close(D(images), plain(smaller))
    assert size_of(D) == size_of(plain)


def test_three_scales_are_the_discriminator_of_pix2pixhd():
    scales = [patch(96, width=64, norm="instance", downsample=2**i) for i in range(3)]
    assert [tuple(D(sample(1, 256)).shape[-2:]) for D in scales] == [(30, 30), (14, 14), (6, 6)]
    # 896 biases before instance norm, which would change nothing, are in the published count
    assert sum(size_of(D) + 896 for D in scales) == 3 * 2_764_737


@pytest.mark.parametrize("downsample", [2, 4])
def test_the_smallest_crop_grows_with_the_downsampling(downsample):
    smallest = 24 * downsample - (downsample - 1)  # halving rounds up
    logits = patch(smallest, downsample=downsample)(sample(1, smallest))
    assert logits.shape == (1, 1, 1, 1)
    with pytest.raises(RecipeError, match=r"23 x 23 after downsample.*or less downsampling"):
        patch(smallest - 1, downsample=downsample)


@pytest.mark.parametrize("downsample", [0, 3, 6])
def test_a_downsampling_that_is_no_power_of_2_is_refused_with_a_remedy(downsample):
    with pytest.raises(ValidationError, match=r"use 1, 2, 4 or 8|greater than or equal to 1"):
        PatchDiscriminator(downsample=downsample)


def test_unet_discriminator_has_the_published_number_of_parameters():
    assert size_of(unet(64, width=64)) == 4_376_897


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40)])
def test_unet_discriminator_judges_every_pixel(height, width):
    logits = unet()(sample(2, height, width))
    assert logits.shape == (2, 1, height, width)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [(36, 32), (32, 36), (7, 8)])
def test_unet_discriminator_refuses_other_sides_with_a_remedy(size):
    with pytest.raises(RecipeError, match="not a multiple of 8; use a crop whose sides are"):
        UnetDiscriminator().make_discriminator((3, *size))


@pytest.mark.parametrize("skips", [True, False])
def test_unet_discriminator_adds_features_of_the_same_size(skips):
    D = unet(skips=skips).eval()
    features, down = sample(2), []
    for conv in (D.conv0, D.conv1, D.conv2, D.conv3):
        features = F.leaky_relu(conv(features), 0.2)
        down.append(features)
    for conv, same in zip((D.conv4, D.conv5, D.conv6), reversed(down[:3]), strict=True):
        twice = [2 * side for side in features.shape[-2:]]
        features = F.interpolate(features, twice, mode="bilinear", align_corners=False)
        features = F.leaky_relu(conv(features), 0.2) + (same if skips else 0)
    for conv in (D.conv7, D.conv8):
        features = F.leaky_relu(conv(features), 0.2)
    torch.testing.assert_close(D(sample(2)), D.conv9(features))


def test_unet_discriminator_normalises_all_but_its_ends():
    D = unet()
    normalised = {name for name, m in D.named_children() if hasattr(m, "parametrizations")}
    assert normalised == {f"conv{i}" for i in range(1, 9)}
    assert {name for name, m in D.named_children() if m.bias is not None} == {"conv0", "conv9"}


def test_images_of_a_batch_do_not_meet_in_unet_discriminator():
    D, batch = unet().eval(), sample(4)
    one_by_one = torch.cat([D(image[None]) for image in batch])
    torch.testing.assert_close(D(batch), one_by_one, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_unet_discriminator_learns_and_a_penalty_reaches_its_weights():
    D = unet()
    D(sample(2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in D.parameters())
    D.zero_grad()
    GradientPenalty().penalty(D, sample(2), 1 - sample(2))["D/gradient_penalty"].backward()
    weights = [p for p in D.parameters() if p.dim() > 1]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in weights)


def test_unet_discriminator_reads_the_names_of_published_checkpoints():
    D, published = unet(), {}
    for name, value in unet().state_dict().items():
        for old, new in (
            ("weight_orig", "parametrizations.weight.original"),
            ("weight_u", "parametrizations.weight.0._u"),
            ("weight_v", "parametrizations.weight.0._v"),
        ):
            name = name.replace(new, old)
        published[name] = value
    old_layer = nn.utils.spectral_norm(nn.Conv2d(4, 8, 4, bias=False))
    names = {f"conv1.{name}": value.shape for name, value in old_layer.state_dict().items()}
    assert names == {k: v.shape for k, v in published.items() if k.startswith("conv1.")}
    for parameter in D.parameters():
        nn.init.zeros_(parameter)
    D.load_state_dict(published)
    assert torch.equal(D.eval()(sample()), unet().eval()(sample()))
