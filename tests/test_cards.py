"""The memory of a recipe on CUDA, estimated without a GPU."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from test_shipped_recipes import ROOT, photographs, small  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from training import build

from ganlab.bench.cards import CUDA, SPARE, Need, _AsOnCuda, _Fakes, count_faked, need_on_cuda
from ganlab.bench.memory import count_memory
from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.plugin import Batch
from ganlab.run import Run, discriminators

GIB = 2**30


def batch_of(run: Run) -> Batch:
    batch: Batch = run.hook.sample_batch(batch_size=run.recipe.batch_size, device=run.device)
    return batch


def test_fake_tensors_need_what_real_ones_need(tiny: Path) -> None:
    sizes = [
        "encoder_decoder.width=16",
        "patch_discriminator.width=16",
        "watch_every=0",
        "compile=off",
    ]
    real = build(tiny, [*sizes, "batch_size=8"])
    count_memory(real)  # the moments are made
    counted = count_memory(real)["peak"]
    run = build(tiny, [*sizes, "batch_size=8"])
    kept, peak = count_faked(run, batch_of(run))
    networks = sum(p.numel() for n in real.networks.values() for p in n.parameters())
    # weights, two moments; the batch; and a step count for each parameter
    assert kept == pytest.approx(4 * 3 * networks + 8 * 3 * 4 * (16 * 16 + 4 * 4), rel=0.01)
    # the real count includes the batch, which is drawn in the iteration
    assert peak - kept == pytest.approx(counted - 8 * 3 * 4 * (16 * 16 + 4 * 4), rel=0.05)


def test_bfloat16_halves_activations_and_nothing_else(tiny: Path) -> None:
    sizes = ["encoder_decoder.width=8", "batch_size=256", "d_steps=0", "watch_every=0"]
    sizes += [f"{name}=false" for name in ("patch_discriminator", "wasserstein",
                                           "gradient_penalty")]  # fmt: skip
    found = []
    for precision in ("float32", "bfloat16"):
        run = build(tiny, [*sizes, f"precision={precision}"])
        found.append(count_faked(run, batch_of(run)))
    (kept, whole), (kept_16, half) = found
    assert kept == kept_16
    assert 0.5 < (half - kept) / (whole - kept) < 0.7


@contextmanager
def autocast_on_cuda() -> Iterator[None]:
    """As torch.autocast("cuda", torch.bfloat16), which does nothing on a machine without a GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def saved(network: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, int]:
    """Bytes that a forward pass keeps for its backward pass, by dtype; each memory once."""
    found: dict[tuple[int, str], tuple[int, object]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.numel() > 1024:  # statistics and vectors of weights are left out
            found[storage._cdata, str(tensor.dtype)] = storage.nbytes(), storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    sizes: Counter[str] = Counter()
    for (_, dtype), (size, _) in found.items():
        sizes[dtype] += size
    return dict(sizes)


@pytest.mark.usefixtures("seeded_weights")
@pytest.mark.parametrize("name", ["srgan", "esrgan", "edsr", "wgan_gp", "swinir_light"])
def test_the_types_are_those_of_autocast_on_cuda(name: str, photographs: Path) -> None:  # noqa: F811
    recipe = ROOT / "recipes" / "div2k" / f"{name}.toml"
    changes = [change for change in small(recipe, photographs) if change != "--set"]
    found = []
    for device in ("cpu", "cuda"):
        run = build(recipe, changes)
        fakes = _Fakes(FakeTensorMode(allow_non_fake_inputs=True), 1)
        with torch.device(device):  # where fake tensors are made
            fakes.of_run(run)
            games = [(run.G, run.condition_shape)]
            games += [(D, run.real_shape) for D in discriminators(run)]
            with fakes.mode:
                for network, shape in games:
                    images = torch.empty(2, *shape)
                    if device == "cpu":
                        found.append(saved(_AsOnCuda(run).network(network), images))
                    else:
                        with autocast_on_cuda():
                            found.append(saved(network, images))
    half = len(found) // 2
    assert found[:half] == found[half:]
    assert all(sizes["torch.bfloat16"] > 0 for sizes in found)


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def test_the_command_says_which_cards_have_the_memory(tiny: Path) -> None:
    result = ganlab("bench", tiny, "--cards", "--json")
    found = json.loads(result.stdout)
    need = Need(**{key: found[key] for key in ("kept", "step", "captured", "data")})
    assert need.step > 0 and need.captured > need.step
    assert found["whole"] == need.whole == int(SPARE * need.tensors) + CUDA
    assert found["fits"] == [6, 8, 12, 16, 24]
    shown = ganlab("bench", tiny, "--cards", "--set", "compile=off").stdout
    assert "GiB on CUDA: fits 6, 8, 12, 16, 24 GB" in shown
    assert "captured" not in shown


def test_published_weights_may_be_absent(tiny: Path) -> None:
    layers = ["perceptual_loss={ layers = { conv1_2 = 1.0 } }", "dead_leaves.size=64"]
    plain = need_on_cuda(tiny, ["watch_every=0"])
    with_vgg = need_on_cuda(tiny, [*layers, "watch_every=0"])
    # two convolutions: 3 to 64 and 64 to 64 channels
    assert with_vgg.kept - plain.kept >= 4 * (64 * 27 + 64 + 64 * 576 + 64)


def test_a_card_holds_the_need_and_the_data_that_are_put_on_it() -> None:
    need = Need(kept=0, step=int((8 * GIB - CUDA) / SPARE), captured=0, data=0)
    assert need.cards == [8, 12, 16, 24]
    assert replace(need, step=need.step + 2**20).cards == [12, 16, 24]
    # two of eight GB would be put on the device, three of them would stay on the host
    assert replace(need, data=2 * GIB).cards == [12, 16, 24]
    assert replace(need, data=3 * GIB).cards == [8, 12, 16, 24]
    half = replace(need, step=need.step // 2, captured=need.step // 2)
    assert half.cards == [8, 12, 16, 24] and half.uncaptured.cards == [6, 8, 12, 16, 24]


def test_code_that_depends_on_values_is_named(tiny: Path) -> None:
    (tiny.parent / "reads.py").write_text(
        "from ganlab import Plugin, hookimpl\n\n\nclass Reads(Plugin):\n    @hookimpl\n"
        "    def generator_loss(self, fake):\n"
        "        return {'G/x': fake.mean() * fake.sum().item()}\n"
    )
    tiny.write_text(tiny.read_text() + 'reads = { use = "./reads.py" }\n')
    with pytest.raises(RecipeError, match=r"reads: its code depends on the values .* use --fit"):
        need_on_cuda(tiny, [])
