"""Optimizer steps captured as CUDA graphs, and replayed."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from ganlab.plugin import Batch, Losses
from ganlab.run import Eager, Run, Update
from ganlab.shared_forward import Pass
from ganlab.speed.device import release_memory
from ganlab.speed.trial import TOLERANCE, InTheWayError, compared, tried

WARM_UPS = 3  # plain steps before a capture: they create what all later steps use again
MOST_GRAPHS = 16  # a recipe has 2 to 5 updates; more means a function that is made again each time
Answer = TypeVar("Answer")


class Recorder(Protocol):
    """Records the work of a function, so that it can be repeated without the function."""

    def running(self) -> AbstractContextManager[Any]: ...

    def watching(self) -> AbstractContextManager[Any]:
        """Context in which an operation that cannot be captured raises an error."""

    def record(
        self, function: Callable[[], Answer], generators: Sequence[torch.Generator]
    ) -> tuple[Answer, Callable[[], None]]:
        """What the function returned, and a function that computes its tensors again in place.

        When the function raises, everything recorded before can no longer be used.
        """


class CudaRecorder:
    """CUDA graphs, captured on a separate stream, all in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    @contextmanager
    def running(self) -> Iterator[None]:
        # all of training on this stream: a backward pass runs on the stream of its forward pass
        before = torch.cuda.current_stream(self._stream.device)
        benchmark = torch.backends.cudnn.benchmark
        # shapes are fixed; but which kernels are found to be the quickest differs from run to run
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)
            torch.backends.cudnn.benchmark = benchmark

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        _set_sync_debug_mode("error")
        try:
            yield
        finally:
            _set_sync_debug_mode(before)

    def record(
        self, function: Callable[[], Answer], generators: Sequence[torch.Generator]
    ) -> tuple[Answer, Callable[[], None]]:
        if not self._graphs:  # torch refuses a pool all of whose graphs are gone
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        try:
            # thread_local: another thread may be writing a checkpoint
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                answer = function()
        except Exception:
            self._clear_up(generators)
            raise
        self._graphs.add(graph)
        return answer, graph.replay

    def _clear_up(self, generators: Sequence[torch.Generator]) -> None:
        """Undo what torch does not clean up after a failed capture (torch 2.11 cleans nothing)."""
        device = self._stream.device
        with suppress(RuntimeError):  # when torch has done it itself
            torch._C._cuda_endAllocateToPool(device.index, self._pool)
            # else the memory of the failed capture would never be free again
            torch._C._cuda_releasePool(device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        for generator in (torch.cuda.default_generators[device.index], *generators):
            # else its state stays marked as being captured
            generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all runs of a process: cuBLAS keeps 32 MiB for each stream it has used."""
    return torch.cuda.Stream(device)


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)


class Key(NamedTuple):
    """What a captured update belongs to; everything in it stays the same from replay to replay."""

    update: Update
    batch: int
    passes: tuple[int, ...]
    """Ids of what the G step of the same iteration left."""
    observed: bool


@dataclass(eq=False, slots=True)
class Recorded:
    """A captured update, and the tensors that its replay fills."""

    replay: Callable[[], None]
    names: tuple[str, ...]
    values: Tensor
    passes: tuple[Pass, ...]
    captured: int
    """The iteration of the capture."""
    compared: int
    """The iteration in which it was last compared with the step as written."""


class Graphs(Eager):
    """Each update is captured with losses, backward and optimizer step, then replayed.

    A watched step is captured as a graph of its own, with what its observer computes. Batches are
    copied into memory that stays in place. Evaluations and event hooks are never captured.

    A graph is compared with the step as written, from the same state, when it is captured, once at
    a later iteration (a Python number that changes would be frozen in it), and at the first step
    in every `run.as_written_every` iterations. The step as written counts. When they differ, that
    step is not replayed any more.
    """

    replays = True
    keeps_graphs = True

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._batches: dict[tuple[torch.Size, torch.Size], Batch] = {}
        self._filled_from: Batch | None = None
        self._prepared: set[int] = set()
        self._calls: Counter[tuple[Update, bool]] = Counter()
        self._refused: set[tuple[Update, bool]] = set()
        self._recorded: dict[Key, Recorded] = {}
        self._given_up = False
        self._compares = True

    def running(self) -> AbstractContextManager[Any]:
        return self._recorder.running()

    def forget(self) -> None:
        self._recorded.clear()
        self._calls.clear()  # the optimizer makes the state of the new parameters in plain steps

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        fixed, step = self._in_place(batch), run.step
        captured = list(filter(self._was_captured, step.passes))
        if self._given_up or (update.role == "G" and self._sharing_ends(run)):
            return _plain(run, update, batch if step.as_written else fixed, captured)
        key = Key(update, id(fixed), _ids(step.passes), step.observer is not None)
        recorded = self._recorded.get(key)
        if self._compares and (step.as_written or _is_due(run, recorded)):
            return self._compared(run, key, batch if step.as_written else fixed, captured)
        if recorded:
            return _replayed(run, recorded)
        if step.as_written or (update, key.observed) in self._refused:
            return _plain(run, update, fixed, captured)
        return self._warmed_up_or_captured(run, key, fixed, captured)

    def _warmed_up_or_captured(
        self, run: Run, key: Key, batch: Batch, captured: list[Pass]
    ) -> Losses:
        """Take a step that is not captured yet; capture it when there were enough plain ones."""
        update, what = key.update, (key.update, key.observed)
        self._calls[what] += 1
        try:
            self._prepare(update.optimizer(run))
            warm = self._calls[what] > WARM_UPS
            theirs = len(captured) < len(run.step.passes)
            if warm and theirs and any(other.role == "G" for other, _ in self._refused):
                raise InTheWayError("it takes the images of G's step, which is not captured")
            if not warm or theirs:
                self.slow_steps += not warm
                return _plain(run, update, batch, captured)
            if len(self._recorded) == MOST_GRAPHS:
                raise InTheWayError(f"{MOST_GRAPHS} graphs are captured already")
            self.slow_steps += 1
            self._recorded[key], losses = self._record(run, update, batch)
            return losses
        except InTheWayError as error:
            reason = str(error)
        self._refused.add(what)
        step = f"{update.role}'s {'watched step' if key.observed else 'step'} is not"
        run.notes.append(
            f"{'no step is' if self._given_up else step} captured as a graph: {reason}"
        )
        release_memory(run.device)
        return _plain(run, update, batch, captured)

    def _compared(self, run: Run, key: Key, batch: Batch, captured: list[Pass]) -> Losses:
        """Take a step as written, and compare each graph of it with that."""
        update, passes = key.update, run.step.passes
        self.slow_steps += not run.step.as_written
        reads = {key.passes, *map(_ids, zip(*(p.recorded for p in passes), strict=True))}
        graphs = [
            recorded
            for other, recorded in self._recorded.items()
            if other.update == update and other.batch == key.batch and other.passes in reads
        ]
        if not graphs:
            self._calls[update, key.observed] += 1
            with suppress(InTheWayError):  # it is told when a step would be captured
                self._prepare(update.optimizer(run))
            return _plain(run, update, batch, captured)
        # A replay may overwrite what later captured graphs made: they share memory. So G's graphs
        # come in the order of capture, and D's, which read G's passes, in reverse.
        ways = [graph.replay for graph in (reversed(graphs) if passes else graphs)]
        try:
            losses, apart = compared(
                run, update, lambda: _plain(run, update, batch, captured), ways
            )
        except torch.OutOfMemoryError:
            self._compares = False
        if not self._compares:  # after the except block, which holds the memory of the step
            release_memory(run.device)
            run.notes.append(
                "captured steps are not compared with steps as written any more: too little memory"
            )
            return _replayed(run, graphs[0])  # the oldest: what it reads is whole
        planned = any(graph.compared < _last_planned(run) for graph in graphs)
        for graph in graphs:
            graph.compared = run.iteration
            for passed, same in zip(passes, graph.passes, strict=True):
                passed.recorded.append(same)
        if not apart <= TOLERANCE:
            self._drop(run, update, apart)
        # after a resume nothing is captured yet, so a distance of 0 would not always be told
        told = math.isfinite(apart) and (apart > 0 or not run.recipe.deterministic)
        figures = {f"replay/{update.role}": torch.tensor(apart, device=run.device)}
        return losses | figures if planned and told else losses

    def _drop(self, run: Run, update: Update, apart: float) -> None:
        """Replay an update no more, and no graph that reads its passes."""
        self._refused |= {(update, False), (update, True)}
        gone = {
            id(passed)
            for key, recorded in self._recorded.items()
            for passed in recorded.passes
            if key.update == update
        }
        self._recorded = {
            key: recorded
            for key, recorded in self._recorded.items()
            if key.update != update and gone.isdisjoint(key.passes)
        }
        run.notes.append(
            f"{update.role}'s step is not replayed as a graph any more: in iteration "
            f"{run.iteration + 1} the graph moved the weights differently, by {apart:.2g} of a "
            "step; perhaps a plugin computes with a Python number that changes"
        )

    def _was_captured(self, passed: Pass) -> bool:
        """Whether a pass of D was made by a graph, not by a step as written."""
        return any(passed in recorded.passes for recorded in self._recorded.values())

    def _sharing_ends(self, run: Run) -> bool:
        """Whether a captured pass of D has no captured D step; G's step is then captured anew."""
        used = {passed for key in self._recorded for passed in key.passes}
        left = [
            key
            for key, recorded in self._recorded.items()
            if any(passed.logits and id(passed) not in used for passed in recorded.passes)
        ]
        if left:
            run.share_forward = False
            run.notes.append(
                "D judges G's images again in its own step: that step is not captured with G's"
            )
        for key in left:
            del self._recorded[key]
        return bool(left)

    def _in_place(self, batch: Batch) -> Batch:
        """The same batch in memory that stays in place, from which graphs read."""
        shape = (batch.real.shape, batch.condition.shape)
        if shape not in self._batches:
            self._batches[shape] = Batch(batch.real.clone(), batch.condition.clone())
        fixed = self._batches[shape]
        if batch is not self._filled_from:  # both steps may have the same batch
            fixed.real.copy_(batch.real)
            fixed.condition.copy_(batch.condition)
            self._filled_from = batch
        return fixed

    def _prepare(self, optimizer: Optimizer) -> None:
        """Make the optimizer keep its step size and step counts on the device, for the replay."""
        if id(optimizer) in self._prepared:
            return
        for group in optimizer.param_groups:
            if "capturable" not in group:
                raise InTheWayError(f"{type(optimizer).__name__} has no capturable form")
            device = group["params"][0].device
            # the dtype in which the fused kernels read it
            dtype = torch.float32 if device.type == "cuda" else torch.float64
            group["lr"] = torch.tensor(float(group["lr"]), device=device, dtype=dtype)
            group["capturable"] = device.type == "cuda"
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = state["step"].to(device)
        self._prepared.add(id(optimizer))

    def _record(self, run: Run, update: Update, batch: Batch) -> tuple[Recorded, Losses]:
        def plain() -> Losses:
            with self._recorder.watching(), run.streams.host_draws_refused():
                return update(run, batch)

        def whole() -> tuple[tuple[str, ...], Tensor]:
            losses = update(run, batch)
            return tuple(losses), torch.stack([value.double() for value in losses.values()])

        found: list[Recorded] = []

        def captured() -> Losses:
            generators = run.streams.on_device()
            try:
                with run.streams.host_draws_refused():
                    (names, values), replay = self._recorder.record(whole, generators)
            except Exception:
                self._given_up = True
                self._recorded.clear()
                raise
            passes, now = tuple(run.step.passes), run.iteration
            found.append(Recorded(replay, names, values, passes, captured=now, compared=now))
            return _replayed(run, found[0])

        losses = tried(run, update, plain, captured)
        return found[0], losses


def _plain(run: Run, update: Update, batch: Batch, captured: list[Pass]) -> Losses:
    """Take a step as it is written; D judges again what it judged in a captured pass.

    Such a pass has one autograd graph, made at the capture. torch refuses to go backward through it
    once D's weights are others than at the capture.
    """
    run.step.passes[:] = [p.unjudged() if p in captured else p for p in run.step.passes]
    return update(run, batch)


def _ids(passes: Iterable[Pass]) -> tuple[int, ...]:
    return tuple(map(id, passes))


def _is_due(run: Run, recorded: Recorded | None) -> bool:
    """Whether a step is to be compared in this iteration."""
    if any(passed.recorded for passed in run.step.passes):
        return True  # the G step was, so its passes are in no graph
    if not recorded:
        return False
    repeated = recorded.compared > recorded.captured or run.iteration <= recorded.captured
    return not repeated or recorded.compared < _last_planned(run)


def _last_planned(run: Run) -> int:
    """The last iteration up to now, counted from 0, at which comparisons are planned."""
    every = run.as_written_every
    return (run.iteration + 1) // every * every - 1


def _replayed(run: Run, recorded: Recorded) -> Losses:
    recorded.replay()
    run.step.passes[:] = recorded.passes
    # a copy, because the next replay overwrites them
    return dict(zip(recorded.names, recorded.values.clone().unbind(), strict=True))
