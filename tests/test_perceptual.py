"""Networks with local weights: what they compute is what the papers and torchvision say."""

import copy
import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
from ganlab_plugins.dists import DISTS
from ganlab_plugins.dists_loss import DISTSLoss
from ganlab_plugins.lpips import LPIPS
from ganlab_plugins.lpips_loss import LPIPSLoss
from ganlab_plugins.perceptual_loss import PerceptualLoss
from pretended import PRETENDED, pretended_cuda
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from ganlab import (
    DISTSNetwork,
    LPIPSNetwork,
    RecipeError,
    VGGFeatures,
    resize,
    to_float,
    to_uint8,
)

ARCHITECTURES = ["alexnet", "vgg16", "vgg19", "squeezenet1_1"]
NETWORKS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
SRGAN = {"before_relu": False, "kind": "mse", "feature_scale": 1 / 12.75}
FIVE = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}


def convolutions(architecture):
    """torchvision's own, without a classifier that would take a second to make."""
    if architecture in ("vgg16", "vgg19"):
        return make_layers(cfgs["D" if architecture == "vgg16" else "E"], batch_norm=False)
    with torch.device("meta"):
        features = getattr(models, architecture)(weights=None).features
    return features.to_empty(device="cpu")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Stand-ins for torchvision's files: (path, digest, state dict) of an architecture."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def make(architecture):
        if architecture not in made:
            generator = torch.Generator().manual_seed(5)
            state = {}
            for name, value in convolutions(architecture).state_dict().items():
                fan_in = value[0].numel() if value.dim() > 1 else 100
                noise = torch.randn(value.shape, generator=generator)
                state[f"features.{name}"] = noise * (2 / fan_in) ** 0.5
            file = folder / f"{architecture}.pth"
            torch.save(state | {"classifier.0.weight": torch.zeros(4, 4)}, file)
            made[architecture] = file, hashlib.sha256(file.read_bytes()).hexdigest(), state
        return made[architecture]

    return make


def run_of(shape=(3, 32, 32), dtype=torch.float32, **more):
    defaults = {"held_out": {}, "scale": 4}
    defaults["device"] = torch.device("cpu")
    return SimpleNamespace(dtype=dtype, real_shape=shape, **(defaults | more))


def architecture_of(plugin, options):
    if plugin is PerceptualLoss:
        return "vgg19"
    default = "alex" if plugin is LPIPS else "vgg"
    return NETWORKS[options.get("network", default)] if "LPIPS" in plugin.__name__ else "vgg16"


def started(plugin, published, run=None, **options):
    """A plugin that has read its file through the real loader, as a run starts it."""
    file, sha256, _ = published(architecture_of(plugin, options))
    made = plugin(weights=file, sha256=sha256[:8], **options)
    made.check_recipe(run=run or run_of())
    if hasattr(made, "run_start"):
        made.run_start(run=run or run_of())
    return made


def images(n=2, shape=(3, 32, 35), seed=0, dtype=torch.float32):
    return torch.rand(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def value_of(plugin, fake, real):
    ((name, value),) = plugin.generator_loss(fake=fake, real=real).items()
    assert name == f"G/{plugin.name}" and value.shape == ()
    return value


def normalised(x):
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype)[:, None, None]
    return (x - mean) / torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype)[:, None, None]


