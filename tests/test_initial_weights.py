"""Training begins from the weights of a file, exactly those and nothing less."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ganlab import RecipeError
from ganlab.assembly import assemble
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.generator_weights import weights_of, write_weights
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.state import state_of

CPU = torch.device("cpu")


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, overrides), CPU)


def changed(network: nn.Module) -> dict[str, torch.Tensor]:
    """A state that no seed makes."""
    return {name: value + 0.01 for name, value in network.state_dict().items()}


def assert_holds(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    mine = network.state_dict()
    assert mine.keys() == state.keys()
    assert all(torch.equal(mine[name], value) for name, value in state.items())


@pytest.fixture
def states(tiny: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of another G and D of the tiny recipe, which from here on also begins from files."""
    run = build(tiny)
    assert run.D is not None
    return changed(run.G), changed(run.D)


def begin(tiny: Path, options: str, *overrides: str) -> Run:
    tiny.write_text(tiny.read_text() + f"initial_weights = {{ {options} }}\n")
    return build(tiny, *overrides)


@pytest.mark.parametrize("wrapper", [None, "params_ema", "params", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_both_networks_begin_from_files_beside_the_recipe(tiny, states, wrapper, suffix):
    for state, name in zip(states, "gd", strict=True):
        torch.save({wrapper: state} if wrapper else state, tiny.with_name(name + suffix))
    run = begin(tiny, f'generator = "g{suffix}", discriminator = "d{suffix}"')
    assert_holds(run.G, states[0])
    assert_holds(run.D, states[1])


def test_one_network_may_begin_from_a_file_alone(tiny, states):
    save_file(states[1], tiny.with_name("d.safetensors"))
    plain = build(tiny)
    run = begin(tiny, 'discriminator = "d.safetensors"')
    assert_holds(run.G, plain.G.state_dict())
    assert_holds(run.D, states[1])


def test_the_averaged_weights_of_a_published_file_are_preferred(tiny, states):
    raw = {name: value - 3 for name, value in states[0].items()}
    torch.save({"params": raw, "params_ema": states[0]}, tiny.with_name("g.pth"))
    assert_holds(begin(tiny, 'generator = "g.pth"').G, states[0])


@pytest.mark.parametrize("first", ["ema", "initial_weights"])
def test_an_average_starts_from_the_loaded_weights_in_either_order(tiny, states, first):
    save_file(states[0], tiny.with_name("g.safetensors"))
    lines = {"ema": "ema = {}", "initial_weights": 'initial_weights.generator = "g.safetensors"'}
    tiny.write_text(tiny.read_text() + "\n".join([lines.pop(first), *lines.values()]))
    run = build(tiny)
    assert_holds(run.hook.evaluation_generator(generator=run.G), states[0])


def test_the_optimizer_moves_the_loaded_weights(tiny, states):
    save_file(states[0], tiny.with_name("g.safetensors"))
    run = begin(tiny, 'generator = "g.safetensors"')
    held = {id(p) for group in run.G_optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.G.parameters()}


def test_weights_of_the_runs_own_precision_are_made_of_any(tiny, states):
    half = {name: value.to(torch.bfloat16) for name, value in states[0].items()}
    save_file(half, tiny.with_name("g.safetensors"))
    run = begin(tiny, 'generator = "g.safetensors"', 'precision="float64"')
    assert_holds(run.G, {name: value.double() for name, value in half.items()})


def test_a_run_begins_where_another_ended(tiny):
    first = build(tiny)
    iterate(first)
    write_weights(weights_of(first, first.G), tiny.with_name("first.safetensors"))
    assert_holds(begin(tiny, 'generator = "first.safetensors"').G, first.G.state_dict())


def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_file(tiny, states, tmp_path):
    save_file(states[0], tiny.with_name("g.safetensors"))
    run = begin(tiny, 'generator = "g.safetensors"')
    for _ in range(2):
        iterate(run)
        run.iteration += 1
    write_checkpoint(state_of(run), tmp_path)
    resumed = build(tiny)
    assert_holds(resumed.G, states[0])
    assert load_checkpoint(resumed, tmp_path) == 2
    for one in (run, resumed):
        iterate(one)
    assert_holds(resumed.G, run.G.state_dict())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("last.bias"), r"lacks last\.bias$"),
        (lambda state: [state.pop(n) for n in ("last.bias", "last.weight")], "and 1 more"),
        (lambda state: state.update(zoom=torch.ones(1)), "unknown zoom"),
        (
            lambda state: state.update({"last.bias": torch.ones(7)}),
            r"last\.bias has shape \[7\] in the file",
        ),
    ],
)
def test_weights_of_another_network_are_refused_with_what_differs(tiny, states, spoil, message):
    state = dict(states[0])
    spoil(state)
    torch.save(state, tiny.with_name("g.pth"))
    with pytest.raises(RecipeError, match=message):
        begin(tiny, 'generator = "g.pth"')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, r"absent\.pth: no such weights file"),
        ("text.pth", b"weights", "cannot be read as a file of weights"),
        ("empty.pth", b"", "cannot be read as a file of weights"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tiny, name, content, message):
    if content is not None:
        tiny.with_name(name).write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        begin(tiny, f'generator = "{name}"')
    assert str(tiny) in str(caught.value)


def test_a_file_that_carries_code_is_not_run(tiny):
    torch.save(copy.copy(nn.Linear(2, 2)), tiny.with_name("g.pth"))
    with pytest.raises(RecipeError, match="cannot be read as a file of weights"):
        begin(tiny, 'generator = "g.pth"')


def test_options_that_fit_no_network_are_refused_with_a_remedy(tiny, states):
    with pytest.raises(RecipeError, match="names no file; set generator or discriminator"):
        build(tiny, "initial_weights={}")
    torch.save(states[1], tiny.with_name("d.pth"))
    file, overrides = tiny.with_name("d.pth"), ["d_steps=0", "gradient_penalty=false"]
    overrides += ["wasserstein=false", "patch_discriminator=false"]
    with pytest.raises(RecipeError, match=r"no discriminator \(d_steps = 0\); leave"):
        build(tiny, f'initial_weights={{discriminator="{file}"}}', *overrides)


def test_a_file_for_one_of_several_discriminators_is_refused_with_a_remedy(tiny, states):
    torch.save(states[1], tiny.with_name("d.pth"))
    text = tiny.read_text().replace("iterations = 4", "iterations = 4\nnum_discriminators = 2")
    second = 'second = { use = "patch_discriminator", width = 4, num_layers = 1 }\n'
    tiny.write_text(text + second)
    with pytest.raises(RecipeError, match=r"2 discriminators.*leave the option out"):
        begin(tiny, 'discriminator = "d.pth"')


def test_a_network_may_know_older_names_of_its_tensors(tiny):
    # unet_discriminator, whose published files are of torch's older spectral norm
    tiny.write_text(tiny.read_text().replace("patch_discriminator", "unet_discriminator"))
    tiny.write_text(tiny.read_text().replace("width = 4, num_layers = 1", "width = 4"))
    state = changed(build(tiny).D)
    older = {"parametrizations.weight.original": "weight_orig"}
    older |= {f"parametrizations.weight.0._{letter}": f"weight_{letter}" for letter in "uv"}
    published = {}
    for name, value in state.items():
        layer, dot, tensor = name.partition(".")
        published[layer + dot + older.get(tensor, tensor)] = value
    assert "conv1.weight_orig" in published
    torch.save({"params": published}, tiny.with_name("d.pth"))
    assert_holds(begin(tiny, 'discriminator = "d.pth"').D, state)
