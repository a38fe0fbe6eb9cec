"""Label flipping: whom it reaches, how often, and what it costs in expectation."""

import pytest
import torch
from ganlab_plugins.label_flipping import LabelFlipping
from pydantic import ValidationError

from ganlab import Schedule
from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe

CPU = torch.device("cpu")


def flipped(probability, real, fake):
    torch.manual_seed(0)
    chain = LabelFlipping(probability=Schedule.constant(probability)).labels()
    next(chain)
    with pytest.raises(StopIteration) as stop:
        chain.send((real, fake))
    return stop.value.value


def labels(n, shape=(1, 3, 2)):
    return torch.ones(n, *shape), torch.zeros(n, *shape)


@pytest.mark.parametrize(("probability", "swapped"), [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("n", [1, 4])
def test_at_0_nobody_is_flipped_and_at_1_everybody(probability, swapped, n):
    real, fake = labels(n)
    expected = (fake, real) if swapped else (real, fake)
    assert all(map(torch.equal, flipped(probability, real, fake), expected))


@pytest.mark.parametrize("shape", [(1,), (1, 3, 2)], ids=["vector", "map"])
def test_an_image_is_flipped_with_its_whole_map_and_apart_from_its_pair(shape):
    real, fake = flipped(0.3, *labels(2000, shape))
    for side, of_flip in ((real, 0.0), (fake, 1.0)):
        per_image = side.flatten(1)
        assert torch.equal(per_image.amin(1), per_image.amax(1))
        assert (per_image[:, 0] == of_flip).float().mean().item() == pytest.approx(0.3, abs=0.04)
    both = ((real.flatten(1)[:, 0] == 0) & (fake.flatten(1)[:, 0] == 1)).float().mean()
    assert both.item() == pytest.approx(0.09, abs=0.02)


def test_the_expected_loss_is_that_of_the_mean_label():
    n = 20_000
    label, _ = flipped(0.05, *labels(n, (1,)))
    logits = torch.full_like(label, 1.3)
    got = torch.nn.functional.binary_cross_entropy_with_logits(logits, label)
    true, false = torch.nn.functional.softplus(torch.tensor([-1.3, 1.3]))
    assert got.item() == pytest.approx((0.95 * true + 0.05 * false).item(), abs=0.01)


def test_smoothed_labels_are_exchanged_as_they_are_and_keep_their_dtype():
    real, fake = (x.double() for x in labels(50, (1,)))
    real = 0.9 * real
    after = flipped(0.5, real, fake)
    assert all(x.dtype == torch.float64 for x in after)
    assert all(set(x.flatten().tolist()) == {0.0, 0.9} for x in after)


def test_a_probability_outside_0_to_1_is_refused():
    for value in (-0.1, 1.1):
        with pytest.raises(ValidationError, match="at least 0 and at most 1"):
            LabelFlipping(probability=Schedule.constant(value))


def test_the_generator_never_sees_it_and_a_seed_settles_who_is_flipped(tiny):
    text = tiny.read_text().replace("wasserstein = {}", "bce = {}")
    tiny.write_text(text)
    plain = assemble(load_recipe(tiny), CPU)
    tiny.write_text(text + "label_flipping = { probability = 1.0 }\n")
    other = assemble(load_recipe(tiny), CPU)
    for run in (plain, other):
        run.streams.moment(0, "G", 0)
    batches = [run.hook.sample_batch(batch_size=2, device=CPU) for run in (plain, other)]
    steps = [
        run.hook.generator_step(run=run, batch=batch)
        for run, batch in zip((plain, other), batches, strict=True)
    ]
    assert steps[0] == steps[1]
    tiny.write_text(text + "label_flipping = { probability = 0.5 }\n")
    runs = [assemble(load_recipe(tiny), CPU) for _ in range(2)]
    assert iterate(runs[0]) == iterate(runs[1])


def test_it_is_refused_beside_an_objective_without_labels(tiny):
    tiny.write_text(tiny.read_text() + "label_flipping = {}\n")
    with pytest.raises(RecipeError, match="which wasserstein does not read"):
        assemble(load_recipe(tiny), CPU)
