"""Learning rates follow their closed forms, for both networks, and across a restart."""

import json
from types import SimpleNamespace

import pytest
import torch
from ganlab_plugins.learning_rate_schedule import LearningRateSchedule
from pydantic import ValidationError
from torch import nn


def make(**options):
    return LearningRateSchedule.model_validate_json(json.dumps(options))


def optimizer(learning_rate=1e-3):
    return torch.optim.Adam(nn.Linear(1, 1).parameters(), learning_rate)


def rates(run, plugin, iterations):
    result = []
    for run.iteration in iterations:
        plugin.iteration_start(run)
        result.append(run.G_optimizer.param_groups[0]["lr"])
    return result


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "linear", "over": 100}, {0: 1.0, 25: 0.75, 99: 0.01, 100: 0.0, 500: 0.0}),
        ({"kind": "linear", "over": 100, "after": 50, "end": 0.1}, {50: 1.0, 100: 0.55, 150: 0.1}),
        ({"kind": "cosine", "over": 90}, {0: 1.0, 30: 0.75, 45: 0.5, 60: 0.25, 90: 0.0}),
        ({"kind": "cosine", "over": 90, "end": 0.2}, {0: 1.0, 45: 0.6, 90: 0.2, 91: 0.2}),
        ({"kind": "step", "milestones": [5, 8]}, {4: 1.0, 5: 0.5, 7: 0.5, 8: 0.25, 99: 0.25}),
        ({"kind": "step", "milestones": [5], "factor": 0.1}, {4: 1.0, 5: 0.1}),
        (
            {"kind": "step", "milestones": [5, 8], "factors": [0.1, 5.0]},
            {4: 1.0, 5: 0.1, 7: 0.1, 8: 0.5, 99: 0.5},
        ),
        (
            {"kind": "cosine", "over": 90, "after": 10, "end": 0.2, "cycles": 2},
            {9: 1.0, 55: 0.6, 100: 1.0, 145: 0.6, 190: 0.2, 500: 0.2},
        ),
        ({"kind": "constant", "warmup": 4}, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 99: 1.0}),
        ({"kind": "linear", "over": 8, "warmup": 2}, {0: 0.5, 1: 7 / 8, 4: 0.5}),
    ],
)
def test_the_factor_has_its_closed_form(options, expected):
    plugin = make(**options)
    assert {i: plugin.factor_at(i) for i in expected} == pytest.approx(expected, abs=1e-12)


def test_both_networks_keep_the_ratio_of_their_rates():
    run = SimpleNamespace(G_optimizer=optimizer(1e-4), D_optimizer=optimizer(4e-4), iteration=0)
    plugin = make(kind="linear", over=10)
    plugin.run_start(run)
    run.iteration = 5
    plugin.iteration_start(run)
    assert run.G_optimizer.param_groups[0]["lr"] == pytest.approx(5e-5)
    assert run.D_optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)


def test_a_recipe_without_a_discriminator_is_scheduled_too():
    run = SimpleNamespace(G_optimizer=optimizer(), D_optimizer=None, iteration=0)
    plugin = make(kind="step", milestones=[1])
    plugin.run_start(run)
    assert rates(run, plugin, range(3)) == pytest.approx([1e-3, 5e-4, 5e-4])


@pytest.mark.parametrize("loaded_first", [False, True])
def test_a_resumed_run_continues_where_it_was(loaded_first):
    plugin = make(kind="cosine", over=10, warmup=2)
    run = SimpleNamespace(G_optimizer=optimizer(), D_optimizer=None, iteration=0)
    plugin.run_start(run)
    whole = rates(run, plugin, range(8))
    saved = run.G_optimizer.state_dict()

    again = SimpleNamespace(G_optimizer=optimizer(), D_optimizer=None, iteration=0)
    # in either order a decayed rate must not become the base rate
    if loaded_first:
        again.G_optimizer.load_state_dict(saved)
        plugin.run_start(again)
    else:
        plugin.run_start(again)
        again.G_optimizer.load_state_dict(saved)
    assert rates(again, plugin, range(4, 8)) == whole[4:]


def test_a_rate_that_a_captured_graph_reads_is_changed_in_place():
    rate = torch.tensor(1e-3, dtype=torch.float64)
    G_optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), rate, foreach=False)
    run = SimpleNamespace(G_optimizer=G_optimizer, D_optimizer=None, iteration=0)
    plugin = make(kind="linear", over=10)
    plugin.run_start(run)
    assert rates(run, plugin, [0, 5])[-1] is rate
    assert rate.item() == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kind": "cosine"}, "kind = 'cosine' needs over"),
        ({"kind": "step"}, "kind = 'step' needs milestones"),
        ({"kind": "constant"}, "kind = 'constant' needs warmup"),
        ({"kind": "cosine", "over": 9, "milestones": [5]}, "does not read milestones; leave it"),
        ({"kind": "step", "milestones": [5], "over": 9}, "does not read over"),
        ({"kind": "constant", "warmup": 9, "after": 3}, "does not read after"),
        ({"kind": "step", "milestones": [8, 5]}, "milestones must rise"),
        ({"kind": "step", "milestones": [5], "factors": [1.0, 2.0]}, "one factor for each"),
        ({"kind": "step", "milestones": [5], "factors": [1.0], "factor": 0.1}, "leave one out"),
        ({"kind": "linear", "over": 5, "cycles": 2}, "does not read cycles"),
    ],
)
def test_an_option_without_effect_is_refused_with_a_remedy(options, fault):
    with pytest.raises(ValidationError, match=fault):
        make(**options)
