"""Any optimizer of torch.optim by its name, with its own options checked."""

from pathlib import Path

import pytest
import torch
import training
from click.testing import CliRunner
from torch import Tensor
from training import train

from ganlab.assembly import assemble
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.recipe.model import load_recipe, resolved
from ganlab.run import Eager, Run
from ganlab.speed.graphs import WARM_UPS, Graphs
from ganlab.state import state_of
from ganlab.testing.recorder import CpuRecorder

GAME = ("gradient_penalty=false", "watch_every=0", "iterations=12")
KINDS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
)


def build(file: Path, *overrides: str, way: Eager | None = None) -> Run:
    return training.build(file, [*GAME, *overrides], way)


def weights(run: Run) -> list[Tensor]:
    return [p.detach().clone() for network in (run.G, run.D) for p in network.parameters()]


def of_kind(kind: str, options: str = "") -> str:
    return f'torch_optimizer={{ kind = "{kind}", options = {{ {options} }} }}'


@pytest.mark.parametrize("kind", KINDS)
def test_each_goes_on_after_a_resume_and_with_captured_steps_as_it_does_without(
    tiny: Path, tmp_path: Path, kind: str
) -> None:
    overrides = (of_kind(kind), 'learning_rate_schedule={ kind = "linear", over = 12 }')
    plain, captured = build(tiny, *overrides), build(tiny, *overrides, way=Graphs(CpuRecorder()))
    before = weights(plain)
    lines = train(plain, WARM_UPS + 4)
    assert not all(map(torch.equal, before, weights(plain)))
    assert train(captured, WARM_UPS + 2) == lines[: WARM_UPS + 2]
    write_checkpoint(state_of(captured), tmp_path)
    again = build(tiny, *overrides)
    load_checkpoint(again, tmp_path)
    assert train(again, WARM_UPS + 4) == lines[WARM_UPS + 2 :]
    assert all(map(torch.equal, weights(plain), weights(again)))


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_adam_is_captured(tiny: Path, kind: str) -> None:
    run = build(tiny, of_kind(kind), way=Graphs(CpuRecorder()))
    train(run, WARM_UPS + 1)
    assert len(run.execution._recorded) == 2
    assert [note for note in run.notes if "held out" not in note] == []


def test_adam_by_its_name_is_the_plugin_adam(tiny: Path) -> None:
    named = build(tiny, of_kind("Adam", "lr = 2e-4, betas = [0.5, 0.9]"))
    plugin = build(tiny, "adam={ learning_rate = 2e-4, betas = [0.5, 0.9] }")
    assert train(named, 3) == train(plugin, 3)
    assert all(map(torch.equal, weights(named), weights(plugin)))


def test_each_network_has_the_shared_options_and_its_own(tiny: Path) -> None:
    run = build(
        tiny,
        of_kind("RMSprop", "lr = 5e-5, alpha = 0.9"),
        "torch_optimizer.discriminator={ lr = 1e-3, centered = true }",
    )
    for optimizer, rate, centered in (
        (run.G_optimizer, 5e-5, False),
        (run.D_optimizer, 1e-3, True),
    ):
        (group,) = optimizer.param_groups
        assert type(optimizer) is torch.optim.RMSprop
        assert (group["lr"], group["alpha"], group["centered"]) == (rate, 0.9, centered)


def test_it_trains_several_discriminators_and_leaves_no_parameter_out(tiny: Path) -> None:
    run = build(
        tiny,
        "num_discriminators=2",
        'second={ use = "patch_discriminator", width = 6, num_layers = 1 }',
        of_kind("SGD", "lr = 0.1, momentum = 0.9, nesterov = true"),
    )
    (group,) = run.D_optimizer.param_groups
    assert [*map(id, group["params"])] == [*map(id, run.D.parameters())]
    assert train(run, 1)


