"""A conditional discriminator sees the condition beside the image, and both change together."""

from pathlib import Path

import pluggy
import pytest
import torch
from ganlab_plugins.conditional_discriminator import ConditionalDiscriminator
from kept_gradients import kept

from ganlab import RecipeError, hookimpl, hookspecs, images_for_discriminator, resize
from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run


class Images:
    @hookimpl(trylast=True)
    def augment(self, images):
        return images


def augment(images, condition, **options):
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Images())
    manager.register(ConditionalDiscriminator(**options))
    return manager.hook.augment(images=images, condition=condition)


def build(file: Path, *overrides: str) -> Run:
    return assemble(load_recipe(file, overrides), torch.device("cpu"))


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(1, 3, 12, 20, dtype=torch.float64, generator=generator),
        torch.rand(1, 3, 3, 5, dtype=torch.float64, generator=generator),
    )


def test_the_channels_are_the_image_and_then_its_condition_enlarged(pair):
    images, condition = pair
    seen = augment(images, condition)
    assert seen.shape == (1, 6, 12, 20)
    assert torch.equal(seen[:, :3], images)
    assert torch.equal(seen[:, 3:], resize(condition, (12, 20)))


def test_nearest_shows_every_pixel_of_the_condition_as_a_block(pair):
    images, condition = pair
    seen = augment(images, condition, enlarge="nearest")
    blocks = condition.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(seen[:, 3:], blocks)


def test_the_condition_takes_the_dtype_of_the_images(pair):
    images, condition = pair
    seen = augment(images.float(), condition)
    assert seen.dtype == torch.float32


def test_the_images_keep_their_whole_gradient(pair):
    images, condition = pair
    images.requires_grad_()
    weights = torch.rand(1, 6, 12, 20, dtype=torch.float64)
    (augment(images, condition) * weights).sum().backward()
    assert torch.equal(images.grad, weights[:, :3])


def test_a_condition_that_is_no_image_is_refused_with_a_remedy(pair):
    with pytest.raises(RecipeError, match="drop conditional_discriminator"):
        augment(pair[0], torch.rand(1, 7))


def test_a_run_builds_a_discriminator_of_six_channels_and_trains_it(tiny: Path) -> None:
    run = build(tiny, "conditional_discriminator={}")
    assert isinstance(run.D, torch.nn.Sequential)
    assert run.D[0].weight.shape[1] == 6
    before = run.D[0].weight.detach().clone()
    losses = iterate(run)
    assert all(value.isfinite() for value in losses.values())
    moved = (run.D[0].weight != before).flatten(2).any(2)
    assert moved[:, 3:].any()  # D learns from the condition too


def test_the_answer_of_d_depends_on_the_condition_and_the_generator_gets_its_gradient(
    tiny: Path,
) -> None:
    run = build(tiny, "conditional_discriminator={}", "pixel_loss.weight=0")
    batch = run.hook.sample_batch(batch_size=2, device=run.device)
    _, fake = images_for_discriminator(run, batch)
    other = fake.clone()
    other[:, 3:] = fake[:, 3:].flip(0)
    assert not torch.equal(run.D(fake), run.D(other))
    with kept(run.G_optimizer) as found:
        run.hook.generator_step(run=run, batch=batch)
    assert any(gradient.any() for gradient in found)


def test_a_later_augmentation_draws_alike_for_the_image_and_its_condition(tiny: Path) -> None:
    # a condition as large as the image, and equal to it, must stay equal through diff_augment
    run = build(tiny, "conditional_discriminator={}", "diff_augment={}")
    images = torch.rand(4, 3, 16, 16)
    seen = run.hook.augment(images=images, condition=images)
    torch.testing.assert_close(seen[:, :3], seen[:, 3:], rtol=0, atol=1e-5)
    assert not torch.allclose(seen[:, :3], images, atol=0.05)


def test_an_earlier_augmentation_leaves_the_condition_alone(tiny: Path) -> None:
    run = build(tiny, "diff_augment={}", "conditional_discriminator={}")
    batch = run.hook.sample_batch(batch_size=2, device=run.device)
    real, _ = images_for_discriminator(run, batch)
    assert torch.equal(real[:, 3:], resize(batch.condition, (16, 16)))
