"""One iteration: the steps of D and G, each on its batch, and the watching of some of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from time import perf_counter

import torch
from pluggy import HookCaller
from torch import Tensor

from ganlab.guard import FLAG
from ganlab.monitoring.attribution import attributed
from ganlab.monitoring.invariants import REMEDY, step_watched
from ganlab.plugin import Batch, Losses
from ganlab.run import Observer, Run, StepState
from ganlab.soundness import taken
from ganlab.speed.device import widest_float


def iterate(run: Run, observer: Observer | None = None) -> dict[str, Tensor]:
    """Run one iteration: the D steps, then the G steps, each on a batch of its own.

    With `first = "generator"` it is one G step, then one D step, on the same batch.

    :param observer: observes the first step of each network. By default it is `attributed` in a
        watched iteration, and there is none in the others.
    :returns: every logged value: its mean over the steps that logged it, on the device.
    """
    recipe, hook = run.recipe, run.hook
    run.flags, run.skips, run.batches = {}, [], []
    run.streams.moment(*moment(run))
    for plugin in recipe.plugins.values():
        plugin.advance(run.iteration)
    hook.iteration_start(run=run)
    if watched := _is_watched(run):
        observer = observer or attributed
    as_written = observer is not None and _is_as_written(run, observer)
    if observer is attributed:
        observer = partial(attributed, average=run.world.average)
    several: dict[str, list[Tensor]] = {}
    players = [
        ("D", recipe.d_steps, hook.discriminator_step),
        ("G", recipe.g_steps, hook.generator_step),
    ]
    skipped: Counter[str] = Counter()
    for role, count, take_step in reversed(players) if recipe.first == "generator" else players:
        for index in range(count):
            run.streams.moment(*moment(run, role, index))
            run.step.name = f"step {index + 1} of {role}"
            # the first step is enough: watching costs one backward pass for each loss
            run.step.observer = observer if index == 0 else None
            run.step.as_written = index == 0 and as_written
            run.step.share_forward = run.share_forward and run.step.observer is None
            looks = watched and run.step.as_written
            losses = taken(run, role, partial(_step, run, role, take_step, looks))
            if losses is None:
                skipped[role] += 1
            for name, value in (losses or {}).items():
                several.setdefault(name, []).append(value)
    run.step = StepState()
    # a lazy penalty is not computed in every step
    exact = widest_float(run.device)
    losses = {
        n: v[0] if len(v) == 1 else torch.stack(v).to(exact).mean() for n, v in several.items()
    }
    hook.iteration_end(run=run, losses=losses)
    counts = {f"{FLAG}/{role}": float(count) for role, count in skipped.items()}
    return losses | {name: torch.tensor(n, device=run.device) for name, n in counts.items()}


def moment(run: Run, *step: str | int) -> tuple[object, ...]:
    """The moment of an iteration, or of a step in it, at which random streams are set.

    A run that went back to a checkpoint draws other numbers from there on: else it would fail
    again.
    """
    times = run.progress.rolled_back
    return (run.iteration, *step, *(("rolled back", times) if times else ()))


def _step(run: Run, role: str, take: HookCaller, looks: bool) -> Losses:
    """Take one step on a new batch; with `first = "generator"` both steps have one batch.

    :param looks: whether the step's invariants are watched.
    """
    if not (run.batches and run.recipe.first == "generator"):
        began = perf_counter()
        run.batches.append(run.given.pop(0) if run.given else sample(run))
        run.sampling_seconds += perf_counter() - began
    batch = run.batches[-1]
    unit = len(batch.real) // run.recipe.accumulate
    with _invariants(run, role, batch) if looks else nullcontext(), run.world.as_one(1, unit):
        losses: Losses = take(run=run, batch=batch)
    return losses


def sample(run: Run) -> Batch:
    """The batch of a step; of several processes each has its rows of it."""
    world, size, parts = run.world, run.recipe.batch_size, run.recipe.accumulate
    mine = world.share_of(size)
    if run.samples_whole and world.size > 1:
        whole = run.hook.sample_batch(batch_size=size, device=run.device)
        return Batch(world.rows(whole.real, parts), world.rows(whole.condition, parts))
    with world.as_one(parts, mine // parts):
        batch: Batch = run.hook.sample_batch(batch_size=mine, device=run.device)
    return batch


def _is_watched(run: Run) -> bool:
    """Whether to watch this iteration: at the recipe's interval, and early, for comparison."""
    every = run.recipe.watch_every
    return every > 0 and (_is_early(run) or (run.iteration + 1) % every == 0)


def _is_early(run: Run) -> bool:
    began = run.progress.game_began
    return began is not None and run.iteration - began in (1, 2, 4, 8, 16)


def _is_as_written(run: Run, observer: Observer) -> bool:
    """Whether an observed step runs as written even when it has been captured as a graph.

    Only such a step shows what plugins do in Python. Of the watched steps, which are captured too,
    it is the early ones, and one in `AS_WRITTEN_EVERY`.
    """
    if observer is not attributed or not run.execution.replays:
        return True
    planned = (run.iteration + 1) % run.as_written_every == 0
    return _is_watched(run) and (_is_early(run) or planned)


@contextmanager
def _invariants(run: Run, role: str, batch: Batch) -> Iterator[None]:
    """Context of a watched step; a broken invariant becomes a note, once in a sitting."""
    extra = sum(plugin.extra_steps for plugin in run.recipe.plugins.values())
    with step_watched(role, run.networks, run.optimizers, batch, 1 + extra) as broken:
        yield
    for sentence in broken:
        if not any(note.startswith(f"warning: {sentence}") for note in run.notes):
            number = run.iteration + 1
            run.notes.append(f"warning: {sentence}, seen in iteration {number}; {REMEDY}")