def test_the_resolved_recipe_gives_the_same_optimizer(tiny: Path) -> None:
    first = load_recipe(tiny, [of_kind("AdamW", "betas = [0.5, 0.9], weight_decay = 0")])
    tiny.write_text(resolved(first))
    assert resolved(load_recipe(tiny)) == resolved(first)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ('{ kind = "RMSProp" }', 'kind = "RMSProp" is not allowed; it must be the name of an'),
        ('{ kind = "RMSProp" }', "did you mean 'RMSprop'?"),
        ('{ kind = "rmsprop" }', "did you mean 'RMSprop'?"),
        ('{ kind = "Optimizer" }', "in torch.optim, one of ASGD, Adadelta, "),
        ('{ kind = "lr_scheduler" }', "in torch.optim"),
        ('{ kind = "LBFGS" }', "it computes the loss several times in a step; choose another"),
        ('{ kind = "SparseAdam" }', "it needs sparse gradients, but these are dense; use Adam"),
        ('{ kind = "Adam", options = { beta = 1 } }', "no option of Adam has this name; did you"),
        ('{ kind = "Adam", options = { q = 1 } }', "its options are lr, betas, eps, weight_decay"),
        (
            '{ kind = "Adam", generator = { lr = "x" } }',
            'generator.lr = "x" is not allowed; it must',
        ),
        ('{ kind = "Adam", options = { amsgrad = 1 } }', "it must be true or false"),
        ('{ kind = "Adam", options = { lr = true } }', "it must be a number"),
        ('{ kind = "Adam", options = { betas = [0.5, "x"] } }', 'betas.1 = "x" is not allowed'),
        ('{ kind = "Adam", options = { fused = true } }', "it is chosen by ganlab; leave it out"),
        ('{ kind = "SGD", options = { maximize = true } }', "it is chosen by ganlab; leave it out"),
        ('{ kind = "Adam", options = { lr = -1 } }', "refuses the options: Invalid learning rate"),
        ('{ kind = "SGD", discriminator = { nesterov = true } }', "Nesterov momentum requires"),
        ("{ options = { lr = 1 } }", "the option 'kind' is missing"),
    ],
)
def test_what_torch_would_not_take_is_refused_when_the_recipe_is_loaded(
    tiny: Path, options: str, fault: str
) -> None:
    tiny.write_text(f"{tiny.read_text()}torch_optimizer = {options}\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(tiny)
    assert "tiny.toml:14: plugins.torch_optimizer: " in str(refused.value)
    assert fault in str(refused.value)


def test_a_wrong_option_has_the_line_on_which_it_stands(tiny: Path) -> None:
    table = '[plugins.torch_optimizer]\nkind = "SGD"\n[plugins.torch_optimizer.options]\n'
    tiny.write_text(f"{tiny.read_text()}{table}lr = 0.1\nmomentun = 0.9\n")
    with pytest.raises(RecipeError, match=r"tiny\.toml:18: .*did you mean 'momentum'"):
        load_recipe(tiny)


MATRICES = """\
from ganlab import Plugin, hookimpl
from torch import nn


class Matrices(Plugin):
    @hookimpl
    def make_{which}(self, real_shape):
        return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, {out}, bias=False))
"""


def test_muon_trains_matrices_and_is_refused_for_other_parameters(tiny: Path) -> None:
    with pytest.raises(
        RecipeError, match="Muon cannot train the discriminator: Muon only supports"
    ):
        build(tiny, of_kind("Muon"))
    for which, out in (("generator", 2), ("discriminator", 1)):
        (tiny.parent / f"{which}.py").write_text(MATRICES.format(which=which, out=out))
    tiny.write_text(
        "iterations = 4\n[plugins]\ngaussian_mixture = {}\nlatent = {}\nwasserstein = {}\n"
        'g = { use = "./generator.py" }\nd = { use = "./discriminator.py" }\n'
    )
    run = assemble(load_recipe(tiny, [of_kind("Muon", "weight_decay = 0.0")]), torch.device("cpu"))
    before = weights(run)
    train(run, 1)
    assert not any(map(torch.equal, before, weights(run)))


def test_options_of_a_discriminator_that_is_not_there_are_refused(tiny: Path) -> None:
    alone = ("d_steps=0", "wasserstein=false", "patch_discriminator=false")
    with pytest.raises(RecipeError, match="there is no discriminator"):
        build(tiny, *alone, 'torch_optimizer={ kind = "SGD", discriminator = { lr = 1 } }')


def test_check_takes_it_and_says_what_is_wrong(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    overrides = [word for override in GAME for word in ("--set", override)]
    for option, code in (("lr = 1e-3", 0), ("lrr = 1e-3", 2)):
        words = ["check", "tiny.toml", *overrides, "--set", of_kind("NAdam", option)]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == code, result.output
    assert "options.lrr = 0.001 is not allowed" in result.stderr