# --- the published files


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_files_are_those_that_torchvision_names(architecture):
    names = {
        "alexnet": "alexnet-owt-7be5be79.pth",
        "vgg16": "vgg16-397923af.pth",
        "vgg19": "vgg19-dcbb9e9d.pth",
        "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    }
    if architecture == "vgg19":
        network = VGGFeatures(["conv1_1"])
    else:
        network = LPIPSNetwork({value: key for key, value in NETWORKS.items()}[architecture])
    assert network.file_name == names[architecture]
    assert names[architecture].endswith(f"-{network.sha256}.pth")
    assert network.source.endswith("/" + names[architecture])
    assert {name.partition(".")[0] for name in network.state_dict()} == {"features"}


def test_the_default_digests_are_the_published_ones():
    assert PerceptualLoss().sha256 == VGGFeatures(["conv1_1"]).sha256
    assert DISTSLoss().sha256 == DISTS().sha256 == DISTSNetwork().sha256


@pytest.mark.parametrize("plugin", [PerceptualLoss, LPIPSLoss, DISTSLoss, LPIPS, DISTS])
def test_a_missing_file_is_named_with_where_it_comes_from_and_goes(plugin, cache):
    name = {PerceptualLoss: "vgg19-dcbb9e9d.pth", LPIPS: "alexnet-owt-7be5be79.pth"}
    name = name.get(plugin, "vgg16-397923af.pth")
    with pytest.raises(RecipeError) as caught:
        plugin().check_recipe(run=run_of())
    message = str(caught.value)
    assert str(cache / "weights" / name) in message
    assert f"get it from https://download.pytorch.org/models/{name}" in message


@pytest.mark.parametrize("plugin", [PerceptualLoss, LPIPSLoss, DISTSLoss, LPIPS, DISTS])
def test_a_file_of_another_digest_is_refused(plugin, published):
    file, _, _ = published("vgg16")
    with pytest.raises(RecipeError, match="is not the expected file"):
        plugin(weights=file).check_recipe(run=run_of())
    with pytest.raises(ValidationError, match="sha256"):
        plugin(weights=file, sha256="")


def test_a_file_of_another_network_is_refused_even_where_the_first_layers_agree(published):
    file, sha256, _ = published("vgg16")
    plugin = PerceptualLoss(weights=file, sha256=sha256, layers={"conv1_2": 1.0})
    with pytest.raises(RecipeError, match="does not fit the network"):
        plugin.check_recipe(run=run_of())


# --- VGG features


def test_features_are_those_of_torchvision_before_and_after_relu(published):
    _, _, state = published("vgg19")
    plain = convolutions("vgg19")
    plain.load_state_dict({k.removeprefix("features."): v for k, v in state.items()})
    places = {"conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "conv4_4": 25, "conv5_4": 34}
    network = VGGFeatures([*places, "relu5_4", "pool5"])
    network.load_state_dict(state)
    x = images()
    with torch.no_grad():
        found = network(x)
        for name, place in (places | {"relu5_4": 35, "pool5": 36}).items():
            expected = plain[: place + 1](normalised(x))
            torch.testing.assert_close(found[name], expected, msg=name)
    assert all((found[name] < 0).any() for name in places)  # no ReLU wrote over them
    assert torch.equal(found["relu5_4"], found["conv5_4"].relu())


def test_no_layer_is_computed_beyond_the_deepest_named():
    network = VGGFeatures(["conv2_1"])
    for layer in network.features[6:]:
        layer.register_forward_hook(lambda *_: pytest.fail("computed for nothing"))
    assert network(images())["conv2_1"].shape == (2, 128, 16, 17)


def test_an_unknown_layer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no layer conv3_4; its layers are conv1_1, relu1_1"):
        VGGFeatures(["conv3_4"], "vgg16")
    with pytest.raises(ValidationError, match=r"layers of VGG19, conv1_1, .*; not conv5_5"):
        PerceptualLoss(layers={"conv5_5": 1.0})
    with pytest.raises(ValidationError, match="at least one layer"):
        PerceptualLoss(layers={})
    with pytest.raises(ValidationError, match="factor above 0"):
        PerceptualLoss(layers={"conv5_4": 0.0})


@pytest.mark.parametrize(
    ("options", "distance", "node"),
    [
        ({}, F.l1_loss, 34),  # ESRGAN
        (
            {"before_relu": False, "kind": "mse", "feature_scale": 1 / 12.75},
            F.mse_loss,
            35,
        ),  # SRGAN
    ],
)
def test_the_perceptual_loss_by_hand(published, options, distance, node):
    plugin = started(PerceptualLoss, published, **options)
    plain = convolutions("vgg19")
    plain.load_state_dict(plugin._network.features.state_dict())
    fake, real = images(), images(seed=1)
    with torch.no_grad():
        features = [plain[: node + 1](normalised(x)) for x in (fake, real)]
    expected = distance(*features)
    if options:
        expected = expected / 12.75**2
    assert value_of(plugin, fake, real).item() == pytest.approx(expected.item(), rel=1e-4)


def test_layers_are_summed_with_their_factors(published):
    fake, real = images(), images(seed=1)
    whole = value_of(started(PerceptualLoss, published, layers=FIVE), fake, real)
    parts = [
        factor * value_of(started(PerceptualLoss, published, layers={name: 1.0}), fake, real)
        for name, factor in FIVE.items()
    ]
    assert whole.item() == pytest.approx(sum(parts).item(), rel=1e-4)


# --- what all the losses have in common

LOSSES = [
    (PerceptualLoss, {}),
    (PerceptualLoss, {"layers": FIVE, "kind": "mse", "before_relu": False}),
    (LPIPSLoss, {"network": "alex"}),
    (LPIPSLoss, {}),
    (LPIPSLoss, {"network": "squeeze"}),
    (DISTSLoss, {}),
]
IDS = [f"{plugin.__name__}-{'-'.join(options)}" for plugin, options in LOSSES]


@pytest.mark.parametrize(("plugin", "options"), LOSSES, ids=IDS)
def test_the_gradient_reaches_fake_and_nothing_else(published, plugin, options):
    loss = started(plugin, published, **options)
    for n in (1, 2):
        fake, real = images(n).requires_grad_(), images(n, seed=1).requires_grad_()
        value = value_of(loss, fake, real)
        assert value > 0
        value.backward()
        assert fake.grad.isfinite().all() and (fake.grad.flatten(1).abs().sum(1) > 0).all()
        assert real.grad is None
    assert all(p.grad is None and not p.requires_grad for p in loss._network.parameters())
    assert not loss._network.training


@pytest.mark.parametrize(("plugin", "options"), LOSSES, ids=IDS)
def test_equal_images_cost_nothing(published, plugin, options):
    loss, real = started(plugin, published, **options), images()
    fake = real.clone().requires_grad_()
    value = value_of(loss, fake, real)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize(("plugin", "options"), LOSSES[::3], ids=IDS[::3])
def test_a_loss_runs_in_the_precision_of_the_run(published, plugin, options):
    loss = started(plugin, published, run_of(dtype=torch.float64), **options)
    fake, real = images(1, dtype=torch.float64), images(1, seed=1, dtype=torch.float64)
    value = value_of(loss, fake, real)
    assert value.dtype == torch.float64
    single = started(plugin, published, **options)
    assert value_of(single, fake.float(), real.float()).item() == pytest.approx(
        value.item(), rel=1e-4
    )


@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        # a CPU takes seconds for VGG in bfloat16: once for each loss, the others in long tests
        pytest.param(*loss, id=name, marks=[] if place in (0, 2, 5) else [pytest.mark.long])
        for place, (loss, name) in enumerate(zip(LOSSES, IDS, strict=True))
    ],
)
def test_bfloat16_on_cuda_changes_loss_and_gradient_a_little(
    published, monkeypatch, plugin, options
):
    real = resize(images(1, (3, 8, 8), seed=1), (32, 32)).clamp(0, 1)
    found = []
    with pretended_cuda(monkeypatch):
        for precision in ("float32", "bfloat16"):
            run = run_of(device=PRETENDED)
            loss = started(plugin, published, run, precision=precision, **options)
            assert loss._network.dtype == getattr(torch, precision)
            fake = (real + 0.1 * images(1, (3, 32, 32), seed=2)).to(PRETENDED).requires_grad_()
            value = value_of(loss, fake, real.to(PRETENDED))
            (gradient,) = torch.autograd.grad(value, fake)
            assert gradient.dtype == torch.float32
            found += [value.item(), gradient.cpu().flatten()]
    assert found[2] != found[0]
    assert found[2] == pytest.approx(found[0], rel=0.02)
    assert F.cosine_similarity(found[1], found[3], 0) > 0.8


