"""Finds plugins without effect: an iteration with and without each of them, from the same state."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ganlab import hookspecs
from ganlab.iteration import iterate
from ganlab.monitoring.calls import Watch, watching
from ganlab.plugin import Losses, Plugin, implements
from ganlab.recipe.model import Recipe
from ganlab.requirements import REQUIRED
from ganlab.run import Eager, Run
from ganlab.speed.trial import Snapshot

_MOST = 12  # iterations that are tried for a plugin without effect at both ends
_WATCHES = {"evaluate", "score_images", "verdicts", "run_end"}
_EVENTS = {"iteration_start", "iteration_end"}
# counters that are divisible by every number up to 16; and one less, for code that adds 1 first
_LATE = (720_720_000, 720_719_999)

Outcome = dict[str, Tensor]
"""What an iteration made: logged values, weights, buffers, states of optimizers."""


class Beginning:
    """The state of a new run before its first step; it can be restored again and again."""

    def __init__(self, run: Run) -> None:
        self._run, self._snapshot = run, Snapshot(run)
        self._progress = copy.deepcopy(run.progress)
        self._groups = [
            (group, {k: _copied(v) for k, v in group.items() if k != "params"})
            for optimizer in run.optimizers.values()
            for group in optimizer.param_groups
        ]
        self._private = {
            name: _copied(plugin.__pydantic_private__)
            for name, plugin in run.recipe.plugins.items()
            if not hasattr(plugin, "state_dict")
        }

    def restore(self) -> None:
        self._snapshot.restore()
        self._run.progress = copy.deepcopy(self._progress)
        for group, saved in self._groups:
            group.update(_copied(saved))
        for name, saved in self._private.items():
            self._run.recipe.plugins[name].__pydantic_private__ = _copied(saved)


def plugins_without_effect(
    run: Run, beginning: Beginning, plugins: Iterable[Plugin]
) -> Iterator[str]:
    """A sentence for each plugin that changes nothing in a step.

    The first and the last iteration of the recipe are run with and without each plugin, from the
    same weights and with the same random numbers. Where logged values, weights, the averaged
    generator and the optimizers' states are the same, iterations between the two are tried: those
    that the options of the recipe name, and those half way between them. Last, the plugin is tried
    as it might be late in a run: with other values in its state, and with every event happening
    that it draws by `torch.rand() < p`.

    Data, networks, optimizers and figures of an evaluation are not looked at.

    :param beginning: of this run. At the end, the run is in that state.
    :param plugins: those to try.
    """
    trial = _Trial(run, beginning)
    execution, run.execution = run.execution, Eager()
    idle = [plugin for plugin in plugins if not plugin.observes]
    tried: list[int] = []
    try:
        ends = sorted({0, run.recipe.iterations - 1}, reverse=True)
        for iteration in [*ends, *_between(run.recipe)]:
            if not idle:
                break
            idle = trial.without_effect(idle, iteration)
            tried.append(iteration)
        idle = [plugin for plugin in idle if trial.seen[plugin] and not trial.may_act(plugin)]
    finally:
        run.execution = execution
        beginning.restore()
    numbers = ", ".join(f"{number:,}" for number in sorted(tried))
    for plugin in idle:
        yield (
            f"{_subject(plugin, trial.seen[plugin])} has no effect: without it, iterations "
            f"{numbers} give the same losses and the same weights"
        )


class _Trial:
    """Iterations of a run with and without a plugin."""

    def __init__(self, run: Run, beginning: Beginning) -> None:
        self._run, self._beginning = run, beginning
        self.seen: dict[Plugin, set[str]] = {p: set() for p in run.recipe.plugins.values()}
        """The hooks of each plugin that were called, and can be left out."""

    def without_effect(self, plugins: Iterable[Plugin], iteration: int) -> list[Plugin]:
        """Those of the plugins that change nothing in this iteration."""
        with watching(self._run.manager, self._note):
            whole = _kept(self._outcome(iteration))
        chance = self._chance(iteration, whole)
        return [
            plugin
            for plugin in plugins
            if not self.seen[plugin] or self._apart(plugin, iteration, whole) <= chance
        ]

    def may_act(self, plugin: Plugin) -> bool:
        """Whether a plugin acts in the last iteration after all, when its state is another one."""
        iteration = self._run.recipe.iterations - 1
        with _left_out(self._run, plugin, self.seen[plugin]):
            without = _kept(self._outcome(iteration))
            chance = self._chance(iteration, without)
        streams = [plugin.rng, plugin.host_rng]
        for late, turned in product(_LATE, (False, True)):
            with _Happens([stream for stream in streams if stream]):
                try:
                    stirred = self._outcome(iteration, plugin, partial(_late, late, turned))
                except Exception:  # its code need not bear such a state
                    return True
            if _distance(without, stirred) > chance:
                return True
        return False

    def _chance(self, iteration: int, outcome: Outcome) -> float:
        """How much a repetition changes: on a CPU nothing, to the bit."""
        if self._run.device.type == "cpu":
            return 0.0
        return _distance(outcome, self._outcome(iteration))

    def _apart(self, plugin: Plugin, iteration: int, whole: Outcome) -> float:
        """How much changes without a plugin; infinite when the others cannot do without it."""
        with _left_out(self._run, plugin, self.seen[plugin]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as torch's, of shapes that differ
            try:
                return _distance(whole, self._outcome(iteration))
            except Exception:  # what the code of other plugins raises has no common base
                return math.inf

    def _outcome(
        self,
        iteration: int,
        changed: Plugin | None = None,
        change: Callable[[Any], Any] | None = None,
    ) -> Outcome:
        """Run one iteration from the beginning; the tensors are those of the run itself.

        :param changed: a plugin whose private attributes are changed before.
        """
        run = self._run
        self._beginning.restore()
        run.iteration = iteration
        private = changed.__pydantic_private__ if changed else None
        try:
            if changed and change:
                changed.__pydantic_private__ = change(private)
            logged = iterate(run, _unwatched)
            average = run.hook.evaluation_generator(generator=run.G)
        finally:
            if changed:
                changed.__pydantic_private__ = private
        parts: dict[str, Any] = {"logged": logged, "G": run.G, "D": run.D, "average": average}
        parts |= {"G_optimizer": run.G_optimizer, "D_optimizer": run.D_optimizer}
        return {
            name: tensor
            for part, value in parts.items()
            for name, tensor in _tensors(
                value.state_dict() if hasattr(value, "state_dict") else value, part
            )
        }

    def _note(self, hook: str, plugin: str, wraps: bool) -> Watch:
        found = self._run.recipe.plugins.get(plugin)
        if found and (wraps or hook not in REQUIRED):
            looks_on = hook in _EVENTS and any(implements(found, other) for other in _WATCHES)
            self.seen[found] |= set() if looks_on else {hook}
        return Watch()


class _Happens(TorchFunctionMode):
    """Context in which `torch.rand` with one of these streams gives 0, so that `u < p` is true."""

    def __init__(self, streams: list[torch.Generator]) -> None:
        super().__init__()
        self._streams = streams

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        drawn = (kwargs or {}).get("generator")
        mine = function is torch.rand and any(drawn is stream for stream in self._streams)
        return made.zero_() if mine else made


@contextmanager
def _left_out(run: Run, plugin: Plugin, hooks: Iterable[str]) -> Iterator[None]:
    """Context in which hooks of a plugin do nothing: a wrapper passes on what it receives."""
    implementations = [
        implementation
        for hook in hooks
        for implementation in getattr(run.hook, hook).get_hookimpls()
        if implementation.plugin is plugin and (implementation.wrapper or hook not in REQUIRED)
    ]
    functions = [implementation.function for implementation in implementations]
    for implementation in implementations:
        implementation.function = _passed if implementation.wrapper else _silent
    try:
        yield
    finally:
        for implementation, function in zip(implementations, functions, strict=True):
            implementation.function = function


def _silent(*arguments: object) -> None:
    """A hook implementation that answers nothing."""


def _passed(*arguments: object) -> Any:
    """A wrapper that returns what it receives."""
    return (yield)


@contextmanager
def _unwatched(role: str, module: nn.Module, losses: Losses) -> Iterator[Losses]:
    """The observer of steps: it sees nothing, so an iteration logs the same as any other."""
    yield {}


def _between(recipe: Recipe) -> list[int]:
    """Iterations at which something may begin or end, and those half way between them."""
    last = recipe.iterations - 1
    named: set[int] = set()
    for plugin in recipe.plugins.values():
        for schedule in plugin.schedules():
            named |= {schedule.after, schedule.after + schedule.over // 2}
            named |= {schedule.after + schedule.over}
    options = tree_leaves([dict(plugin) for plugin in recipe.plugins.values()])
    counts = {option for option in options if type(option) is int}
    # the largest first: an interval or a beginning rather than a width
    several = [*sorted(named), *sorted(counts | {n - 1 for n in counts}, reverse=True)]
    inside = list(dict.fromkeys(n for n in several if 0 < n < last))[: _MOST // 2]
    ends = [0, *sorted(inside), last]
    middles = [(a + b) // 2 for a, b in pairwise(ends)]
    return [n for n in dict.fromkeys([*inside, *middles]) if 0 < n < last][:_MOST]


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """Every number in nested dicts, lists and tuples, by its place."""
    if isinstance(value, Tensor):
        yield place, value.detach()
    elif isinstance(value, int | float):
        yield place, torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        yield from _tensors(dict(enumerate(value)), place)


def _kept(outcome: Outcome) -> Outcome:
    return {name: tensor.clone() for name, tensor in outcome.items()}


def _distance(one: Outcome, other: Outcome) -> float:
    """Sum of squared differences; 0 only when nothing differs. A value not logged counts as 0."""
    nothing = torch.zeros(())
    total = 0.0
    for name in one.keys() | other.keys():
        a, b = one.get(name, nothing), other.get(name, nothing)
        if a.shape != b.shape:
            return math.inf
        a, b = a.to(b.device), b.to(a.dtype)
        if not torch.equal(a, b):
            apart = (a.double() - b.double()).square()
            both_nan = a.isnan() & b.isnan()
            total += torch.where(both_nan, 0.0, apart).sum().item()
    return math.inf if math.isnan(total) else total


def _copied(value: Any) -> Any:
    """A copy of tensors, numbers, lists and dicts; other objects are kept as they are."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _late(counter: int, turned: bool, value: Any) -> Any:
    """A state as it might be late in a run: counters are high, other numbers differ.

    :param turned: whether every switch, which is true or false, is turned too.
    """

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, bool):
            return leaf is not turned
        if isinstance(leaf, int):
            return counter
        if isinstance(leaf, float):
            return 0.5 if math.isnan(leaf) else leaf + 0.5
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.where(leaf.isnan(), 0.5, leaf + 0.5)
        if isinstance(leaf, Tensor) and leaf.dtype is not torch.bool:
            return torch.full_like(leaf, counter)
        return leaf ^ turned if isinstance(leaf, Tensor) else leaf

    return tree_map(moved, value)


def _subject(plugin: Plugin, left_out: set[str]) -> str:
    """The plugin, or those of its hooks that were left out when it has others too."""
    acting = [hook for hook in vars(hookspecs) if implements(plugin, hook) and hook != "run_start"]
    if left_out >= set(acting):
        return plugin.name
    return f"{plugin.name}, in {' and '.join(sorted(left_out))},"
