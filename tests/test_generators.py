"""The generators of the field are the published networks, for images of any size."""

import copy

import pytest
import torch
from ganlab_plugins.compact import Compact
from ganlab_plugins.edsr import EDSR
from ganlab_plugins.espcn import ESPCN
from ganlab_plugins.fsrcnn import FSRCNN
from ganlab_plugins.rrdb import RRDB
from ganlab_plugins.span import SPAN, _Convolution as SpanConvolution
from ganlab_plugins.srcnn import SRCNN
from ganlab_plugins.swinir_light import SwinIRLight, _shift_mask
from torch import nn
from torch.nn import functional as F

from ganlab import RecipeError, resize

SMALL = {
    SRCNN: {"kernels": "9-1-5"},
    FSRCNN: {"width": 8, "shrunk_width": 4, "num_mappings": 1},
    ESPCN: {},
    EDSR: {"width": 4, "num_blocks": 2},
    RRDB: {"width": 4, "growth": 3, "num_blocks": 1},
    Compact: {"width": 4, "num_layers": 1},
    SPAN: {"width": 4},
    SwinIRLight: {"width": 6, "num_layers": 1, "num_blocks": 2},
}
SCALES = {RRDB: (1, 2, 4), Compact: (1, 2, 3, 4), SPAN: (1, 2, 3, 4)}
every_generator = pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)
every_scale = pytest.mark.parametrize(
    ("cls", "scale"),
    [(cls, scale) for cls in SMALL for scale in SCALES.get(cls, (2, 3, 4))],
    ids=lambda value: getattr(value, "__name__", value),
)


def build(cls, scale=4, channels=3, seed=0, **options):
    torch.manual_seed(seed)
    return cls(**options).make_generator((channels, 6, 8), (channels, 6 * scale, 8 * scale))


def small(cls, scale=4, **others):
    return build(cls, scale, **SMALL[cls], **others)


def sample(n=1, height=6, width=8, channels=3, dtype=torch.float32):
    shape = (n, channels, height, width)
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def size_of(module):
    return sum(p.numel() for p in module.parameters())


def last_layer(G):
    return [m for m in G.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)][-1]


LARGE = {"width": 256, "num_blocks": 32, "residual_scale": 0.1}


@pytest.mark.parametrize(
    ("cls", "options", "scale", "channels", "expected"),
    [
        (SRCNN, {"kernels": "9-1-5"}, 4, 1, 8_129),
        (SRCNN, {"kernels": "9-3-5"}, 3, 1, 24_513),
        (SRCNN, {"kernels": "9-5-5"}, 2, 1, 57_281),
        (SRCNN, {"kernels": "9-1-5"}, 4, 3, 20_099),
        (FSRCNN, {}, 2, 1, 12_809),
        (FSRCNN, {}, 4, 1, 12_809),
        (FSRCNN, {}, 4, 3, 24_683),
        (FSRCNN, {"width": 32, "shrunk_width": 5, "num_mappings": 1}, 3, 1, 4_086),
        (ESPCN, {}, 4, 1, 24_752),
        (ESPCN, {}, 4, 3, 37_200),
        (EDSR, {}, 2, 3, 1_369_859),
        (EDSR, {}, 3, 3, 1_554_499),
        (EDSR, {}, 4, 3, 1_517_571),
        (EDSR, LARGE, 4, 3, 43_089_923),
        (RRDB, {}, 4, 3, 16_697_987),
        (RRDB, {}, 2, 3, 16_703_171),
        (RRDB, {"num_blocks": 16}, 4, 3, 11_662_019),
        (RRDB, {"num_blocks": 6}, 4, 3, 4_467_779),
        (Compact, {}, 4, 3, 621_424),
        (Compact, {"num_layers": 32}, 4, 3, 1_213_296),
        (SwinIRLight, {}, 4, 3, 929_628),
    ],
)
def test_a_generator_has_the_published_number_of_parameters(
    cls, options, scale, channels, expected
):
    assert size_of(build(cls, scale, channels, **options)) == expected


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [
        (SRCNN, {"kernels": "9-1-5"}, 8_032),
        (SRCNN, {"kernels": "9-3-5"}, 24_416),
        (SRCNN, {"kernels": "9-5-5"}, 57_184),
        (FSRCNN, {}, 12_464),
        (FSRCNN, {"width": 32, "shrunk_width": 5, "num_mappings": 1}, 3_937),
    ],
)
def test_the_weights_alone_are_as_many_as_the_papers_say(cls, options, expected):
    G = build(cls, channels=1, **options)
    assert sum(p.numel() for p in G.parameters() if p.dim() > 1) == expected


