"""Whether an iteration gives the same numbers again, and which call is the first that does not."""

from typing import Any

import torch

from ganlab.checking.chains import Call
from ganlab.checking.rehearsal import same
from ganlab.errors import RecipeError
from ganlab.monitoring.calls import tensors
from ganlab.run import Run

ROUNDING = 1e-2  # of the largest value, between two orders of summation on an accelerator


def require_the_same(run: Run, first: list[Call], second: list[Call], drawn: bool) -> None:
    """Refuse an iteration that gave other numbers when it was taken again from the same state.

    The culprit is the first call whose answer differs, though all that it was given is equal. On a
    CPU numbers are equal to the bit; other devices may round in another order.

    :param first, second: the calls of both iterations.
    :param drawn: whether the difference comes from random draws, not from a state that is kept.
    :raises RecipeError: naming the plugin.
    """
    for one, other in zip(first, second, strict=False):
        if (one.hook, one.plugin) != (other.hook, other.plugin):
            raise RecipeError(
                f"{run.recipe.file}: taken again from the same state, an iteration calls "
                f"{other.hook} of {other.plugin}, not {one.hook} of {one.plugin}"
            )
        exact = run.device.type == "cpu"
        equal_inputs = all(
            _alike(a, b, exact)
            for a, b in ((one.arguments, other.arguments), (one.received, other.received))
        )
        moved = exact and one.weights != other.weights
        if equal_inputs and (moved or not _alike(one.answer, other.answer, exact)):
            raise _unrepeated(run, one, drawn)
        if not equal_inputs:
            raise RecipeError(
                f"{run.recipe.file}: taken again from the same state, an iteration gives "
                f"{one.hook} of {one.plugin} other tensors, though all plugins before it answered "
                "the same: G or D draws random numbers or keeps a state that is not in its buffers"
            )


def _unrepeated(run: Run, call: Call, drawn: bool) -> RecipeError:
    if drawn:
        fault = "gives other numbers when the same iteration is taken again"
        remedy = (
            "draw from self.rng or self.host_rng, which give the same numbers at the same moment"
        )
    else:
        fault = "gives other numbers in a resumed run, or on a second call"
        remedy = (
            "it keeps a state that no checkpoint holds; return it from state_dict and restore it "
            "in load_state_dict"
        )
    plugin = run.recipe.plugins.get(call.plugin)
    if plugin:
        return plugin.error(f"its {call.hook} {fault}: {remedy}")
    return RecipeError(f"{run.recipe.file}: the engine's {call.hook} {fault}: {remedy}")


def differ(first: list[Call], second: list[Call]) -> bool:
    """Whether two iterations from the same state were different anywhere."""
    exact = all(t.device.type == "cpu" for call in first for t in tensors(call.answer))
    return len(first) != len(second) or any(
        one.hook != other.hook
        or not _alike(one.answer, other.answer, exact)
        or (exact and one.weights != other.weights)
        for one, other in zip(first, second, strict=True)
    )


def _alike(one: Any, other: Any, exact: bool) -> bool:
    a, b = tensors(one), tensors(other)
    if exact or len(a) != len(b):
        return same(a, b)
    return all(
        x.shape == y.shape
        and torch.allclose(
            x, y, rtol=ROUNDING, atol=ROUNDING * float(x.abs().max()), equal_nan=True
        )
        for x, y in zip(a, b, strict=True)
        if x.numel()
    )
