"""The pool of training pairs: what goes in comes out once, matched, and a resume is exact."""

from pathlib import Path

import pluggy
import pytest
import torch
from ganlab_plugins.pair_pool import PairPool

from ganlab import Batch, RecipeError, hookimpl, hookspecs
from ganlab.assembly import assemble
from ganlab.checkpoint import load_checkpoint, write_checkpoint
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.state import state_of
from ganlab.streams import Streams

CPU = torch.device("cpu")
POOLED = """\
iterations = 12
batch_size = 2
evaluate_every = 100
checkpoint_every = 6

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
real_esrgan_degradation = { scale = 4 }
pair_pool = { size = 6 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = { weight = 1.0 }
"""


class Numbered:
    """Batches of numbered pairs: real and condition of a pair hold the same number."""

    def __init__(self, made: int) -> None:
        self.made = made

    @hookimpl(trylast=True)
    def sample_batch(self, batch_size: int) -> Batch:
        numbers = torch.arange(self.made, self.made + batch_size, dtype=torch.float64)
        self.made += batch_size
        numbers = numbers[:, None, None, None]
        return Batch(numbers.expand(-1, 3, 8, 8), numbers.expand(-1, 3, 2, 2) / 1000)


class Recipe:
    batch_size = 3


class RunOf3:
    recipe = Recipe()


def sampler(plugin: PairPool, made: int = 0):
    """A function of the iteration that samples a batch through the plugin.

    :param made: pairs that the data source has made already.
    """
    streams = Streams(seed=1)
    plugin.bind(streams=streams)
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Numbered(made))
    manager.register(plugin)

    def sample(iteration: int) -> Batch:
        streams.moment(iteration, "D", 0)
        return manager.hook.sample_batch(batch_size=3, device=CPU)

    return sample


def numbers(batch: Batch) -> list[int]:
    """The numbers of a batch, each found in all of its pair."""
    for images, factor in ((batch.real, 1), (batch.condition, 1000)):
        flat = (images * factor).round().flatten(1)
        assert (flat == flat[:, :1]).all()
    real, condition = batch.real[:, 0, 0, 0], (batch.condition * 1000).round()[:, 0, 0, 0]
    assert torch.equal(real, condition), "a pair came apart"
    return [int(number) for number in real]


def pool(size: int = 12) -> PairPool:
    plugin = PairPool(size=size)
    plugin.check_recipe(RunOf3())
    plugin.run_start(RunOf3())
    return plugin


def test_until_the_pool_is_full_the_new_batch_is_trained_on():
    sample = sampler(pool())
    assert [numbers(sample(i)) for i in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_then_every_pair_that_went_in_comes_out_at_most_once_and_never_at_once():
    sample = sampler(pool())
    for i in range(4):
        sample(i)
    seen: list[int] = []
    for i in range(4, 104):
        drawn = numbers(sample(i))
        assert max(drawn) < 3 * i, "a pair came out in the step in which it went in"
        seen += drawn
    assert len(set(seen)) == len(seen) == 300
    # 12 are in the pool now: the others are out
    assert len(set(range(312)) - set(seen)) == 12


def test_a_pair_waits_size_over_batch_size_batches_on_average():
    sample = sampler(pool())
    for i in range(4):
        sample(i)
    waits = [i - number // 3 for i in range(4, 1004) for number in numbers(sample(i))]
    assert sum(waits) / len(waits) == pytest.approx(4, rel=0.1)


def test_pairs_of_different_batches_come_together():
    sample = sampler(pool())
    for i in range(4):
        sample(i)
    mixed = [len({number // 3 for number in numbers(sample(i))}) > 1 for i in range(4, 104)]
    assert sum(mixed) > 80


def test_what_comes_out_is_not_overwritten_by_what_comes_later():
    sample = sampler(pool())
    batches = [sample(i) for i in range(8)]
    before = [numbers(batch) for batch in batches]
    for i in range(8, 20):
        sample(i)
    assert [numbers(batch) for batch in batches] == before


def test_a_probe_before_the_run_passes_through():
    plugin = PairPool(size=12)
    assert numbers(sampler(plugin)(0)) == [0, 1, 2]
    assert plugin.state_dict() == {"filled": 0, "pool": []}


@pytest.mark.parametrize(("size", "words"), [(13, "use 12 or 15"), (2, "use 3")])
def test_a_size_that_the_batch_size_does_not_divide_is_refused_with_a_remedy(size, words):
    with pytest.raises(RecipeError, match=rf"size = {size} is not a multiple.* = 3; {words}"):
        pool(size)


@pytest.mark.parametrize("stop", [0, 2, 7])
def test_a_loaded_state_continues_exactly(stop):
    whole = sampler(pool())
    expected = [numbers(whole(i)) for i in range(14)]

    first = pool()
    sample = sampler(first)
    for i in range(stop):
        sample(i)
    state = first.state_dict()
    state = {"filled": state["filled"], "pool": [t.clone() for t in state["pool"]]}

    second = pool()
    second.load_state_dict(state)
    sample = sampler(second, made=3 * stop)
    assert [numbers(sample(i)) for i in range(stop, 14)] == expected[stop:]


def test_a_run_resumed_from_its_checkpoint_continues_bit_for_bit(tmp_path: Path):
    def losses(run: Run, iterations: int) -> list[dict[str, float]]:
        made = []
        for _ in range(iterations):
            made.append({name: value.item() for name, value in iterate(run).items()})
            run.iteration += 1
        return made

    recipe = tmp_path / "pooled.toml"
    recipe.write_text(POOLED)
    whole = assemble(load_recipe(recipe), CPU)
    losses(whole, 4)
    write_checkpoint(state_of(whole), tmp_path)
    expected = losses(whole, 4)

    resumed = assemble(load_recipe(recipe), CPU)
    assert load_checkpoint(resumed, tmp_path) == 4
    assert losses(resumed, 4) == expected
