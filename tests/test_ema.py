"""The average generator follows its formula, buffers included, and survives a restart."""

import copy
from types import SimpleNamespace

import pluggy
import pytest
import torch
from ganlab_plugins.ema import EMA
from torch import nn

from ganlab import hookimpl, hookspecs


def started(plugin, G):
    run = SimpleNamespace(G=G, iteration=0)
    plugin.run_start(run)
    return plugin, run


def number(value):
    G = nn.Linear(1, 1, bias=False).double()
    set_to(G, value)
    return G


def set_to(G, value):
    with torch.no_grad():
        G.weight.fill_(value)


def test_the_average_keeps_the_decay_and_takes_the_rest():
    # an inverted formula would give .999 * 7 + .001 * 3 instead
    plugin, run = started(EMA(warmup=False), number(3.0))
    set_to(run.G, 7.0)
    plugin.iteration_end(run)
    assert plugin.average.weight.item() == pytest.approx(0.999 * 3 + 0.001 * 7, abs=1e-12)
    plugin.iteration_end(run)
    assert plugin.average.weight.item() == pytest.approx(7 - 4 * 0.999**2, abs=1e-12)


def test_warm_up_begins_at_one_tenth_and_ends_at_the_decay():
    plugin = EMA()
    assert [plugin.decay_at(t) for t in (0, 10, 80)] == [0.1, 11 / 20, 81 / 90]
    assert plugin.decay_at(8989) < 0.999
    assert plugin.decay_at(8991) == 0.999
    assert EMA(warmup=False).decay_at(0) == 0.999

    plugin, run = started(plugin, number(0.0))
    set_to(run.G, 1.0)
    plugin.iteration_end(run)
    run.iteration = 10
    plugin.iteration_end(run)
    assert plugin.average.weight.item() == pytest.approx(1 - 0.1 * 11 / 20)


def test_statistics_of_batch_norm_are_averaged_and_their_count_copied():
    plugin, run = started(EMA(warmup=False, decay=0.75), nn.BatchNorm2d(2))
    run.G(torch.randn(4, 2, 5, 7) * 3 + 10)
    plugin.iteration_end(run)
    mean, variance = run.G.running_mean, run.G.running_var
    torch.testing.assert_close(plugin.average.running_mean, 0.25 * mean)
    torch.testing.assert_close(plugin.average.running_var, 0.75 + 0.25 * variance)
    assert plugin.average.num_batches_tracked.item() == 1


def test_the_generator_itself_is_left_alone():
    plugin, run = started(EMA(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in run.G.state_dict().items()}
    for iteration in range(3):
        run.iteration = iteration
        plugin.iteration_end(run)
    assert all(torch.equal(before[name], value) for name, value in run.G.state_dict().items())
    assert run.G.training and all(p.requires_grad for p in run.G.parameters())
    assert not plugin.average.training
    assert not any(p.requires_grad for p in plugin.average.parameters())


def test_the_average_is_what_is_evaluated():
    class Engine:
        @hookimpl(trylast=True)
        def evaluation_generator(self, generator):
            return generator

    plugin, run = started(EMA(), number(3.0))
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(Engine())
    manager.register(plugin)
    manager.check_pending()
    assert manager.hook.evaluation_generator(generator=run.G) is plugin.average


def test_a_restarted_average_continues_as_if_nothing_had_happened():
    def iterate(plugin, run, iterations):
        for run.iteration in iterations:
            run.G(torch.full((2, 3, 6, 6), float(run.iteration)))
            with torch.no_grad():
                run.G[0].weight.mul_(1.1)
            plugin.iteration_end(run)

    torch.manual_seed(0)
    plugin, run = started(EMA(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    iterate(plugin, run, range(3))
    saved = {"plugin": plugin.state_dict(), "G": run.G.state_dict()}
    saved = {key: torch.utils._pytree.tree_map(torch.clone, value) for key, value in saved.items()}
    iterate(plugin, run, range(3, 5))

    again, other = started(EMA(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    other.G.load_state_dict(saved["G"])
    again.load_state_dict(saved["plugin"])
    iterate(again, other, range(3, 5))
    expected = plugin.average.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in again.average.state_dict().items())


def test_the_state_of_another_network_is_refused():
    plugin, _ = started(EMA(), nn.Conv2d(3, 4, 3))
    other, _ = started(EMA(), nn.Conv2d(3, 4, 3, bias=False))
    with pytest.raises(RuntimeError, match="Missing key"):
        plugin.load_state_dict(other.state_dict())


def test_tensors_that_replace_others_are_averaged_from_then_on():
    G = nn.Sequential(nn.Linear(1, 1), nn.Identity())
    plugin, run = started(EMA(warmup=False, decay=0.5), G)
    plugin.iteration_end(run)
    run.G[0].weight = nn.Parameter(torch.full((1, 1), 8.0))
    before = plugin.average[0].weight.item()
    plugin.iteration_end(run)
    assert plugin.average[0].weight.item() == pytest.approx((before + 8) / 2)

    run.G[0].bias.data = torch.full((1,), 4.0)  # the same parameter, other memory
    before = plugin.average[0].bias.item()
    plugin.iteration_end(run)
    assert plugin.average[0].bias.item() == pytest.approx((before + 4) / 2)

    run.G[1] = nn.Linear(1, 1)  # which the average does not have
    with pytest.raises(ValueError, match="longer"):
        plugin.iteration_end(run)


def test_a_copy_of_the_plugin_averages_the_network_that_it_is_given():
    plugin, run = started(EMA(warmup=False, decay=0.5), number(2.0))
    plugin.iteration_end(run)
    again = copy.deepcopy(plugin)
    set_to(run.G, 6.0)
    again.iteration_end(run)
    assert again.average.weight.item() == 4.0
    assert plugin.average.weight.item() == 2.0