@pytest.mark.parametrize(
    ("width", "deployed", "stored"), [(48, 426_288, 2_236_728), (52, 498_208, 2_621_964)]
)
def test_span_uses_fewer_parameters_than_it_learns(width, deployed, stored):
    G = build(SPAN, width=width)
    state = {name: value.numel() for name, value in G.state_dict().items()}
    used = {k: n for k, n in state.items() if ".sk." not in k and ".conv." not in k}
    assert sum(state.values()) == stored
    assert sum(used.values()) == deployed
    assert size_of(G) == stored - sum(n for k, n in state.items() if ".eval_conv." in k)


@every_scale
@pytest.mark.parametrize(("n", "height", "width"), [(1, 1, 1), (2, 5, 7), (1, 9, 2)])
def test_any_size_comes_out_scaled(cls, scale, n, height, width):
    images = small(cls, scale)(sample(n, height, width))
    assert images.shape == (n, 3, height * scale, width * scale)
    assert torch.isfinite(images).all()


@every_scale
def test_every_parameter_learns(cls, scale):
    G = small(cls, scale).double()
    wanted = sample(2, 6 * scale, 9 * scale, dtype=torch.float64)
    F.mse_loss(G(sample(2, 6, 9, dtype=torch.float64)), wanted).backward()
    for name, parameter in G.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


@every_generator
@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_are_taken_from_the_images(cls, channels):
    lr = sample(2, 3, 5, channels)
    assert small(cls, channels=channels)(lr).shape == (2, channels, 12, 20)


