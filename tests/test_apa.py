"""APA: images of the generator pass for real in the D step, as many as its controller says."""

import contextlib
import json
from pathlib import Path

import pluggy
import pytest
import torch
from click.testing import CliRunner
from ganlab_plugins.apa import APA
from pydantic import ValidationError

from ganlab import Batch, RecipeError, hookimpl, hookspecs
from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.requirements import warnings_of
from ganlab.run import Run

GAME = ("wasserstein=false", "gradient_penalty=false", "bce={}")


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, [*GAME, *overrides]), torch.device("cpu"))


def sample(run: Run, size: int = 2) -> Batch:
    return run.hook.sample_batch(batch_size=size, device=run.device)


def d_step(run: Run) -> dict[str, torch.Tensor]:
    run.streams.moment(0, "D", 0)
    return run.hook.discriminator_step(run=run, batch=sample(run))


def steered(plugin, signs, batch_size=64):
    """p after each of the D steps whose real logits have these mean signs."""

    class Loss:
        @hookimpl(trylast=True)
        def discriminator_loss(self, real_logits):
            return real_logits.mean()

    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Loss())
    manager.register(plugin)
    seen = []
    for sign in signs:
        positive = round(50 + 50 * sign)
        one = torch.tensor([2.0] * positive + [-0.1] * (100 - positive)).view(100, 1, 1, 1)
        manager.hook.discriminator_loss(
            real_logits=one, fake_logits=one, real_label=one, fake_label=one
        )
        plugin.steered({"D/adversarial": one}, batch_size)
        seen.append(plugin._p.item())
    return seen


# --- deceiving ---


def test_with_p_0_the_step_is_the_engines_own(tiny: Path) -> None:
    plain, deceived = d_step(build(tiny)), d_step(build(tiny, "apa={}"))
    assert deceived.pop("D/apa_p").item() == 0
    assert plain.keys() == deceived.keys()
    for name, value in plain.items():
        assert torch.equal(value, deceived[name]), name


def test_with_p_1_all_that_passes_for_real_is_the_generators(tiny: Path) -> None:
    losses = d_step(build(tiny, "apa={ fixed_p = 1.0 }"))
    assert torch.equal(losses["D/real_logits"], losses["D/fake_logits"])
    plain = d_step(build(tiny))
    assert torch.equal(losses["D/fake_logits"], plain["D/fake_logits"])
    assert not torch.equal(losses["D/real_logits"], plain["D/real_logits"])


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_each_image_is_real_or_what_g_makes_of_its_own_condition(tiny: Path, p: float) -> None:
    run = build(tiny, f"apa={{ fixed_p = {p} }}")
    batch = sample(run, 300)
    mixed = run.recipe.plugins["apa"]._deceived(run, batch)
    assert mixed.condition is batch.condition
    with torch.no_grad():
        fake = run.G(batch.condition)
    replaced = torch.tensor(
        [torch.allclose(a, b, atol=1e-5) for a, b in zip(mixed.real, fake, strict=True)]
    )
    kept = (mixed.real == batch.real).flatten(1).all(1)
    assert torch.equal(kept, ~replaced)
    assert replaced.double().mean().item() == pytest.approx(p, abs=0.1)


def test_a_batch_of_one_is_replaced_as_a_whole(tiny: Path) -> None:
    run = build(tiny, "apa={ fixed_p = 1.0 }")
    batch = sample(run, 1)
    mixed = run.recipe.plugins["apa"]._deceived(run, batch)
    assert mixed.real.shape == batch.real.shape
    assert not torch.equal(mixed.real, batch.real)


def test_d_moves_and_the_generator_neither_moves_nor_gets_a_gradient(tiny: Path) -> None:
    run = build(tiny, "apa={ fixed_p = 0.5 }")
    g, d = ([p.detach().clone() for p in net.parameters()] for net in (run.G, run.D))
    d_step(run)
    assert all(torch.equal(a, b) for a, b in zip(g, run.G.parameters(), strict=True))
    assert all(p.grad is None for p in run.G.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(d, run.D.parameters(), strict=True))


def test_the_generator_step_is_left_alone(tiny: Path) -> None:
    steps = []
    for options in ((), ("apa={ fixed_p = 1.0 }",)):
        run = build(tiny, *options)
        run.streams.moment(0, "G", 0)
        steps.append(run.hook.generator_step(run=run, batch=sample(run)))
    assert steps[0].keys() == steps[1].keys()
    assert all(torch.equal(value, steps[1][name]) for name, value in steps[0].items())


def test_the_same_moment_deceives_the_same(tiny: Path) -> None:
    one, other = (d_step(build(tiny, "apa={ fixed_p = 0.5 }", "batch_size=8")) for _ in "ab")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_images_keep_their_dtype(tiny: Path) -> None:
    run = build(tiny, "apa={ fixed_p = 0.5 }", 'precision="float64"')
    assert run.recipe.plugins["apa"]._deceived(run, sample(run)).real.dtype == torch.float64
    assert d_step(run)["D/adversarial"].isfinite()


# --- p ---


