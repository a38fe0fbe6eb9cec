"""Activation checkpointing takes the same step, to the last bit, and keeps less for it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager, Run
from ganlab.speed.activation_checkpointing import recompute
from ganlab.speed.compiled import Compiled
from ganlab.speed.graphs import Graphs
from ganlab.streams import Streams
from ganlab.testing.recorder import CpuRecorder

pytestmark = [
    # of torch's own compiler
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]

CPU = torch.device("cpu")
GAME = """\
iterations = 20
batch_size = 2
watch_every = 3

[plugins]
dead_leaves = { crop = 32, num_images = 2, size = 48 }
bicubic = { scale = 4 }
srresnet = { width = 4, num_blocks = 8 }
vgg_discriminator = { layout = "srgan", width = 2, num_features = 4 }
bce = { weight = 0.1 }
pixel_loss = { weight = 1.0 }
"""
GENERATORS = {
    "srresnet": [],
    "srresnet without norm": ["srresnet.norm=none"],
    "rrdb": ["srresnet=false", "rrdb={ width = 4, growth = 2, num_blocks = 4 }"],
    "edsr": ["srresnet=false", "edsr={ width = 4, num_blocks = 8 }"],
    "swinir": ["srresnet=false", "swinir_light={ width = 6, num_layers = 2, num_blocks = 4 }"],
    "encoder-decoder": ["srresnet=false", "encoder_decoder={ width = 4 }"],
    "compact": ["srresnet=false", "compact={ width = 4, num_layers = 4 }"],
}
OTHER_D = "vgg_discriminator=false"
DISCRIMINATORS = {
    "vgg": [],
    "vgg, spectral norm": ["vgg_discriminator.norm=spectral"],
    "vgg, layer norm": ["vgg_discriminator.norm=layer"],
    "patch": [OTHER_D, "patch_discriminator={ width = 4, num_layers = 2 }"],
    "patch, batch norm": [OTHER_D, "patch_discriminator={ width = 4, norm = 'batch' }"],
}
NO_NORM = "vgg_discriminator.norm=none"
GAMES = {
    "generator first": ["first=generator"],
    "not shared": ["first=generator", "share_forward=false"],
    "WGAN-GP": ["vgg_discriminator.norm=layer", "bce=false", "wasserstein={}",
                "gradient_penalty={}", "d_steps=2"],
    "lazy penalty": [NO_NORM, "r1={ every = 2 }", "first=generator"],
    "consensus": [NO_NORM, "srresnet.norm=none", "consensus={}"],
    "spectral norm": ["vgg_discriminator.norm=spectral"],
    "parts": ["accumulate=2"],
    "features, parts": ["feature_matching={}", "accumulate=2"],
    "average": ["ema={}"],
    "real logits": ["bce=false", "relativistic_average={}"],
    "nothing to recompute": [OTHER_D, "unet_discriminator={ width = 2 }"],
}  # fmt: skip
GAMES |= GENERATORS


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Run]:
    def build(*overrides: str, on: bool = False) -> Run:
        file = tmp_path / "game.toml"
        file.write_text(GAME)
        setting = f"activation_checkpointing={str(on).lower()}"
        return assemble(load_recipe(file, [*overrides, setting]), CPU)

    return build


def network(run: Run, role: str) -> nn.Module:
    module = run.G if role == "G" else run.D
    assert module is not None
    return module.train()


def images_for(run: Run, role: str) -> Tensor:
    batch = run.hook.sample_batch(batch_size=2, device=CPU)
    return batch.condition if role == "G" else batch.real


def kept_bytes(module: nn.Module, function: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What a function returns, and the memory that is kept for its backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = function()
    return answer, sum(size for where, size in sizes.items() if where not in weights)


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


CASES = [
    pytest.param(role, overrides, id=name)
    for role, several in (("G", GENERATORS), ("D", DISCRIMINATORS))
    for name, overrides in several.items()
]


@pytest.mark.parametrize(("role", "overrides"), CASES)
def test_gradients_and_statistics_are_the_same_and_less_is_kept(build, role, overrides) -> None:
    found, sizes = [], []
    for on in (False, True):
        run = build(*overrides, on=on)
        run.streams.moment(0)
        module, images = network(run, role), images_for(run, role).requires_grad_()
        # two passes before a backward, as in D's step
        answer, kept = kept_bytes(module, lambda m=module, x=images: m(x) + m(1 - x))
        inputs = [images, *module.parameters()]
        twice = [torch.autograd.grad(answer.square().sum(), inputs, retain_graph=True)]
        twice.append(torch.autograd.grad(answer.sum(), inputs))
        found.append([*twice[0], *twice[1], *module.state_dict().values()])
        sizes.append(kept)
    assert same(*found)
    assert sizes[1] < 0.85 * sizes[0]


def test_a_trunk_keeps_one_tensor_a_block(build) -> None:
    def kept(count: int, on: bool) -> int:
        run = build(f"srresnet.num_blocks={count}", on=on)
        images = images_for(run, "G")
        return kept_bytes(run.G, lambda: network(run, "G")(images))[1]

    features = 2 * 4 * 8 * 8 * 4  # [2, 4, 8, 8] in float32
    assert kept(8, True) - kept(4, True) == 4 * features
    assert kept(8, False) - kept(4, False) > 4 * 4 * features


def test_a_penalty_may_differentiate_the_gradient(build) -> None:
    found = []
    for on in (False, True):
        run = build("vgg_discriminator.norm=layer", on=on)
        run.streams.moment(0)
        D, images = network(run, "D"), images_for(run, "D").requires_grad_()
        (slope,) = torch.autograd.grad(D(images).sum(), images, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        weights = list(D.parameters())
        found.append([penalty, *torch.autograd.grad(penalty, weights, materialize_grads=True)])
    assert same(*found)
    assert any(gradient.any() for gradient in found[0][1:])


@pytest.mark.parametrize("overrides", GAMES.values(), ids=GAMES)
def test_a_run_ends_with_the_same_weights_and_has_logged_the_same(build, overrides) -> None:
    lines, states = [], []
    for on in (False, True):
        run = build(*overrides, on=on)
        lines.append(train(run, 5))
        states.append([t for role in "GD" for t in network(run, role).state_dict().values()])
        if "ema" in run.recipe.plugins:
            states[-1] += run.recipe.plugins["ema"].average.state_dict().values()
    assert lines[0] == lines[1]
    assert same(*states)


def train(run: Run, iterations: int) -> list[dict[str, float]]:
    lines = []
    with run.execution.running():
        for run.iteration in range(iterations):
            lines.append({name: value.item() for name, value in iterate(run).items()})
    return lines


def ends(
    build: Callable[..., Run], way: Callable[[], Eager], *overrides: str
) -> list[list[Tensor]]:
    found = []
    for on in (False, True):
        run = build(*overrides, on=on)
        run.execution = way()
        run.notes.clear()
        train(run, 5)
        assert run.notes == []
        found.append([t for role in "GD" for t in network(run, role).state_dict().values()])
    return found


@pytest.mark.parametrize("game", ["generator first", "WGAN-GP", "spectral norm"])
def test_a_step_that_recomputes_is_captured_as_a_graph(build, game: str) -> None:
    assert same(*ends(build, lambda: Graphs(CpuRecorder()), *GAMES[game]))


COMPILED = ["compile=networks", "srresnet.norm=none", "srresnet.num_blocks=4",
            *DISCRIMINATORS["patch"]]  # fmt: skip


def test_networks_that_recompute_are_compiled(build) -> None:
    found = ends(build, lambda: Compiled("aot_eager"), *COMPILED, "watch_every=0")
    torch._dynamo.reset()
    assert same(*found)


def test_a_compiled_network_keeps_less_too(build) -> None:
    sizes = []
    for on in (False, True):
        run = build(*COMPILED, on=on)
        images = images_for(run, "G")
        compiled = torch.compile(network(run, "G"), backend="aot_eager", dynamic=False)
        sizes.append(kept_bytes(run.G, lambda f=compiled, x=images: f(x))[1])
    torch._dynamo.reset()
    assert sizes[1] < 0.85 * sizes[0]


def told(run: Run) -> list[str]:
    """The notes on activation checkpointing."""
    return [note for note in run.notes if note.startswith("activation_checkpointing")]


def test_what_changes_nothing_is_noted(build) -> None:
    nothing = "activation_checkpointing changes nothing in the"
    span = ["srresnet=false", "span={ width = 4 }"]
    run = build(*span, *GAMES["nothing to recompute"], on=True)
    reason = "it has no blocks or layers in a row (nn.Sequential, nn.ModuleList)"
    assert told(run) == [f"{nothing} generator: {reason}", f"{nothing} discriminator: {reason}"]
    run = build("srresnet.norm=none", "compile=networks", on=True)
    reason = 'with compile = "networks" what has buffers or draws numbers cannot recompute'
    assert told(run) == [f"{nothing} discriminator: {reason}"]
    assert told(build(on=True)) == told(build(*span, on=False)) == []


def test_the_audit_of_a_recipe_sees_the_same_gradients(tmp_path: Path) -> None:
    file = tmp_path / "game.toml"
    file.write_text(GAME)
    outputs = []
    for on in ("false", "true"):
        arguments = ["check", str(file), "--set", f"activation_checkpointing={on}"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        outputs.append(result.output.replace(arguments[-1], ""))
    assert outputs[0] == outputs[1]


class Counting(nn.Module):
    """A block that counts its passes, has dropout, and draws from a stream of a plugin's own."""

    def __init__(self, rng: torch.Generator | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.passes = [0]  # in a list, which copies of the module's attributes share
        self.convolution = nn.Conv2d(2, 2, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.rng = rng

    def forward(self, images: Tensor) -> Tensor:
        self.passes[0] += 1
        answer = self.dropout(self.convolution(images).sigmoid())
        if self.rng:
            answer = answer * torch.rand(answer.shape, generator=self.rng)
        return answer


def passes(module: nn.Module) -> int:
    return sum(m.passes[0] for m in module.modules() if isinstance(m, Counting))


def test_nothing_is_recomputed_without_a_gradient_in_evaluation_or_where_somebody_listens() -> None:
    images = torch.rand(2, 2, 5, 5)
    trunk = nn.Sequential(*(Counting() for _ in range(4)))
    assert recompute(trunk, images, Streams(0)) == ""

    def passes_of(step: Callable[[], object]) -> int:
        before = passes(trunk)
        step()
        return passes(trunk) - before

    with torch.no_grad():
        assert passes_of(lambda: trunk(images)) == 4
    assert passes_of(lambda: trunk.eval()(images).sum().backward()) == 4
    assert passes_of(lambda: trunk.train()(images).sum().backward()) == 8
    heard: list[int] = []
    handle = trunk[0].convolution.register_forward_hook(lambda *_: heard.append(1))
    assert passes_of(lambda: trunk(images).sum().backward()) == 7
    assert len(heard) == 1
    handle.remove()
    assert passes_of(lambda: trunk(images).sum().backward()) == 8


@pytest.mark.parametrize("own_stream", [False, True])
def test_random_numbers_are_those_of_the_first_time(own_stream: bool) -> None:
    streams = Streams(0)
    rng = streams.generator("idea") if own_stream else None
    trunk = nn.Sequential(*(Counting(rng, dropout=0.0 if own_stream else 0.5) for _ in range(4)))
    images = torch.rand(2, 2, 5, 5)
    found = []
    for on in (False, True):
        if on:
            recompute(trunk, images, streams)
        streams.moment(7)
        gradients = torch.autograd.grad(trunk(images).sum(), list(trunk.parameters()))
        found.append(
            [*gradients, torch.rand(3), torch.rand(3, generator=streams.generator("idea"))]
        )
    assert same(*found)


@pytest.mark.parametrize("role", ["G", "D"])
def test_names_stay_and_a_copy_recomputes_with_its_own_weights(build, role: str) -> None:
    plain, run = build(), build(on=True)
    fresh, module, images = network(plain, role), network(run, role), images_for(run, role)
    assert list(fresh.state_dict()) == list(module.state_dict())
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    found, sizes = [], []
    for one in (fresh, twin):
        answer, kept = kept_bytes(one, lambda one=one: one(images))
        sizes.append(kept)
        found.append([answer, *torch.autograd.grad(answer.sum(), list(one.parameters()))])
    assert same(*found)
    assert sizes[1] < 0.75 * sizes[0]


def test_layers_that_overwrite_their_input_are_not_cut_off_from_what_made_it() -> None:
    layers = [[nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True)] for _ in range(5)]
    found = []
    for on in (False, True):
        row = nn.Sequential(*(layer for pair in layers for layer in pair))
        images = torch.rand(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        if on:
            assert recompute(row, images, Streams(0)) == ""
        answer, kept = kept_bytes(row, lambda row=row, images=images: row(images))
        assert kept == images.nbytes * (2 if on else 6)  # in two parts, of 3 and 2 convolutions
        found.append(list(torch.autograd.grad(answer.sum(), list(row.parameters()))))
    assert same(*found)


def test_of_trunks_within_trunks_the_innermost_counts() -> None:
    groups = nn.ModuleList(nn.Sequential(*(Counting() for _ in range(4))) for _ in range(4))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.groups = groups

        def forward(self, images: Tensor) -> Tensor:
            for group in self.groups:
                images = group(images)
            return images

    images, network = torch.rand(2, 2, 5, 5), Network()
    recompute(network, images, Streams(0))
    before = passes(network)
    network(images).sum().backward()
    assert passes(network) - before == 2 * 16
