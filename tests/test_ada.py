"""ADA: the controller of p, and ADA in a run; the transformations are in test_ada_pipeline."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pluggy
import pytest
import torch
from click.testing import CliRunner
from ganlab_plugins.ada import ADA
from kept_gradients import kept
from pydantic import ValidationError

from ganlab import Batch, hookimpl, hookspecs, images_for_discriminator
from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.requirements import warnings_of
from ganlab.run import Run

GAME = ("wasserstein=false", "gradient_penalty=false", "bce={}")


class Engine:
    """What stands behind the hooks: a D step on the logits it is told."""

    def __init__(self):
        self.logits = []

    @hookimpl(trylast=True)
    def discriminator_loss(self, real_logits):
        return real_logits.mean()

    @hookimpl(trylast=True)
    def discriminator_step(self, run):
        for real in self.logits:
            run.hook.discriminator_loss(
                real_logits=real, fake_logits=real, real_label=real, fake_label=real
            )
        return {"D/adversarial": torch.tensor(0.0)} if self.logits else {}


def hooks(plugin):
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    engine = Engine()
    manager.register(engine)
    manager.register(plugin)
    manager.check_pending()
    return manager.hook, engine


def steps(plugin, signs, batch_size=64, maps=1):
    """D steps whose real logits have these mean signs; the p logged after each."""
    hook, engine = hooks(plugin)
    batch = Batch(torch.zeros(batch_size, 1), torch.zeros(batch_size, 1))
    seen = []
    for sign in signs:
        positive = round(50 + 50 * sign)
        one = torch.tensor([2.0] * positive + [-0.1] * (100 - positive)).view(100, 1, 1, 1)
        engine.logits = [one] * maps
        losses = hook.discriminator_step(run=SimpleNamespace(hook=hook), batch=batch)
        seen.append(losses["D/ada_p"].item())
    return seen


def test_p_rises_by_the_published_stride_after_every_fourth_step():
    stride = 64 * 4 / (500 * 1000)
    assert steps(ADA(), [1.0] * 9) == pytest.approx([0] * 3 + [stride] * 4 + [2 * stride] * 2)


def test_p_goes_from_0_to_1_in_500_thousand_images():
    ps = steps(ADA(every=1), [1.0] * 50, batch_size=10_000)
    assert ps[-1] == pytest.approx(1.0)
    assert steps(ADA(every=1, speed=100.0), [1.0] * 10, batch_size=10_000)[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("signs", "target", "direction"),
    [
        ([0.7] * 4, 0.6, 1),
        ([0.5] * 4, 0.6, -1),
        ([1, 1, 1, -1], 0.6, -1),  # mean 0.5: all four steps count, not the last
        ([-1, 1, 1, 1], 0.4, 1),
        ([-1, -1, -1, -1], 0.6, -1),
    ],
)
def test_p_follows_the_mean_sign_of_the_real_logits(signs, target, direction):
    p = steps(ADA(initial_p=0.5, target=target), signs)[-1]
    assert p == pytest.approx(0.5 + direction * 64 * 4 / 500_000)


def test_old_logits_are_forgotten_after_each_change():
    ps = steps(ADA(initial_p=0.5, every=2), [1, 1, 0.5, 0.5])
    assert ps[-1] == pytest.approx(0.5)  # up and down again; the mean of all four is 0.75


def test_p_never_falls_below_0():
    assert steps(ADA(), [-1.0] * 8) == [0.0] * 8


def test_several_discriminators_are_averaged_and_count_one_step():
    assert steps(ADA(every=2), [1.0] * 2, maps=3) == steps(ADA(every=2), [1.0] * 2)


def test_only_the_sign_of_a_logit_counts():
    plugin = ADA(initial_p=0.5, every=1)
    hook, engine = hooks(plugin)
    engine.logits = [torch.tensor([[100.0], [-0.01]])]  # signs of mean 0, below the target
    batch = Batch(torch.zeros(64, 1), torch.zeros(64, 1))
    losses = hook.discriminator_step(run=SimpleNamespace(hook=hook), batch=batch)
    assert losses["D/ada_p"].item() < 0.5
    assert losses.keys() == {"D/adversarial", "D/ada_p"}


def test_p_rests_while_d_does_not_train():
    plugin = ADA(initial_p=0.5, every=1)
    hook, _ = hooks(plugin)  # no logits: the step returns {}
    batch = Batch(torch.zeros(64, 1), torch.zeros(64, 1))
    assert hook.discriminator_step(run=SimpleNamespace(hook=hook), batch=batch) == {}
    assert plugin._p.item() == 0.5


def test_a_step_that_judged_no_real_image_leaves_p_as_it_is():
    plugin = ADA(initial_p=0.5, every=1)

    class Other:
        @hookimpl(tryfirst=True)
        def discriminator_step(self):
            return {"D/other": torch.tensor(1.0)}

    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.register(Other())
    batch = Batch(torch.zeros(4, 1), torch.zeros(4, 1))
    assert manager.hook.discriminator_step(run=None, batch=batch)["D/ada_p"].item() == 0.5


def test_a_fixed_p_stays_and_is_not_logged():
    plugin = ADA(fixed_p=0.3)
    hook, engine = hooks(plugin)
    engine.logits = [torch.ones(2, 1)]
    batch = Batch(torch.zeros(64, 1), torch.zeros(64, 1))
    for _ in range(8):
        losses = hook.discriminator_step(run=SimpleNamespace(hook=hook), batch=batch)
        assert losses.keys() == {"D/adversarial"}
    assert plugin._p.item() == 0.3


def test_its_state_goes_over_into_a_new_one():
    one, other = ADA(), ADA()
    steps(one, [1, 1, 1, 1, 1, 1])
    state = one.state_dict()
    other.load_state_dict(state)
    assert steps(other, [0.3, 0.3]) == steps(one, [0.3, 0.3])
    assert other._p.item() == pytest.approx(2 * 64 * 4 / 500_000)  # (1 + 1 + 0.3 + 0.3) / 4 > 0.6
    assert state["p"].item() == pytest.approx(64 * 4 / 500_000)  # a snapshot, not a view


# --- in a run ---


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, [*GAME, *overrides]), torch.device("cpu"))


def test_with_p_0_the_first_step_is_that_of_a_run_without_it(tiny: Path) -> None:
    plain, adaptive = iterate(build(tiny)), iterate(build(tiny, "ada={}"))
    assert adaptive.pop("D/ada_p").item() == 0
    assert plain.keys() == adaptive.keys()
    for name, value in plain.items():
        assert torch.equal(value, adaptive[name]), name


def test_the_generator_learns_through_the_augmentation(tiny: Path) -> None:
    run = build(tiny, "ada={ fixed_p = 1.0 }", "pixel_loss.weight=0")
    batch = run.hook.sample_batch(batch_size=2, device=run.device)
    with kept(run.G_optimizer) as found:
        run.hook.generator_step(run=run, batch=batch)
    assert any(gradient.any() for gradient in found)


def test_p_rests_during_pretraining_and_wakes_with_d(tiny: Path) -> None:
    run = build(
        tiny,
        "ada={ initial_p = 0.5, every = 1, speed = 0.1 }",
        "pretraining={ iterations = 2 }",
    )
    for iteration in range(3):
        losses = iterate(run)
        run.iteration += 1
        assert ("D/ada_p" in losses) == (iteration == 2)
    assert losses["D/ada_p"].item() == pytest.approx(0.5 - 0.02)  # D knows nothing yet: r < 0.6


def test_beside_a_conditional_discriminator_the_condition_stays_in_register(tiny: Path) -> None:
    run = build(tiny, 'conditional_discriminator={ enlarge = "nearest" }', "ada={ fixed_p = 1.0 }")
    batch = run.hook.sample_batch(batch_size=2, device=run.device)
    condition = torch.nn.functional.interpolate(batch.condition, scale_factor=4)
    real, _ = images_for_discriminator(run, Batch(condition, batch.condition))
    torch.testing.assert_close(real[:, :3], real[:, 3:], rtol=0, atol=1e-5)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tiny: Path) -> None:
    moving = "ada={ initial_p = 0.5, every = 2, speed = 0.08 }"
    sets = [word for override in [*GAME, moving, "iterations=6"] for word in ("--set", override)]
    with contextlib.chdir(tiny.parent):
        part = ["--max-iterations", "3"]
        for command in (
            ["run", tiny.name, "--name", "whole", *sets],
            ["run", tiny.name, "--name", "cut", *sets, *part],
            ["resume", "cut"],
        ):
            result = CliRunner().invoke(main, command, catch_exceptions=False)
            assert result.exit_code == 0, result.output
    whole, cut = (tiny.parent / "runs" / name / "stats.jsonl" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    lines = map(json.loads, whole.read_text().splitlines())
    assert len({line["D/ada_p"] for line in lines if "D/ada_p" in line}) > 1


def test_it_warns_of_its_sign_beside_a_critic(tiny: Path) -> None:
    said = [d for d in warnings_of(load_recipe(tiny, ["ada={}"])) if d.startswith("ada ")]
    assert len(said) == 1 and "set fixed_p" in said[0]
    fixed = load_recipe(tiny, ["ada={ fixed_p = 0.1 }"])
    assert not [d for d in warnings_of(fixed) if d.startswith("ada ")]


@pytest.mark.parametrize("name", ["target", "speed", "every", "initial_p"])
def test_options_without_effect_beside_a_fixed_p_are_refused(name):
    with pytest.raises(ValidationError, match=f"{name} has no effect"):
        ADA(fixed_p=0.1, **{name: 1 if name == "every" else 0.5})