@pytest.mark.parametrize("plugin", [PerceptualLoss, LPIPSLoss, DISTSLoss])
def test_bfloat16_elsewhere_is_float32_and_said(published, plugin):
    run = run_of(notes=[])
    loss = started(plugin, published, run, precision="bfloat16")
    assert loss._network.dtype == torch.float32
    assert run.notes == [f"{loss.name}: bfloat16 is for CUDA; its features are float32 here"]
    with pytest.raises(RecipeError, match='precision = "float64"; leave one out'):
        started(plugin, published, run_of(dtype=torch.float64), precision="bfloat16")


@pytest.mark.parametrize(("plugin", "options"), LOSSES[2:], ids=IDS[2:])
def test_features_that_are_all_zero_have_a_finite_gradient(published, plugin, options):
    loss = started(plugin, published, **options)
    for parameter in loss._network.parameters():
        parameter.zero_()
    fake = images(1, (3, 32, 32)).requires_grad_()
    value = value_of(loss, fake, images(1, (3, 32, 32), seed=1))
    value.backward()
    assert value.isfinite() and fake.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 32, 32), (2,)])
@pytest.mark.parametrize("plugin", [PerceptualLoss, LPIPSLoss, DISTSLoss])
def test_other_than_colour_images_are_refused(plugin, shape, published):
    with pytest.raises(RecipeError, match="needs colour images, and real samples are of shape"):
        started(plugin, published, run_of(shape))


