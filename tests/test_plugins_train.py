"""Every installed plugin in a run of the real engine; the list is the entry points.

A plugin is put into the first of a few small experiments that it fits into, in the place of those
that fill the same slot. Its options are their own `examples`, else their defaults. What needs the
user's files gets photographs in a folder, and seeded weights where published ones would be read.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import torch
from safetensors.torch import save_file
from torch import Tensor

from ganlab import Batch, Plugin, Terms
from ganlab.assembly import assemble
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.commands.check import check_recipe
from ganlab.commands.describe import HOOKS
from ganlab.engine import Loop
from ganlab.errors import RecipeError
from ganlab.images.files import write_png
from ganlab.images.resampling import resize, to_uint8
from ganlab.iteration import iterate
from ganlab.plugin import Losses
from ganlab.recipe.discovery import find_plugin, installed
from ganlab.recipe.file import Origin
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal
from ganlab.runs.writer import Writer
from ganlab.state import state_of

pytestmark = pytest.mark.usefixtures("seeded_weights")

NAMES = sorted(installed())
CPU = torch.device("cpu")
SMALL = {"width": 12, "num_blocks": 1, "num_patches": 20}
LARGER = ("ms_ssim_loss", "vgg_discriminator")  # want crops of 64
FEW = {"fid": {"num_patches": 4}, "kid": {"num_patches": 4}}  # 0.15 s each
SLOTS = ("make_generator", "make_discriminator", "sample_real", "discriminator_loss")
SLOTS += ("make_optimizer", "sample_batch")

IMAGES = {
    "image_folder": {"path": "photographs", "evaluation_path": "held_out", "crop": 32},
    "bicubic": {"scale": 4},
    "encoder_decoder": {"width": 4, "num_blocks": 1},
    "patch_discriminator": {"width": 4, "num_layers": 1},
    "bce": {},
    "pixel_loss": {},
    "ema": {},
}
POINTS = {
    "gaussian_mixture": {},
    "latent": {},
    "mlp": {"width": 8},
    "bce": {},
    "ema": {},
}


def plugin_class(name: str) -> type[Plugin]:
    return find_plugin(name, Origin(None, text=name))[0]


def own_answers(plugin: type[Plugin]) -> set[str]:
    """The hooks that it answers itself, not as a wrapper."""
    marks = {hook: getattr(getattr(plugin, hook, None), "ganlab_impl", None) for hook in HOOKS}
    return {hook for hook, mark in marks.items() if mark and not mark["wrapper"]}


def recipe_text(name: str, world: dict[str, dict[str, Any]], **settings: Any) -> str:
    """A recipe with the plugin in the place of whatever fills its slots."""
    plugin = plugin_class(name)
    slots = own_answers(plugin) & set(SLOTS)
    plugins = {n: o for n, o in world.items() if not own_answers(plugin_class(n)) & slots}
    fields = plugin.model_fields
    options = {option: size for option, size in SMALL.items() if option in fields}
    options |= {option: field.examples[0] for option, field in fields.items() if field.examples}
    plugins |= {name: options | FEW.get(name, {}) | plugins.get(name, {})}
    if name in LARGER and "image_folder" in plugins:
        plugins["image_folder"] = plugins["image_folder"] | {"crop": 64}
    loop = {"iterations": 8, "batch_size": 2, "evaluate_every": 100, "checkpoint_every": 100}
    return tomlkit.dumps(loop | settings | {"plugins": plugins})


def build(name: str, folder: Path, device: torch.device = CPU, **settings: Any) -> Run:
    """A run with this plugin, in the first world where it fits."""
    faults = []
    for world in (IMAGES, POINTS):
        file = folder / "recipe.toml"
        file.write_text(recipe_text(name, world, **settings))
        write_weights(name, folder, world)
        try:
            return assemble(load_recipe(file), device, RunFolder(folder))
        except (RecipeError, RuntimeError, ValueError) as error:
            faults.append(str(error))
    if any("weights file" in fault for fault in faults):
        pytest.skip("it needs a file of published weights")
    if any("needs the package" in fault for fault in faults):
        pytest.skip(f"the package of {name} is not installed")
    raise AssertionError("\n".join(faults))


def write_weights(name: str, folder: Path, world: dict[str, dict[str, Any]]) -> None:
    """A file of weights of G, where the plugin's example names one."""
    for field in plugin_class(name).model_fields.values():
        if field.examples and str(field.examples[0]).endswith(".safetensors"):
            file = folder / "without.toml"
            file.write_text(recipe_text("ema", world))
            generator = assemble(load_recipe(file), CPU).G
            save_file(dict(generator.state_dict()), folder / field.examples[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder beside which there are photographs."""
    generator = torch.Generator().manual_seed(0)
    for part, side, count in (("photographs", 104, 2), ("held_out", 200, 1)):
        (tmp_path / part).mkdir()
        for i in range(count):
            coarse = torch.rand(1, 3, side // 4, side // 4 + 1, generator=generator)
            pixels = to_uint8(resize(coarse, (side, side + 3)))[0]
            write_png(pixels, tmp_path / part / f"{i}.png")
    for part in ("samples", "checkpoints"):
        (tmp_path / part).mkdir()
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_its_gradients_are_finite_and_reach_the_right_network_only(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(name, folder)
    iterate(run)  # so that running averages are there, and zero layers have begun to move
    found: set[str] = set()
    hooks = own_answers(type(run.recipe.plugins[name]))

    def look(
        run: Run,
        optimizer: torch.optim.Optimizer,
        terms: Callable[[Run, Batch], Terms],
        batch: Batch,
    ) -> Losses:
        """In the place of Run.descend: the gradient of each of the plugin's own terms."""
        losses = terms(run, batch).losses
        mine, other = (run.D, run.G) if optimizer is run.D_optimizer else (run.G, run.D)
        networks = [network for network in (mine, other) if network is not None]
        for log_name in own_terms(run, name) & losses.keys():
            found.add(log_name)
            clear(networks)
            losses[log_name].backward(retain_graph=True)
            assert_reached(log_name, losses[log_name], mine)
            if "discriminator_step" not in hooks:  # a step of its own may look at both networks
                assert other is None or all(p.grad is None for p in other.parameters()), log_name
        clear(networks)
        return {n: v.detach() for n, v in losses.items()}

    with monkeypatch.context() as patch:
        patch.setattr(Run, "descend", look)
        iterate(run)
    if hooks & {"generator_loss", "discriminator_loss", "penalty"}:
        assert found


def own_terms(run: Run, name: str) -> set[str]:
    """The log names under which a plugin may have a loss."""
    hooks = own_answers(type(run.recipe.plugins[name]))
    terms = {f"D/{name}", f"G/{name}"}
    if "discriminator_loss" in hooks:
        terms |= {"D/adversarial", "G/adversarial"}
    return terms


def assert_reached(log_name: str, value: Tensor, network: torch.nn.Module) -> None:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert value.dim() == 0, log_name
    assert all(g.isfinite().all() for g in gradients), log_name
    assert value == 0 or any(g.any() for g in gradients), f"{log_name} has no gradient"


def clear(networks: list[torch.nn.Module]) -> None:
    for network in networks:
        network.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", NAMES)
def test_it_repeats_under_a_seed_and_resumes_exactly(name: str, folder: Path) -> None:
    run = build(name, folder)
    history = []
    for _ in range(3):
        if run.iteration == 2:
            write_checkpoint(state_of(run), folder / "checkpoints")
        history.append({n: v.detach().clone() for n, v in iterate(run).items()})
        run.iteration += 1
    torch.manual_seed(987)  # whatever happened before must not matter
    torch.rand(7)
    again = build(name, folder)
    assert_same(iterate(again), history[0])
    assert load_checkpoint(again, folder / "checkpoints") == 2
    assert_same(iterate(again), history[2])
    for one, other in zip(run.G.state_dict().values(), again.G.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_ganlab_check_finds_nothing_wrong_with_it(name: str, folder: Path) -> None:
    build(name, folder)
    *lines, last = check_recipe(folder / "recipe.toml", [], "cpu")
    assert last == "ok" and not [line for line in lines if "throws away" in line]


def assert_same(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert losses.keys() == expected.keys()
    for log_name, value in losses.items():
        assert torch.equal(value, expected[log_name]), log_name


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on_a_batch_of_one_and_is_evaluated(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganlab.evaluation.health.SAMPLES", 8)
    run = build(name, folder, batch_size=1)
    assert all(value.isfinite() for value in iterate(run).values())
    run.iteration += 1
    journal = Journal(RunFolder(folder), total=8, images=1, report_every=1)
    with closing(Writer()) as writer:
        Loop(run, journal, writer).evaluate()
    assert_any_size(run)


def assert_any_size(run: Run) -> None:
    """A generator that is convolutional enlarges images of any size."""
    fixed = any(isinstance(module, torch.nn.Flatten) for module in run.G.modules())
    if not fixed and len(run.condition_shape) == 3:
        with torch.no_grad():
            made = run.G.eval()(torch.rand(1, run.condition_shape[0], 13, 17))
        assert made.shape == (1, run.real_shape[0], 13 * run.scale, 17 * run.scale)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_agrees_with_float32(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = iterate(build(name, folder))
    monkeypatch.setattr(
        "ganlab.run.autocast", lambda precision, device: torch.autocast("cpu", torch.bfloat16)
    )
    rounded = iterate(build(name, folder))
    assert exact.keys() == rounded.keys()
    for log_name, value in exact.items():
        assert rounded[log_name].dtype in (torch.float32, torch.float64), log_name
        near = 2e-2 if log_name.endswith("logits") else 2e-3  # mean logits lie around 0
        assert rounded[log_name].item() == pytest.approx(value.item(), rel=0.05, abs=near)


@pytest.mark.parametrize("name", NAMES)
def test_where_it_does_not_fit_it_says_so(name: str, folder: Path) -> None:
    write_weights(name, folder, POINTS)
    file = folder / "recipe.toml"
    file.write_text(recipe_text(name, POINTS))
    try:
        assert iterate(assemble(load_recipe(file), CPU))
    except RecipeError as error:
        assert "recipe.toml" in str(error)
