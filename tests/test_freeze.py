"""Frozen layers keep their weights to the bit, and groups of parameters learn at their own rate."""

from pathlib import Path

import pytest
import torch
import training
from click.testing import CliRunner
from torch import Tensor, nn
from training import train

from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.requirements import warnings_of
from ganlab.run import Eager, Run
from ganlab.speed.graphs import WARM_UPS, Graphs
from ganlab.state import state_of
from ganlab.testing.recorder import CpuRecorder

GAME = ("wasserstein=false", "gradient_penalty=false", "bce={}", "iterations=20", "watch_every=0")
TWO = ("num_discriminators=2", 'second={ use = "patch_discriminator", width = 6, num_layers = 1 }')


def build(file: Path, *overrides: str, way: Eager | None = None) -> Run:
    return training.build(file, [*GAME, *overrides], way)


def copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def moved(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}


# weight decay and momentum would move a parameter whose gradient is 0
DECAYS = (
    'torch_optimizer={ kind = "SGD", options = { lr = 0.1, momentum = 0.9, weight_decay = 0.1 } }'
)


@pytest.mark.parametrize(
    ("option", "others", "frozen"),
    [
        ("discriminator_layers = 1", (), {"0.weight", "0.bias"}),
        ("discriminator_layers = 2", (), {"0.weight", "0.bias", "2.weight", "2.bias"}),
        (
            "discriminator_layers = 1",
            ("spectral_norm={}",),
            {"0.bias", "0.parametrizations.weight.original"},
        ),
        ("discriminator = ['0', '4.bias']", (), {"0.weight", "0.bias", "4.bias"}),
        ("discriminator = ['[02].b*']", (), {"0.bias", "2.bias"}),
    ],
)
def test_frozen_layers_of_d_keep_their_weights_and_all_others_move(
    tiny: Path, option: str, others: tuple[str, ...], frozen: set[str]
) -> None:
    run = build(tiny, *others, DECAYS, f"freeze={{ {option} }}")
    of_d, of_g = copies(run.D), copies(run.G)
    train(run, 3)
    assert moved(run.D, of_d) == of_d.keys() - frozen
    assert moved(run.G, of_g) == of_g.keys()


def test_layers_of_g_are_frozen_by_the_name_of_a_part(tiny: Path) -> None:
    run = build(tiny, DECAYS, "freeze={ generator = ['encoder', 'last.bias'] }")
    before = copies(run.G)
    train(run, 3)
    kept = before.keys() - moved(run.G, before)
    assert kept == {n for n in before if n.startswith("encoder.")} | {"last.bias"}


def test_each_of_several_discriminators_is_frozen(tiny: Path) -> None:
    run = build(tiny, *TWO, DECAYS, "freeze={ discriminator_layers = 1 }")
    before = copies(run.D)
    train(run, 1)
    kept = before.keys() - moved(run.D, before)
    assert kept == {"0.0.weight", "0.0.bias", "1.0.weight", "1.0.bias"}


@pytest.mark.parametrize(
    "others", [(), ("first=generator",), ("activation_checkpointing=true",), ("adam={}", "r1={}")]
)
def test_they_train_from_the_iteration_on_that_is_named(
    tiny: Path, others: tuple[str, ...]
) -> None:
    run = build(tiny, *others, "freeze={ discriminator_layers = 1, until = 2 }")
    before = copies(run.D)
    train(run, 2)
    assert "0.weight" not in moved(run.D, before)
    train(run, 3)
    assert "0.weight" in moved(run.D, before)


def test_what_another_instance_holds_stays_frozen(tiny: Path) -> None:
    run = build(
        tiny,
        "freeze={ discriminator = ['0', '2'], until = 1 }",
        "for_good={ use = 'freeze', discriminator = ['0'] }",
    )
    before = copies(run.D)
    train(run, 2)
    assert moved(run.D, before) == {"2.weight", "2.bias", "4.weight", "4.bias"}


GROUPS = (
    "learning_rate_group={ generator = ['last'], discriminator = ['0', '2'], factor = 0.1 }",
    "learning_rate_schedule={ kind = 'linear', over = 20 }",
)
UNTIL = 2 * WARM_UPS
PHASES = (f"freeze={{ discriminator_layers = 1, generator = ['up'], until = {UNTIL} }}", *GROUPS)


def test_steps_are_captured_anew_when_they_begin_to_train(tiny: Path) -> None:
    plain, quick = build(tiny, *PHASES), build(tiny, *PHASES, way=Graphs(CpuRecorder()))
    assert train(quick, UNTIL) == train(plain, UNTIL)
    before = copies(quick.D)
    assert train(quick, UNTIL + WARM_UPS + 3) == train(plain, UNTIL + WARM_UPS + 3)
    assert "0.weight" in moved(quick.D, before)
    assert len(quick.execution._recorded) == 2 and len(quick.execution._recorder.tapes) == 4
    assert all(map(torch.equal, plain.D.parameters(), quick.D.parameters()))
    assert all(map(torch.equal, plain.G.parameters(), quick.G.parameters()))


