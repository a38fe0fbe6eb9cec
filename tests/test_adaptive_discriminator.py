"""The discriminator rests exactly when the generator's average loss jumps."""

import pytest
import torch
from ganlab_plugins.adaptive_discriminator import AdaptiveDiscriminator

from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

CPU = torch.device("cpu")


def after(plugin, loss):
    """What a G step with this adversarial loss logs."""
    step = plugin.generator_step()
    next(step)
    with pytest.raises(StopIteration) as stop:
        step.send({"G/adversarial": torch.tensor(loss)})
    return stop.value.value


def rests(plugin):
    return plugin.discriminator_step(run=None) == {}


def test_it_compares_the_new_average_with_the_old_one_times_the_threshold():
    plugin = AdaptiveDiscriminator(decay=0.5, threshold=1.25)
    assert not rests(plugin)
    # averages: 1, 1 (no jump), 1.5 = 1.5 x, 1.75 = 1.167 x, 2.375 = 1.357 x, 1.1875
    for loss, expected in [(1, 0), (1, 0), (2, 1), (2, 0), (3, 1), (0, 0)]:
        losses = after(plugin, float(loss))
        assert losses["D/adaptive_discriminator"].item() == expected
        assert rests(plugin) == bool(expected)
    assert plugin.state_dict()["average"] == pytest.approx(1.1875)


def test_trap_its_average_begins_with_the_first_loss_so_that_d_does_not_rest_at_the_start():
    plugin = AdaptiveDiscriminator()
    for _ in range(100):
        after(plugin, 0.7)
        assert not rests(plugin)
    assert plugin.state_dict()["average"] == pytest.approx(0.7)


def test_at_the_defaults_a_loss_of_21_times_its_average_is_the_border():
    for loss, expected in [(20.9, False), (21.1, True)]:
        plugin = AdaptiveDiscriminator()
        after(plugin, 1.0)
        after(plugin, loss)
        assert rests(plugin) == expected


def test_a_step_without_an_adversarial_loss_changes_nothing():
    plugin = AdaptiveDiscriminator()
    step = plugin.generator_step()
    next(step)
    with pytest.raises(StopIteration) as stop:
        step.send({"G/pixel_loss": torch.tensor(3.0)})
    assert list(stop.value.value) == ["G/pixel_loss"]
    assert not rests(plugin)


def test_a_negative_loss_has_no_ratio_and_is_refused_with_a_remedy():
    with pytest.raises(RecipeError, match="must be positive; use an objective such as bce"):
        after(AdaptiveDiscriminator(), -0.5)


def test_its_state_makes_the_round_trip():
    plugin, other = AdaptiveDiscriminator(decay=0.5), AdaptiveDiscriminator(decay=0.5)
    after(plugin, 1.0)
    after(plugin, 2.0)
    other.load_state_dict(plugin.state_dict())
    assert rests(other)
    after(plugin, 2.0)
    after(other, 2.0)
    assert other.state_dict() == plugin.state_dict()


def test_in_a_run_d_keeps_its_weights_and_optimizer_while_it_rests(tiny):
    text = tiny.read_text().replace("wasserstein = {}", "bce = {}")
    # the weight makes the loss nine times as large at iteration 2, and D rests at iteration 3
    text = text.replace("bce = {}", "bce = { weight = { from = 1, to = 9, over = 1, after = 1 } }")
    tiny.write_text(text + "adaptive_discriminator = { threshold = 1.001 }\nr1 = { every = 2 }\n")
    run = assemble(load_recipe(tiny, ["gradient_penalty=false", "d_steps=2"]), CPU)
    for run.iteration in range(4):
        before = [p.detach().clone() for p in run.D.parameters()]
        steps = {p: s["step"].item() for p, s in run.D_optimizer.state.items()}
        rested = rests(run.recipe.plugins["adaptive_discriminator"])
        losses = iterate(run)
        assert rested == (run.iteration == 3)
        assert all(map(torch.equal, run.D.parameters(), before)) == rested
        assert ("D/adversarial" in losses) != rested
        assert ("D/r1" in losses) == (not rested)
        if rested:
            assert steps == {p: s["step"].item() for p, s in run.D_optimizer.state.items()}
