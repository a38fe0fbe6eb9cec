"""Feature matching: the published sum, from the passes that the engine makes anyway."""

from pathlib import Path

import pytest
import torch
from ganlab_plugins.feature_matching import FeatureMatching
from kept_gradients import kept
from torch import nn
from torch.nn import functional as F

from ganlab import Batch, RecipeError, generator_losses
from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

PLAIN = ("gradient_penalty=false", 'precision="float64"')
ALONE = ("feature_matching={ weight = 1.0 }", "wasserstein.weight=0", "pixel_loss.weight=0")

FUNCTIONAL = """\
from torch import nn
from torch.nn import functional as F

from ganlab import Plugin, hookimpl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.last = nn.Conv2d(5, 1, 3)

    def forward(self, images):
        return self.last(F.relu(self.two(F.relu(self.one(images)))))


class Functional(Plugin):
    @hookimpl
    def make_discriminator(self):
        return Net()
"""


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, [*PLAIN, *overrides]), torch.device("cpu"))


def sample(run: Run) -> Batch:
    run.streams.moment(0, "G", 0)
    return run.hook.sample_batch(batch_size=3, device=run.device)


def activations(D: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What the LeakyReLUs of a patch discriminator answer, layer by layer."""
    seen = []
    for layer in D:
        images = layer(images)
        if isinstance(layer, nn.LeakyReLU):
            seen.append(images)
    return seen


def distance(run: Run, batch: Batch, kind: str = "paired") -> torch.Tensor:
    """The loss by hand, with its gradient to G."""
    assert run.D is not None
    total = torch.zeros((), dtype=torch.float64)
    for real, fake in zip(
        activations(run.D, batch.real), activations(run.D, run.G(batch.condition)), strict=True
    ):
        if kind == "mean":
            real, fake = (features.mean((0, 2, 3)) for features in (real, fake))
        total = total + (real.detach() - fake).abs().mean()
    return total


@pytest.mark.parametrize("kind", ["paired", "mean"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_loss_is_the_sum_over_layers_of_the_mean_distance_times_10(
    tiny: Path, kind: str, num_layers: int
) -> None:
    run = build(
        tiny,
        f'feature_matching={{ kind = "{kind}" }}',
        f"patch_discriminator.num_layers={num_layers}",
    )
    batch = sample(run)
    expected = 10 * distance(run, batch, kind).item()
    losses = run.hook.generator_step(run=run, batch=batch)
    assert losses["G/feature_matching"].item() == pytest.approx(expected, rel=1e-9)
    assert len(activations(run.D, batch.real)) == num_layers + 1


def test_pix2pixhds_weight_of_a_layer_is_1_for_its_three_layers():
    # its code: 4 / (n_layers + 1) for each of n_layers + 1 features, n_layers = 3
    from ganlab_plugins.patch_discriminator import PatchDiscriminator

    D = PatchDiscriminator(width=2).make_discriminator((3, 24, 24))
    assert len(FeatureMatching()._chosen(D)) == 4


@pytest.mark.parametrize("kind", ["paired", "mean"])
def test_its_gradient_reaches_g_through_the_frozen_d_and_nothing_else(
    tiny: Path, kind: str
) -> None:
    run = build(tiny, *ALONE, f'feature_matching.kind="{kind}"')
    batch = sample(run)
    expected = torch.autograd.grad(distance(run, batch, kind), list(run.G.parameters()))
    with kept(run.G_optimizer) as found:
        run.hook.generator_step(run=run, batch=batch)
    for mine, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, gradient)
    assert any(gradient.any() for gradient in expected)
    assert all(p.grad is None and p.requires_grad for p in run.D.parameters())
    assert batch.real.grad is None and not batch.real.requires_grad


def test_d_runs_once_on_fake_and_once_on_real(tiny: Path) -> None:
    for options, expected in (((), 1), (("feature_matching={}",), 2)):
        run = build(tiny, *options)
        calls = []
        run.D.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run.hook.generator_step(run=run, batch=sample(run))
        assert len(calls) == expected


def test_nothing_is_watched_or_kept_after_a_generator_step(tiny: Path) -> None:
    run = build(tiny, "feature_matching={}")
    run.hook.generator_step(run=run, batch=sample(run))
    assert not any(module._forward_hooks for module in run.D.modules())
    assert not run.recipe.plugins["feature_matching"]._passes


def test_nothing_is_watched_after_a_step_that_failed(tiny: Path, monkeypatch) -> None:
    run = build(tiny, "feature_matching={}")
    monkeypatch.setattr(type(run), "descend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.hook.generator_step(run=run, batch=sample(run))
    assert not any(module._forward_hooks for module in run.D.modules())
    assert not run.recipe.plugins["feature_matching"]._passes


def test_the_d_step_is_left_alone(tiny: Path) -> None:
    steps = []
    for options in ((), ("feature_matching={}",)):
        run = build(tiny, *options)
        steps.append(run.hook.discriminator_step(run=run, batch=sample(run)))
    assert steps[0].keys() == steps[1].keys()
    assert all(torch.equal(value, steps[1][name]) for name, value in steps[0].items())


def test_a_generator_that_answers_the_truth_pays_nothing(tiny: Path) -> None:
    run = build(tiny, "feature_matching={}")
    batch = sample(run)
    with torch.no_grad():
        perfect = Batch(run.G(batch.condition), batch.condition)
    assert run.hook.generator_step(run=run, batch=perfect)["G/feature_matching"].item() < 1e-9


def test_means_do_not_care_which_image_or_place_a_feature_comes_from():
    generator = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(4, 5, 3, 2, generator=generator).double() for _ in range(2))
    moved = real.flip(0, 2, 3)
    mean, paired = FeatureMatching(kind="mean"), FeatureMatching()
    torch.testing.assert_close(mean._distance(fake, real), mean._distance(fake, moved))
    assert not torch.allclose(paired._distance(fake, real), paired._distance(fake, moved))
    vectors = fake.mean((2, 3)), real.mean((2, 3))  # [N, C], of a linear layer
    expected = (fake.mean((0, 2, 3)) - real.mean((0, 2, 3))).abs().mean()
    torch.testing.assert_close(mean._distance(*vectors), expected)


def test_layers_are_chosen_by_name_and_pattern(tiny: Path) -> None:
    batch, losses = None, {}
    for layers in (["1"], ["3"], ["[13]"], ["1", "3"]):
        names = str(layers).replace("'", '"')
        run = build(tiny, f"feature_matching={{ weight = 1.0, layers = {names} }}")
        batch = sample(run)
        step = run.hook.generator_step(run=run, batch=batch)
        losses["".join(layers)] = step["G/feature_matching"].item()
    assert losses["1"] + losses["3"] == pytest.approx(losses["13"])
    assert losses["[13]"] == losses["13"]


def test_a_name_that_no_layer_has_is_refused_with_those_that_it_has(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"no layer .*'block\*'.* it has 0, 1, 2, 3, 4"):
        build(tiny, 'feature_matching={ layers = ["block*"] }')


def test_without_activation_modules_it_takes_all_layers_but_the_last(tiny: Path) -> None:
    (tiny.parent / "functional.py").write_text(FUNCTIONAL)
    run = build(
        tiny, "patch_discriminator=false", 'd={ use = "./functional.py" }', "feature_matching={}"
    )
    batch = sample(run)
    with torch.no_grad():
        fake = run.G(batch.condition)
        expected = F.l1_loss(run.D.one(fake), run.D.one(batch.real))
        deeper = (run.D.two(F.relu(run.D.one(x))) for x in (fake, batch.real))
        expected += F.l1_loss(*deeper)
    losses = run.hook.generator_step(run=run, batch=batch)
    assert losses["G/feature_matching"].item() == pytest.approx(10 * expected.item())


def test_a_discriminator_without_inner_layers_is_refused(tiny: Path) -> None:
    text = FUNCTIONAL.replace("return Net()", "return nn.Conv2d(3, 1, 3)")
    (tiny.parent / "single.py").write_text(text)
    with pytest.raises(RecipeError, match="no inner layer"):
        build(tiny, "patch_discriminator=false", 'd={ use = "./single.py" }', *ALONE)


def test_spectral_norm_hides_no_layer(tiny: Path) -> None:
    run = build(tiny, 'patch_discriminator.norm="spectral"', 'feature_matching={ layers = ["*"] }')
    assert run.hook.generator_step(run=run, batch=sample(run))["G/feature_matching"] > 0


def test_it_is_left_out_of_pretraining(tiny: Path) -> None:
    run = build(tiny, "feature_matching={}", "pretraining={ iterations = 1 }")
    assert "G/feature_matching" not in iterate(run)
    run.iteration += 1
    assert "G/feature_matching" in iterate(run)


def test_elsewhere_than_in_the_generators_step_it_says_that_it_sees_nothing(tiny: Path) -> None:
    run = build(tiny, "feature_matching={}")
    with pytest.raises(RecipeError, match="only in the generator's step"):
        generator_losses(run, sample(run))


def test_bfloat16_features_are_compared_in_the_precision_of_the_images():
    plugin = FeatureMatching()
    fake = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    real = torch.tensor([[0.0, 4.0]], dtype=torch.bfloat16)
    plugin._passes.update(fake=[fake], real=[real])
    logits = torch.zeros(1, 1)
    loss = plugin.generator_loss(fake_logits=logits, real_logits=logits)["G/feature_matching"]
    loss.backward()
    assert loss.item() == 15.0
    assert fake.grad.dtype == torch.bfloat16 and fake.grad.tolist() == [[5.0, -5.0]]
