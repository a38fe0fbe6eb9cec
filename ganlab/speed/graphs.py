"""Optimizer steps captured as CUDA graphs, and replayed."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ganlab.plugin import Batch, Losses
from ganlab.run import Eager, Run, Update
from ganlab.shared_forward import Pass
from ganlab.speed.trial import InTheWayError, free_memory, tried
from ganlab.steps import pass_of

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
        return answer, graph.replay

    def _clear_up(self, generators: Sequence[torch.Generator]) -> None:
        """Undo what torch does not clean up after a failed capture (torch 2.11 cleans nothing)."""
        device = self._stream.device
        with suppress(RuntimeError):  # when torch has done it itself
            torch._C._cuda_endAllocateToPool(device.index, self._pool)
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


@dataclass(frozen=True, slots=True)
class Recorded:
    """A captured update, and the tensors that its replay fills."""

    replay: Callable[[], None]
    names: tuple[str, ...]
    values: Tensor
    passes: tuple[Pass, ...]


class Graphs(Eager):
    """Each update is captured once, with losses, backward and optimizer step, then replayed.

    Batches are copied into memory that stays in place. Watched steps, evaluations and all event
    hooks are never captured.
    """

    keeps_graphs = True

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._batches: dict[tuple[torch.Size, torch.Size], Batch] = {}
        self._filled_from: Batch | None = None
        self._prepared: set[int] = set()
        self._calls: Counter[Update] = Counter()
        self._refused: set[Update] = set()
        self._recorded: dict[tuple[Update, int, int], Recorded] = {}
        self._given_up = False

    def running(self) -> AbstractContextManager[Any]:
        return self._recorder.running()

    def forget(self) -> None:
        self._recorded.clear()
        self._calls.clear()  # the optimizer makes the state of the new parameters in plain steps

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        batch = self._in_place(batch)
        ours = list(filter(self._is_ours, run.step.passes))
        if self._given_up or (update.role == "G" and self._sharing_ends(run)):
            return _plain(run, update, batch, ours)
        passed = pass_of(run, batch)
        key = (update, id(batch), id(passed))
        if recorded := self._recorded.get(key):
            return _replayed(run, recorded)
        if update in self._refused:
            return _plain(run, update, batch, ours)
        self._calls[update] += 1
        try:
            self._prepare(update.optimizer(run))
            warm = self._calls[update] > WARM_UPS
            if not warm or len(ours) < len(run.step.passes):
                self.slow_steps += not warm
                return _plain(run, update, batch, ours)
            if len(self._recorded) == MOST_GRAPHS:
                raise InTheWayError(f"{MOST_GRAPHS} graphs are captured already")
            self.slow_steps += 1
            self._recorded[key], losses = self._record(run, update, batch)
            return losses
        except InTheWayError as error:
            reason = str(error)
        self._refused.add(update)
        what = "no step is" if self._given_up else f"{update.role}'s step is not"
        run.notes.append(f"{what} captured as a graph: {reason}")
        free_memory(run.device)
        return _plain(run, update, batch, ours)

    def _is_ours(self, passed: Pass) -> bool:
        return any(passed in recorded.passes for recorded in self._recorded.values())

    def _sharing_ends(self, run: Run) -> bool:
        """Whether a captured pass of D has no captured D step; G's step is then captured anew."""
        used = {passed for _, _, passed in self._recorded}
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
        shape = (batch.real.shape, batch.condition.shape)
        if shape not in self._batches:
            self._batches[shape] = Batch(batch.real.clone(), batch.condition.clone())
        mine = self._batches[shape]
        if batch is not self._filled_from:  # both steps may have the same batch
            mine.real.copy_(batch.real)
            mine.condition.copy_(batch.condition)
            self._filled_from = batch
        return mine

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
            found.append(Recorded(replay, names, values, tuple(run.step.passes)))
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


def _replayed(run: Run, recorded: Recorded) -> Losses:
    recorded.replay()
    run.step.passes[:] = recorded.passes
    # a copy, because the next replay overwrites them
    return dict(zip(recorded.names, recorded.values.clone().unbind(), strict=True))