@pytest.mark.parametrize("stop", [UNTIL - 1, UNTIL, UNTIL + 1])
def test_a_run_resumed_before_or_after_that_iteration_goes_on_bit_for_bit(
    tiny: Path, tmp_path: Path, stop: int
) -> None:
    whole = build(tiny, *PHASES)
    train(whole, stop)
    write_checkpoint(state_of(whole), tmp_path)
    again = build(tiny, *PHASES)
    load_checkpoint(again, tmp_path)
    assert train(again, UNTIL + 2) == train(whole, UNTIL + 2)
    assert all(map(torch.equal, whole.D.parameters(), again.D.parameters()))
    assert all(map(torch.equal, whole.G.parameters(), again.G.parameters()))


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize(
    "optimizer",
    [
        "adam={ learning_rate = 1e-3 }",
        'torch_optimizer={ kind = "RMSprop", options = { lr = 1e-3 } }',
        'torch_optimizer={ kind = "SGD", options = { lr = 1e-3 } }',
    ],
)
def test_a_group_has_the_factor_of_the_rate_under_every_optimizer_and_schedule(
    tiny: Path, optimizer: str
) -> None:
    run = build(tiny, optimizer, *GROUPS)
    run.iteration = 5
    iterate(run)
    of_g, of_d = rates(run.G_optimizer), rates(run.D_optimizer)
    assert len(of_g) == len(list(run.G.parameters()))
    for network, found, slow in ((run.G, of_g, ("last.",)), (run.D, of_d, ("0.", "2."))):
        for name, parameter in network.named_parameters():
            factor = 0.1 if name.startswith(slow) else 1.0
            assert found[id(parameter)] == pytest.approx(0.75e-3 * factor)


def test_a_step_of_plain_gradient_descent_is_as_much_shorter(tiny: Path) -> None:
    sgd = ('torch_optimizer={ kind = "SGD", options = { lr = 0.1 } }', 'precision="float64"')
    plain, grouped = build(tiny, *sgd), build(tiny, *sgd, GROUPS[0])
    before = copies(plain.D)
    train(plain, 1)
    train(grouped, 1)
    after, slow = copies(plain.D), copies(grouped.D)
    for name, weight in before.items():
        factor = 1.0 if name.startswith("4.") else 0.1
        torch.testing.assert_close(slow[name] - weight, factor * (after[name] - weight))


def test_factors_of_two_groups_and_of_a_lazy_penalty_are_multiplied(tiny: Path) -> None:
    run = build(
        tiny,
        "adam={ learning_rate = 1e-3 }",
        "r1={ every = 4 }",
        "slow={ use = 'learning_rate_group', discriminator = ['0'], factor = 0.1 }",
        "slower={ use = 'learning_rate_group', discriminator = ['*.weight'], factor = 0.5 }",
    )
    found = rates(run.D_optimizer)
    share = {name: found[id(p)] / 0.8e-3 for name, p in run.D.named_parameters()}
    wanted = {"0.weight": 0.05, "0.bias": 0.1, "2.weight": 0.5, "2.bias": 1.0}
    assert share == pytest.approx(wanted | {"4.weight": 0.5, "4.bias": 1.0})


ALONE = ("d_steps=0", "bce=false", "patch_discriminator=false")


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["freeze={}"], "it freezes nothing; set generator, discriminator or discriminator_layers"),
        (["freeze={ generator = ['encoder.7'] }"], "'encoder.7' is the name of no parameter or"),
        (["freeze={ generator = ['encodr'] }"], "did you mean 'encoder'?"),
        (["freeze={ discriminator = ['features'] }"], "of the network; there are 0, 2, 4"),
        (["freeze={ generator = ['q'] }"], "encoder.0.1.layers.0, encoder.0.1.layers.2, "),
        (["freeze={ generator = ['q'] }"], " and 10 more"),
        (["freeze={ generator = ['*'] }"], "no parameter of the generator is left to train"),
        (["freeze={ discriminator_layers = 3 }"], "a network has 3 layers; set at most 2"),
        ([*ALONE, "freeze={ discriminator = ['0'] }"], "there is no discriminator"),
        (["learning_rate_group={ factor = 0.1 }"], "it names no parameter; set generator or"),
        (["learning_rate_group={ generator = ['lst'], factor = 0.1 }"], "did you mean 'last'?"),
        (["learning_rate_group={ generator = ['last'], factor = 0 }"], "must be more than 0"),
        (
            [*ALONE, "learning_rate_group={ discriminator = ['0'], factor = 0.1 }"],
            "there is no discriminator",
        ),
    ],
)
def test_what_fits_no_layer_is_refused_with_the_names_there_are(
    tiny: Path, overrides: list[str], fault: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        build(tiny, *overrides)
    assert fault in str(refused.value)


def test_check_tries_a_frozen_step_and_one_that_is_not(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    sets = [word for override in (*GAME, *PHASES) for word in ("--set", override)]
    result = CliRunner().invoke(main, ["check", "tiny.toml", *sets], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_what_has_no_effect_in_this_run_is_told(tiny: Path) -> None:
    group = "learning_rate_group={ generator = ['last'], factor = 1.0 }"
    sets = (*GAME, "freeze={ discriminator_layers = 1, until = 20 }", group)
    frozen, still = warnings_of(load_recipe(tiny, sets))
    assert frozen.startswith("freeze.until ") and "20" in frozen
    assert still == "learning_rate_group.factor is 1 throughout, so it has no effect"