def test_p_rises_by_the_published_stride_after_every_fourth_step():
    stride = 64 * 4 / (500 * 1000)
    assert steered(APA(), [1.0] * 9) == pytest.approx([0] * 3 + [stride] * 4 + [2 * stride] * 2)


@pytest.mark.parametrize(
    ("signs", "target", "direction"),
    [
        ([0.7] * 4, 0.6, 1),
        ([0.5] * 4, 0.6, -1),
        ([1, 1, 1, -1], 0.6, -1),  # mean 0.5: all four steps count, not the last
        ([-1, 1, 1, 1], 0.4, 1),
    ],
)
def test_p_follows_the_mean_sign_of_the_real_logits(signs, target, direction):
    p = steered(APA(initial_p=0.5, target=target), signs)[-1]
    assert p == pytest.approx(0.5 + direction * 64 * 4 / 500_000)


def test_old_logits_are_forgotten_after_each_change_and_p_never_falls_below_0():
    assert steered(APA(initial_p=0.5, every=2), [1, 1, 0.5, 0.5])[-1] == pytest.approx(0.5)
    assert steered(APA(every=1), [-1.0] * 3) == [0.0] * 3


def test_a_fixed_p_stays_and_is_not_logged(tiny: Path) -> None:
    run = build(tiny, "apa={ fixed_p = 0.3 }")
    for _ in range(5):
        assert "D/apa_p" not in d_step(run)
    assert run.recipe.plugins["apa"]._p.item() == 0.3


def test_the_logits_that_steer_are_those_of_the_mixed_images(tiny: Path) -> None:
    # were they of the real images, p would rise
    run = build(tiny, "apa={ initial_p = 1.0, every = 1, speed = 1.0 }")
    apa = run.recipe.plugins["apa"]
    with torch.no_grad():
        fake = run.D(run.G(sample(run).condition)).mean()
        list(run.D.parameters())[-1].sub_(fake + 10)  # all fakes are found out
    d_step(run)
    assert apa._p.item() == pytest.approx(1 - 2 / 1000)


def test_its_state_goes_over_into_a_new_one():
    one, other = APA(), APA()
    steered(one, [1] * 6)
    state = one.state_dict()
    other.load_state_dict(state)
    assert steered(other, [0.3, 0.3]) == steered(one, [0.3, 0.3])
    assert state["p"].item() == pytest.approx(64 * 4 / 500_000)  # a snapshot, not a view


def test_a_resumed_run_is_the_run_that_was_never_stopped(tiny: Path) -> None:
    moving = "apa={ initial_p = 0.5, every = 2, speed = 0.08 }"
    sets = [word for override in [*GAME, moving, "iterations=6"] for word in ("--set", override)]
    with contextlib.chdir(tiny.parent):
        for command in (
            ["run", tiny.name, "--name", "whole", *sets],
            ["run", tiny.name, "--name", "cut", *sets, "--max-iterations", "3"],
            ["resume", "cut"],
        ):
            result = CliRunner().invoke(main, command, catch_exceptions=False)
            assert result.exit_code == 0, result.output
    whole, cut = (tiny.parent / "runs" / name / "stats.jsonl" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    lines = map(json.loads, whole.read_text().splitlines())
    assert len({line["D/apa_p"] for line in lines if "D/apa_p" in line}) > 1


# --- beside others ---


@pytest.mark.parametrize("first", ["apa", "pretraining"])
def test_pretraining_goes_before_it_in_either_order(tiny: Path, first: str) -> None:
    plugins = {
        "apa": "apa={ initial_p = 0.5, every = 1, speed = 0.1 }",
        "pretraining": "pretraining={ iterations = 2 }",
    }
    run = build(tiny, plugins.pop(first), *plugins.values())
    for iteration in range(3):
        losses = iterate(run)
        run.iteration += 1
        assert ("D/adversarial" in losses) == ("D/apa_p" in losses) == (iteration == 2)
        assert (run.recipe.plugins["apa"]._p.item() == 0.5) == (iteration < 2)


def test_a_conditional_discriminator_sees_pseudo_real_images_with_their_condition(
    tiny: Path,
) -> None:
    run = build(tiny, "apa={ fixed_p = 1.0 }", "conditional_discriminator={}")
    losses = d_step(run)
    assert torch.equal(losses["D/real_logits"], losses["D/fake_logits"])


def test_another_plugin_that_takes_the_d_step_is_refused(tiny: Path) -> None:
    with pytest.raises(RecipeError, match="so does consensus; remove one of them"):
        build(tiny, "consensus={}", "apa={}")


def test_it_warns_of_its_sign_beside_a_critic(tiny: Path) -> None:
    said = [d for d in warnings_of(load_recipe(tiny, ["apa={}"])) if d.startswith("apa ")]
    assert len(said) == 1 and "set fixed_p" in said[0]
    fixed = load_recipe(tiny, ["apa={ fixed_p = 0.1 }"])
    assert not [d for d in warnings_of(fixed) if d.startswith("apa ")]


@pytest.mark.parametrize("name", ["target", "speed", "every", "initial_p"])
def test_options_without_effect_beside_a_fixed_p_are_refused(name):
    with pytest.raises(ValidationError, match=f"{name} has no effect"):
        APA(fixed_p=0.1, **{name: 1 if name == "every" else 0.5})