@every_generator
def test_initial_weights_depend_on_the_seed_alone(cls):
    first, again, other = (small(cls, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_generator
def test_images_of_a_batch_do_not_meet(cls):
    G, batch = small(cls).double(), sample(3, 9, 10, dtype=torch.float64)
    one_by_one = torch.cat([G(image[None]) for image in batch])
    torch.testing.assert_close(G(batch), one_by_one, rtol=1e-9, atol=1e-9)


@every_generator
def test_training_and_evaluation_mode_are_one_function(cls):
    G = small(cls)
    assert torch.equal(G.train()(sample()), G.eval()(sample()))


@every_generator
@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_is_clamped(cls, sign):
    G = small(cls)
    bias = last_layer(G).bias
    nn.init.constant_(bias, sign * 5000.0)
    images = G(sample())
    assert (sign * images).min() > 1
    images.sum().backward()
    assert (bias.grad > 0).all()


@every_generator
def test_the_dtype_of_the_network_is_kept(cls):
    assert small(cls).double()(sample(dtype=torch.float64)).dtype == torch.float64


@every_generator
def test_it_runs_in_mixed_precision(cls):
    G = small(cls)
    with torch.autocast("cpu", torch.bfloat16):
        images = G(sample(2, 9, 10)).float()
    exact = G(sample(2, 9, 10))
    assert (images - exact).norm() < 0.02 * exact.norm()


def test_mixed_precision_does_not_round_the_factors_of_a_span_convolution():
    layer = SpanConvolution(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer.deployed()
    for ours, theirs in zip(mixed, layer.deployed(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@every_generator
def test_a_copy_and_a_loaded_state_are_the_same_network(cls):
    G, other = small(cls), small(cls, seed=1)
    expected = G(sample())
    assert not torch.allclose(other(sample()), expected)
    other.load_state_dict(G.state_dict())
    assert torch.equal(other(sample()), expected)
    assert torch.equal(copy.deepcopy(G)(sample()), expected)


@every_generator
@pytest.mark.parametrize("real_shape", [(3, 30, 40), (3, 24, 40), (3, 25, 33), (3, 48, 64)])
def test_other_scales_are_refused_with_a_remedy(cls, real_shape):
    with pytest.raises(RecipeError, match=r"times as large.*choose another scale"):
        cls().make_generator((3, 6, 8), real_shape)


def test_rrdb_has_no_x3():
    with pytest.raises(RecipeError, match="makes images 1, 2 or 4 times as large"):
        RRDB().make_generator((3, 6, 8), (3, 18, 24))


@pytest.mark.parametrize("kernels", ["9-1-5", "9-5-5"])
def test_srcnn_refines_the_bicubic_enlargement_up_to_its_border(kernels):
    G = build(SRCNN, 3, channels=1, kernels=kernels)
    for parameter in G.parameters():
        nn.init.zeros_(parameter)
    for layer in G.layers[::2]:
        layer.weight.data[0, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
    lr = 0.4 + 0.2 * sample(1, 5, 7, channels=1)  # bicubic overshoots, and ReLU is the identity > 0
    torch.testing.assert_close(G(lr), resize(lr, (15, 21)))


def test_srcnn_makes_an_even_image_of_an_even_one():
    # padding with zeros would darken or brighten the border
    images = build(SRCNN, 2)(torch.full((1, 3, 6, 5), 0.7))
    torch.testing.assert_close(images, images[..., :1, :1].expand_as(images))


def test_fsrcnn_begins_as_in_the_paper():
    G = build(FSRCNN, width=512, shrunk_width=256, num_mappings=1)
    convolutions = [m for m in G if isinstance(m, nn.Conv2d)]
    for layer in convolutions:
        fan_in = layer.weight[0].numel()
        he = (2 / (1 + 0.25**2) / fan_in) ** 0.5
        assert layer.weight.std().item() == pytest.approx(he, rel=0.015)
    assert G[-1].weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not any(layer.bias.any() for layer in (*convolutions, G[-1]))


def test_espcn_squashes_its_features_and_not_its_image():
    assert [type(m).__name__ for m in build(ESPCN)] == [
        *("Conv2d", "Tanh", "Conv2d", "Tanh", "Conv2d", "PixelShuffle")
    ]


@pytest.mark.parametrize(("channels", "mean"), [(3, (0.4488, 0.4371, 0.4040)), (1, (0.0,))])
def test_edsr_shifts_by_the_mean_of_div2k(channels, mean):
    G = small(EDSR, channels=channels)
    seen = []
    G.conv_first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for parameter in G.conv_last.parameters():
        nn.init.zeros_(parameter)
    lr = sample(channels=channels)
    shift = torch.tensor(mean).view(1, -1, 1, 1)
    torch.testing.assert_close(G(lr), shift.expand(1, channels, 24, 32))
    torch.testing.assert_close(seen[0], 255 * (lr - shift))


def test_edsr_is_the_published_sum():
    G = build(EDSR, 2, width=4, num_blocks=1, residual_scale=0.25, img_range=2.0)
    first = G.conv_first(2 * (sample() - G.mean))
    block = first + 0.25 * G.body[0].conv2(F.relu(G.body[0].conv1(first)))
    deep = first + G.conv_after_body(block)
    expected = G.conv_last(F.pixel_shuffle(G.upsample[0](deep), 2)) / 2 + G.mean
    torch.testing.assert_close(G(sample()), expected)


def test_edsr_names_its_parameters_as_basicsr_does():
    names = {name.rpartition(".")[0] for name in build(EDSR, 4, width=2).state_dict()}
    blocks = {f"body.{i}.conv{j}" for i in range(16) for j in (1, 2)}
    ends = {"conv_first", "conv_after_body", "upsample.0", "upsample.2", "conv_last"}
    assert names == blocks | ends


def test_rrdb_begins_with_a_tenth_of_he_in_its_dense_blocks_alone():
    G = build(RRDB, width=32, growth=16, num_blocks=1)
    for name, layer in G.named_modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            # torch's default is uniform in +- 1 / sqrt(fan_in)
            expected = 0.1 * (2 / fan_in) ** 0.5 if "rdb" in name else (3 * fan_in) ** -0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.1), name
            assert layer.bias.any() == ("rdb" not in name), name


@pytest.mark.parametrize(("scale", "fold"), [(1, 4), (2, 2)])
def test_rrdb_folds_pixels_into_channels_below_x4(scale, fold):
    # its x4 network at a smaller image
    G, times_4 = small(RRDB, scale).double(), small(RRDB, 4, channels=3 * fold**2).double()
    times_4.conv_last = copy.deepcopy(G.conv_last)
    times_4.load_state_dict(G.state_dict())
    lr = sample(1, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(G(lr), times_4(F.pixel_unshuffle(lr, fold)))


@pytest.mark.parametrize(
    ("cls", "scale", "multiple"), [(RRDB, 1, 4), (RRDB, 2, 2), (SwinIRLight, 2, 8)]
)
def test_odd_sizes_are_extended_by_reflection_and_cut(cls, scale, multiple):
    G, lr = small(cls, scale), sample(1, 13, 11)
    extended = F.pad(lr, (0, -11 % multiple, 0, -13 % multiple), mode="reflect")
    expected = G(extended)[..., : 13 * scale, : 11 * scale]
    torch.testing.assert_close(G(lr), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_compact_adds_detail_to_the_nearest_enlargement(scale):
    G = small(Compact, scale)
    for parameter in last_layer(G).parameters():
        nn.init.zeros_(parameter)
    expected = sample().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert torch.equal(G(sample()), expected)


def test_compact_refuses_an_output_of_other_channels_with_a_remedy():
    with pytest.raises(RecipeError, match="1 channels and the output 3; choose another generator"):
        Compact().make_generator((1, 6, 8), (3, 24, 32))


def test_a_span_convolution_is_the_chain_that_it_was_learnt_as():
    torch.manual_seed(0)
    layer = SpanConvolution(3, 5).double()
    images = sample(2, 5, 6, dtype=torch.float64)
    chain = layer.conv(F.pad(images, (1, 1, 1, 1))) + layer.sk(images)
    torch.testing.assert_close(layer(images), chain)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    ours = torch.autograd.grad(layer(images).square().mean(), parameters)
    theirs = torch.autograd.grad(chain.square().mean(), parameters)
    for name, our, their in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(our, their, msg=lambda text, name=name: f"{name}: {text}")


def test_span_stores_the_convolutions_of_its_present_weights():
    layer = SpanConvolution(3, 5).double()
    nn.init.normal_(layer.sk.weight)
    state = layer.state_dict()
    images = sample(2, 5, 6, dtype=torch.float64)
    stored = F.conv2d(images, state["eval_conv.weight"], state["eval_conv.bias"], padding=1)
    torch.testing.assert_close(layer(images), stored)
    # and reads the chain alone: a stored one may be from before the last update
    state["eval_conv.weight"] = torch.zeros_like(state["eval_conv.weight"])
    other = SpanConvolution(3, 5).double()
    other.load_state_dict(state)
    torch.testing.assert_close(other(images), stored)


@pytest.mark.parametrize("input_norm", [True, False])
def test_span_may_take_its_input_as_it_is(input_norm):
    G = small(SPAN, input_norm=input_norm)
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    expected = 255 * (sample() - mean) if input_norm else sample()
    seen = []
    G.conv_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    G(sample())
    torch.testing.assert_close(seen[0], expected)
    assert ("no_norm" in G.state_dict()) is not input_norm


def test_swinir_begins_as_published():
    G = build(SwinIRLight, num_layers=1)
    for name, parameter in G.layers[0].residual_group.named_parameters():
        if name.endswith("_table") or (name.endswith("weight") and "norm" not in name):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_swinir_masks_what_only_rolling_made_neighbours(height, width):
    # the pixels of a window may see each other when they were neighbours before it
    place = torch.arange(height * width).view(height, width).roll((-4, -4), (0, 1))
    tiles = place.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 64)
    rows, columns = tiles // width, tiles % width
    near = [(p[:, :, None] - p[:, None, :]).abs() < 8 for p in (rows, columns)]
    # a rolled window of one image width holds both of its ends
    halves = [(p < 4)[:, :, None] == (p < 4)[:, None, :] for p in (rows, columns)]
    allowed = near[0] & near[1]
    for axis, side in enumerate((height, width)):
        if side == 8:
            allowed = allowed & halves[axis]
    mask = _shift_mask(height, width, torch.device("cpu"))
    assert torch.equal(mask == 0, allowed)
    assert set(mask.unique().tolist()) == {0.0, -100.0}


def test_swinir_keeps_the_mask_of_its_usual_size():
    G = small(SwinIRLight)
    kept = G.get_buffer("layers.0.residual_group.blocks.1.attn_mask")
    assert kept.shape == (64, 64, 64)
    assert torch.equal(kept, _shift_mask(64, 64, torch.device("cpu")))
    lr = sample(1, 64, 64)
    expected = G(lr)
    kept.zero_()
    assert not torch.equal(G(lr), expected)