@pytest.mark.parametrize(
    ("network", "smallest"), [("alex", 31), ("vgg", 16), ("squeeze", 17), ("features", 16)]
)
def test_the_smallest_image_is_the_one_stated(network, smallest):
    made = VGGFeatures(["conv5_4"]) if network == "features" else LPIPSNetwork(network)
    assert made.smallest == smallest
    made.check(PerceptualLoss(), (3, smallest, smallest), "crops")
    with pytest.raises(RecipeError, match=f"needs images of {smallest} pixels a side, and crops"):
        made.check(PerceptualLoss(), (3, 99, smallest - 1), "crops")
    with torch.no_grad():
        enough, less = images(1, (3, smallest, smallest)), images(1, (3, 99, smallest - 1))
        arguments = 1 if network == "features" else 2
        made(*[enough] * arguments)
        with pytest.raises(RuntimeError):
            made(*[less] * arguments)


# --- LPIPS and DISTS against torchmetrics, another implementation


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
@pytest.mark.parametrize("n", [1, 3])
def test_lpips_is_that_of_torchmetrics(published, monkeypatch, network, n):
    from torchmetrics.functional.image import lpips as theirs

    _, _, state = published(NETWORKS[network])
    ours = LPIPSNetwork(network)
    ours.load_state_dict(state)
    monkeypatch.setattr(
        theirs, "_get_tv_model_features", lambda *_: convolutions(NETWORKS[network])
    )
    other = theirs._LPIPS(net=network, pnet_rand=True)
    other.net.load_state_dict(
        {
            name: state[re.sub(r"^(slices\.\d+|slice\d+)\.", "features.", name)]
            for name in other.net.state_dict()
        }
    )
    a, b = images(n, (3, 41, 50)), images(n, (3, 41, 50), seed=1)
    with torch.no_grad():
        found, expected = ours(a, b), other(a, b, normalize=True).flatten()
    assert found.shape == (n,) and (expected > 1e-3).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_dists_is_that_of_torchmetrics(published, monkeypatch):
    from torchmetrics.functional.image import dists as theirs

    _, _, state = published("vgg16")
    ours = DISTSNetwork()
    ours.load_state_dict(state)
    plain = copy.deepcopy(ours.features)
    monkeypatch.setattr(theirs, "vgg16", lambda weights: SimpleNamespace(features=plain))
    other = theirs.DISTSNetwork().double()
    a, b = (images(2, (3, 37, 50), seed=s, dtype=torch.float64) for s in (0, 1))
    b = 0.5 * (a + b)
    found, expected = ours.double()(a, b), other(a, b)
    assert (expected > 1e-3).all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, check_dtype=False)


