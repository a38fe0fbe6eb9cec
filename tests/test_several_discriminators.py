"""Several discriminators: every term that asks one is the mean over them."""

import contextlib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kept_gradients import kept
from torch import Tensor, nn

from ganlab import Batch, images_for_discriminator
from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

# two of the same kind beside each other, listed in the recipe's order
TWO = ("num_discriminators=2", 'second={ use = "patch_discriminator", width = 6, num_layers = 1 }')
PLAIN = ("gradient_penalty=false", 'precision="float64"')

SPY = """\
from ganlab import Plugin, hookimpl


class Spy(Plugin):
    @hookimpl
    def penalty(self, discriminator, real_logits):
        value = next(discriminator.parameters()).square().sum() + real_logits.square().mean()
        return {f"D/{self.name}": value}
"""


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, [*PLAIN, *overrides]), torch.device("cpu"))


def sample(run: Run, role: str = "D") -> Batch:
    run.streams.moment(0, role, 0)
    return run.hook.sample_batch(batch_size=2, device=run.device)


def mean(values: list[Tensor]) -> float:
    return float(torch.stack([value.detach() for value in values]).mean())


def refusal(tiny: Path, *overrides: str) -> str:
    """What the command line says of a recipe that it refuses."""
    sets = [word for override in overrides for word in ("--set", override)]
    with contextlib.chdir(tiny.parent):
        result = CliRunner().invoke(main, ["check", tiny.name, *sets], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def test_they_are_built_in_the_order_of_the_recipe_and_share_one_optimizer(tiny: Path) -> None:
    run = build(tiny, *TWO)
    assert isinstance(run.D, nn.ModuleList)
    assert [D[0].out_channels for D in run.D] == [4, 6]
    held = [p for group in run.D_optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in run.D.parameters()}


def test_one_more_leaves_the_initial_weights_of_the_first_as_they_are(tiny: Path) -> None:
    alone, first = build(tiny).D, build(tiny, *TWO).D[0]
    for mine, same in zip(alone.parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, same)


def test_two_of_equal_options_begin_with_different_weights_that_the_seed_decides(
    tiny: Path,
) -> None:
    equal = (*TWO, "second.width=4")
    one, other = build(tiny, *equal), build(tiny, *equal)
    for first, second in zip(one.D[0].parameters(), one.D[1].parameters(), strict=True):
        assert first.shape == second.shape
        assert not torch.equal(first, second)
    for mine, same in zip(one.D.parameters(), other.D.parameters(), strict=True):
        assert torch.equal(mine, same)


def test_each_term_of_the_d_step_is_the_mean_over_them(tiny: Path) -> None:
    (tiny.parent / "spy.py").write_text(SPY)
    run = build(tiny, *TWO, 'spy={ use = "./spy.py" }')
    batch = sample(run)
    real, fake = images_for_discriminator(run, batch)
    answers = [(D(real), D(fake)) for D in run.D]
    weights = [next(D.parameters()).square().sum() for D in run.D]
    expected = {
        "D/adversarial": mean([f.mean() - r.mean() for r, f in answers]),
        "D/spy": mean([w + r.square().mean() for w, (r, _) in zip(weights, answers, strict=True)]),
        "D/real_logits": mean([r.mean() for r, _ in answers]),
        "D/fake_logits": mean([f.mean() for _, f in answers]),
    }
    losses = run.hook.discriminator_step(run=run, batch=batch)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected)


