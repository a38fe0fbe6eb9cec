"""The discriminators are the published networks, at every size that they promise."""

import pytest
import torch
from ganlab_plugins.gradient_penalty import GradientPenalty
from ganlab_plugins.patch_discriminator import PatchDiscriminator
from ganlab_plugins.vgg_discriminator import VGGDiscriminator
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganlab import RecipeError

NORMS = ("none", "batch", "instance", "spectral")


def patch(size=32, channels=3, **options):
    torch.manual_seed(0)
    return PatchDiscriminator(**{"width": 4} | options).make_discriminator((channels, size, size))


def vgg(size=64, channels=3, **options):
    torch.manual_seed(0)
    return VGGDiscriminator(**{"width": 4} | options).make_discriminator((channels, size, size))


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
@pytest.mark.parametrize("norm", ["none", "instance", "spectral"])
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
@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_of_a_discriminator_learns(make, norm):
    D = make(64, norm=norm)
    D(sample(3, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in D.parameters())


@pytest.mark.parametrize("make", [patch, vgg])
@pytest.mark.parametrize("norm", ["none", "instance", "spectral"])
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
