"""Whether all that a run keeps is finite, and the policy `on_nonfinite = "skip"`."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ganlab.errors import Diverged
from ganlab.guard import are_finite
from ganlab.plugin import Losses
from ganlab.run import Run
from ganlab.speed.trial import Snapshot


def unsound_part(run: Run) -> str:
    """The first part of a checkpoint that holds a number that is not finite; "" when none does.

    A checkpoint holds the networks with their buffers, the optimizers, and what plugins keep.
    """
    for name, network in networks_of(run).items():
        if not weights_are_finite(network):
            return f"the weights of {name} are"
    for name, optimizer in run.optimizers.items():
        if not _all_finite(tree_leaves(optimizer.state_dict())):
            return f"the numbers of {name}'s optimizer are"
    for name, plugin in run.recipe.plugins.items():
        kept: Any = plugin
        if hasattr(plugin, "state_dict") and not _all_finite(tree_leaves(kept.state_dict())):
            return f"the numbers that {name} keeps are"
    return ""


def networks_of(run: Run) -> dict[str, nn.Module]:
    """The networks whose weights are kept: G, D, and the evaluated generator if it is another."""
    evaluated = run.hook.evaluation_generator(generator=run.G)
    return run.networks | ({} if evaluated is run.G else {"the evaluated generator": evaluated})


def weights_are_finite(network: nn.Module) -> bool:
    """Whether all weights and buffers of a network are finite. Waits for the device."""
    return are_finite([*network.parameters(), *network.buffers()])


def taken(run: Run, role: str, step: Callable[[], Losses]) -> Losses | None:
    """Take a step; None when it was skipped, by the recipe's `on_nonfinite = "skip"`.

    A skipped step has changed nothing: weights, buffers, optimizers and what plugins keep are as
    before. It is in `run.skips`. Other devices than a CPU are waited for, once a step.

    :raises Diverged: when too many steps in a row would be skipped, and under the other policies.
    """
    if run.recipe.on_nonfinite != "skip":
        return step()
    progress, before = run.progress, Snapshot(run)
    began = progress.game_began
    try:
        losses = step()
        _require_sound(run)
    except Diverged as fault:
        noticed = fault
    else:
        progress.skipped_in_a_row[role] = 0
        return losses
    before.restore()
    progress.game_began = began
    row = progress.skipped_in_a_row.get(role, 0)
    if row >= run.recipe.most_nonfinite:
        what = f"{noticed.what}; the {row} steps of {role} before it were skipped (most_nonfinite)"
        raise Diverged(noticed.iteration, what, noticed.step)
    progress.skipped_in_a_row[role] = row + 1
    progress.skipped[role] = progress.skipped.get(role, 0) + 1
    run.skips.append(noticed)
    return None


def _require_sound(run: Run) -> None:
    """:raises Diverged: when a flag of the steps so far is set, or a number is not finite now."""
    flags, run.flags = run.flags, {}
    if flags and bool(torch.stack(list(flags.values())).any()):
        raise Diverged(run.iteration + 1, "a loss or a gradient is not finite", run.step.name)
    if part := unsound_part(run):
        raise Diverged(run.iteration + 1, f"{part} not finite after the step", run.step.name)


def _all_finite(leaves: Iterable[Any]) -> bool:
    found = list(leaves)
    numbers = (leaf for leaf in found if isinstance(leaf, float))
    return all(map(math.isfinite, numbers)) and are_finite(
        leaf for leaf in found if isinstance(leaf, Tensor)
    )
