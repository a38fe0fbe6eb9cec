"""Generators are recognised by spandrel, which many tools read published networks with."""

import pytest
import torch
from ganlab_plugins.compact import Compact
from ganlab_plugins.rrdb import RRDB
from ganlab_plugins.span import SPAN
from ganlab_plugins.swinir_light import SwinIRLight

spandrel = pytest.importorskip("spandrel")

# of spandrel's own SwinIR
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")

SMALL = [
    *((RRDB, {"width": 8, "num_blocks": 2}, scale) for scale in (1, 2, 4)),
    *((Compact, {"width": 8, "num_layers": 2}, scale) for scale in (1, 2, 3, 4)),
    *((SPAN, {"width": 8}, scale) for scale in (1, 2, 3, 4)),
    *((SwinIRLight, {"width": 12, "num_layers": 2, "num_blocks": 3}, s) for s in (2, 3, 4)),
]
PUBLISHED = [
    (RRDB, {}, 4),
    (RRDB, {}, 2),
    (Compact, {}, 4),
    (Compact, {"num_layers": 32}, 4),
    (SPAN, {}, 4),
    (SPAN, {"width": 52}, 2),
    (SwinIRLight, {}, 2),
    (SwinIRLight, {}, 4),
]
NAMES = {RRDB: "ESRGAN", Compact: "Compact", SPAN: "SPAN", SwinIRLight: "SwinIR"}


def build(cls, options, scale):
    torch.manual_seed(0)
    return cls(**options).make_generator((3, 8, 8), (3, 8 * scale, 8 * scale)).eval()


def sample(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("cls", "options", "scale"), SMALL + PUBLISHED)
@torch.no_grad()
def test_spandrel_recognises_a_generator_and_makes_the_same_image(cls, options, scale):
    G = build(cls, options, scale)
    found = spandrel.ModelLoader().load_from_state_dict(dict(G.state_dict()))
    assert found.architecture.id == NAMES[cls]
    assert (found.scale, found.input_channels, found.output_channels) == (scale, 3, 3)
    lr = sample(9, 7)
    torch.testing.assert_close(found.model.eval()(lr), G(lr), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_spandrel_recognises_span_without_input_norm():
    G = build(SPAN, {"width": 8, "input_norm": False}, 4)
    found = spandrel.ModelLoader().load_from_state_dict(dict(G.state_dict()))
    assert not found.model.is_norm
    torch.testing.assert_close(found.model.eval()(sample(9, 7)), G(sample(9, 7)))


def swinir_of_spandrel(scale):
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=64,
        window_size=8,
        embed_dim=60,
        depths=[6] * 4,
        num_heads=[6] * 4,
        mlp_ratio=2,
        upscale=scale,
        upsampler="pixelshuffledirect",
    )


def compact_of_spandrel(num_conv):
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=64, num_conv=num_conv, upscale=4)


def span_of_spandrel(width):
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=width, upscale=4)


@pytest.mark.parametrize(
    ("cls", "options", "scale", "other"),
    [
        (Compact, {}, 4, lambda: compact_of_spandrel(16)),
        (Compact, {"num_layers": 32}, 4, lambda: compact_of_spandrel(32)),
        (SPAN, {}, 4, lambda: span_of_spandrel(48)),
        (SPAN, {"width": 52}, 4, lambda: span_of_spandrel(52)),
        (SwinIRLight, {}, 3, lambda: swinir_of_spandrel(3)),
        (SwinIRLight, {}, 4, lambda: swinir_of_spandrel(4)),
    ],
)
@torch.no_grad()
def test_a_network_of_published_size_takes_the_weights_of_spandrels_own(cls, options, scale, other):
    torch.manual_seed(1)
    theirs = other()
    state = theirs.state_dict()
    G = build(cls, options, scale)
    assert shapes(G.state_dict()) == shapes(state)
    buffers = dict(theirs.named_buffers())
    assert all(torch.equal(G.get_buffer(name), value) for name, value in buffers.items())
    G.load_state_dict(state)
    lr = sample(17, 11)
    torch.testing.assert_close(G(lr), theirs.eval()(lr), rtol=1e-4, atol=1e-4)


def test_span_in_training_follows_the_gradient_of_the_published_modules():
    torch.manual_seed(1)
    theirs, G = span_of_spandrel(48).double(), build(SPAN, {}, 4).double()
    G.load_state_dict(theirs.state_dict())
    lr = sample(6, 5).double()
    for network in (theirs.train(), G.train()):
        network(lr).square().mean().backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in G.named_parameters():
        torch.testing.assert_close(parameter.grad, their_gradients[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("scale", "inputs"), [(4, 3), (2, 12), (1, 48)])
def test_rrdb_of_published_size_has_the_layout_of_basicsrs_checkpoints(scale, inputs):
    # spandrel's own RRDB has other names, and translates from these
    layers = {"conv_first": (64, inputs), "conv_last": (3, 64)}
    layers |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (64, 64))
    for block in range(23):
        for dense in (1, 2, 3):
            for i in range(1, 6):
                sizes = (64 if i == 5 else 32, 64 + 32 * (i - 1))
                layers[f"body.{block}.rdb{dense}.conv{i}"] = sizes
    expected = {}
    for name, (outputs, channels) in layers.items():
        expected |= {f"{name}.weight": (outputs, channels, 3, 3), f"{name}.bias": (outputs,)}
    assert shapes(build(RRDB, {}, scale).state_dict()) == expected


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}