def test_the_learnt_numbers_are_the_published_ones():
    sums = {
        "alex": [2.3495, 16.1430, 39.2684, 27.1972, 20.3172],
        "vgg": [6.9260, 8.8583, 17.5150, 51.5213, 47.0349],
    }
    for network, expected in sums.items():
        made = LPIPSNetwork(network)
        found = [made.get_buffer(f"linear{i}") for i in range(5)]
        assert [x.sum().item() for x in found] == pytest.approx(expected, rel=1e-4)
        assert all((x >= 0).all() for x in found)
    dists = DISTSNetwork()
    assert dists.alpha.sum().item() == pytest.approx(0.87605, rel=1e-4)
    assert (dists.alpha.sum() + dists.beta.sum()).item() == pytest.approx(1, rel=1e-6)
    assert len(dists.alpha) == len(dists.beta) == 3 + 64 + 128 + 256 + 512 + 512


def test_l2_pooling_of_a_constant_is_the_constant():
    network = DISTSNetwork()
    pooled = network._pool(torch.full((1, 4, 9, 8), -0.5))
    assert pooled.shape == (1, 4, 5, 4)
    # inside the edge, where the window hangs over it
    assert torch.allclose(pooled[..., 1:-1, 1:], torch.tensor(0.5))


# --- the scores


@pytest.mark.parametrize("plugin", [LPIPS, DISTS])
def test_a_score_is_the_loss_of_the_8_bit_images(published, plugin):
    score = started(plugin, published)
    sr, hr = (to_uint8(images(1, (3, 33, 35), seed)) for seed in (0, 1))
    found = score.score_images(run=run_of(), sr=sr, hr=hr)
    expected = score._network(to_float(sr), to_float(hr))
    assert found == {plugin.__name__.lower(): pytest.approx(expected.item())}
    assert found[score.name].shape == () and found[score.name] > 0
    assert score.score_images(run=run_of(), sr=hr, hr=hr)[score.name] == pytest.approx(0, abs=1e-6)
    # grey is a colour image of three equal channels
    grey = score.score_images(run=run_of(), sr=sr[:, :1], hr=hr[:, :1])
    a, b = (to_float(x[:, :1]).expand(-1, 3, -1, -1) for x in (sr, hr))
    assert grey[score.name] == pytest.approx(score._network(a, b).item())


@pytest.mark.parametrize("plugin", [LPIPS, DISTS])
def test_a_score_needs_no_run_that_has_started(published, plugin):
    sr, hr = (to_uint8(images(1, (3, 33, 35), seed)) for seed in (0, 1))
    score = started(plugin, published)
    expected = score.score_images(run=run_of(), sr=sr, hr=hr)
    options = {name: getattr(score, name) for name in ("weights", "sha256")}
    assert plugin(**options).score_images(run=run_of(), sr=sr, hr=hr) == expected


def test_a_held_out_image_too_small_for_lpips_is_named_at_the_start(published):
    held_out = {"baby": torch.zeros(3, 64, 64), "bird": torch.zeros(1, 64, 33)}
    started(LPIPS, published, run_of(held_out=held_out, scale=2))  # 33 is cut to 32
    with pytest.raises(RecipeError, match="31 pixels a side, and the pixels of bird are 30 x 60"):
        started(LPIPS, published, run_of(held_out=held_out, scale=10))


def test_relus_do_not_work_in_place():
    network = LPIPSNetwork("squeeze")
    relus = [layer for layer in network.modules() if isinstance(layer, nn.ReLU)]
    assert relus and not any(layer.inplace for layer in relus)