def test_each_gets_its_share_of_the_gradient_of_its_own_loss(tiny: Path) -> None:
    run = build(tiny, *TWO)
    batch = sample(run)
    real, fake = images_for_discriminator(run, batch)
    expected = []
    for D in run.D:
        loss = D(fake).mean() - D(real).mean()
        gradients = torch.autograd.grad(loss, list(D.parameters()), materialize_grads=True)
        expected += [gradient / 2 for gradient in gradients]
    before = [p.detach().clone() for p in run.D.parameters()]
    with kept(run.D_optimizer) as found:
        run.hook.discriminator_step(run=run, batch=batch)
    for mine, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, gradient)
    for D, old in zip(run.D, (before[: len(before) // 2], before[len(before) // 2 :]), strict=True):
        assert not all(torch.equal(p, was) for p, was in zip(D.parameters(), old, strict=True))


def test_the_generator_follows_the_mean_of_their_gradients_and_moves_none_of_them(
    tiny: Path,
) -> None:
    run = build(tiny, *TWO, "pixel_loss.weight=0")
    batch = sample(run, "G")
    answers = [-D(run.G(batch.condition)).mean() for D in run.D]
    expected = torch.autograd.grad(torch.stack(answers).mean(), list(run.G.parameters()))
    before = [p.detach().clone() for p in run.D.parameters()]
    with kept(run.G_optimizer) as found:
        losses = run.hook.generator_step(run=run, batch=batch)
    assert losses["G/adversarial"].item() == pytest.approx(mean(answers))
    for mine, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, gradient)
    assert all(torch.equal(a, b) for a, b in zip(before, run.D.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in run.D.parameters())


def test_content_losses_count_once(tiny: Path) -> None:
    alone, together = (build(tiny, *options) for options in ((), TWO))
    losses = [run.hook.generator_step(run=run, batch=sample(run, "G")) for run in (alone, together)]
    assert torch.equal(losses[0]["G/pixel_loss"], losses[1]["G/pixel_loss"])


def test_a_gradient_penalty_is_of_each(tiny: Path) -> None:
    # the second is flat and pays weight * 1, the first what it pays when alone
    run = build(tiny, *TWO, "gradient_penalty={ weight = 10.0 }")
    for parameter in run.D[1].parameters():
        nn.init.zeros_(parameter)
    alone = build(tiny, "gradient_penalty={ weight = 10.0 }")
    alone.D.load_state_dict(run.D[0].state_dict())
    losses = run.hook.discriminator_step(run=run, batch=sample(run))
    one = alone.hook.discriminator_step(run=alone, batch=sample(alone))
    expected = (one["D/gradient_penalty"].item() + 10.0) / 2
    assert losses["D/gradient_penalty"].item() == pytest.approx(expected)


def test_feature_matching_is_the_mean_over_them(tiny: Path) -> None:
    run = build(tiny, *TWO, "feature_matching={}")
    batch = sample(run, "G")
    sums = []
    with torch.no_grad():
        for D in run.D:
            fake, real, total = run.G(batch.condition), batch.real, torch.zeros(()).double()
            for layer in D:
                fake, real = layer(fake), layer(real)
                if isinstance(layer, nn.LeakyReLU):
                    total += (fake - real).abs().mean()
            sums.append(10 * total)
    calls = []
    for D in run.D:
        D.register_forward_hook(lambda *_: calls.append(1))
    losses = run.hook.generator_step(run=run, batch=batch)
    assert losses["G/feature_matching"].item() == pytest.approx(mean(sums))
    assert len(calls) == 4


def test_one_that_mixes_images_is_found_wherever_it_stands(tiny: Path) -> None:
    for name in ("patch_discriminator", "second"):
        with pytest.raises(RecipeError, match="gradient_penalty needs a discriminator without"):
            build(tiny, *TWO, "gradient_penalty={}", f'{name}.norm="batch"')


def test_two_scales_see_the_image_and_its_half(tiny: Path) -> None:
    run = build(tiny, *TWO, "second.downsample=2")
    real, _ = images_for_discriminator(run, sample(run))
    first, second = (D(real).shape[-1] for D in run.D)
    assert first > second
    assert all(value.isfinite() for value in iterate(run).values())


def test_a_number_that_does_not_fit_is_refused_with_its_remedy(tiny: Path) -> None:
    assert "or train against all of them with `num_discriminators = 2`" in refusal(tiny, TWO[1])
    message = refusal(tiny, "num_discriminators=3", TWO[1])
    assert "make_discriminator must be provided by exactly 3 plugins" in message
    assert "patch_discriminator and second both provide it" in message
    assert "ganlab plugins --hook make_discriminator" in message
    message = refusal(tiny, "num_discriminators=2")
    assert "make_discriminator must be provided by exactly 2 plugins" in message
    assert "patch_discriminator alone provides it" in message
    assert "at least 1" in refusal(tiny, "num_discriminators=0")
    message = refusal(tiny, "patch_discriminator=false")
    assert "; d_steps = 0 trains without a discriminator" in message


def test_without_discriminator_steps_their_number_has_no_effect_and_is_refused(tiny: Path) -> None:
    off = [f"{name}=false" for name in ("patch_discriminator", "wasserstein", "gradient_penalty")]
    message = refusal(tiny, *off, "d_steps=0", "num_discriminators=2")
    assert "num_discriminators = 2 has no effect: d_steps is 0" in message
    assert "leave it out" in message


def test_a_resumed_run_is_the_run_that_was_never_stopped(tiny: Path) -> None:
    moving = (*TWO, "iterations=6", "feature_matching={ weight = 0.1 }")
    sets = [word for override in moving for word in ("--set", override)]
    with contextlib.chdir(tiny.parent):
        for command in (
            ["run", tiny.name, "--name", "whole", *sets],
            ["run", tiny.name, "--name", "cut", *sets, "--max-iterations", "3"],
            ["resume", "cut"],
        ):
            result = CliRunner().invoke(main, command, catch_exceptions=False)
            assert result.exit_code == 0, result.output
    runs = [tiny.parent / "runs" / name for name in ("whole", "cut")]
    assert len({(run / "stats.jsonl").read_bytes() for run in runs}) == 1
    last = [run / "checkpoints" / "0000006.pt" for run in runs]
    one, other = (torch.load(path, weights_only=True)["networks"]["D"] for path in last)
    assert one.keys() == other.keys()
    assert {name.partition(".")[0] for name in one} == {"0", "1"}
    assert all(torch.equal(value, other[name]) for name, value in one.items())
