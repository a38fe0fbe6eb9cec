"""How updates are carried out: as they are, with compiled networks, or replayed as CUDA graphs.

What is quicker is tried once for each update, beside the update as it is, from the same state and
with the same random numbers; it is used from then on if both move the weights alike. What cannot be
made quicker runs as it is, and one line says what is in the way.
"""

import copy
import linecache
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganlab.speed.descent import Update
from ganlab.plugin import Batch, Plugin
from ganlab.steps import Losses, Pass

if TYPE_CHECKING:
    from ganlab.engine import Run

WARM_UPS = 3  # updates as they are before one is captured: by then all that is made once is there
TOLERANCE = 0.02  # of the length of a step: bfloat16 and other kernels stay well below
MOST_GRAPHS = 16  # a recipe has two to five updates; more come of a function made anew each time
Answer = TypeVar("Answer")


class InTheWayError(Exception):
    """Why an update cannot be made quicker."""


class Eager:
    """Every update as it is."""

    keeps_graphs = False
    """Whether backward leaves the graph of a shared pass in place."""

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """What to call for the network's answer in a step."""
        return module

    def running(self) -> AbstractContextManager[Any]:
        """Entered around training."""
        return nullcontext()

    def __call__(self, run: "Run", update: Update, batch: Batch) -> Losses:
        return update(run, batch)


class Compiled(Eager):
    """Networks compiled by torch.compile; losses, penalties and optimizers as they are.

    A penalty that differentiates D twice asks the network itself, which torch cannot compile for
    that; so does a step in which a plugin listens at the network's layers.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._compiled: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        self._active = False
        self._refused: set[Update] = set()
        self._tried: set[Update] = set()

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        if not self._active or any(part._forward_hooks for part in module.modules()):
            return module
        if module not in self._compiled:
            self._compiled[module] = torch.compile(module, backend=self._backend, dynamic=False)
        return self._compiled[module]

    @contextmanager
    def running(self) -> Iterator[None]:
        import torch._dynamo.config as dynamo  # seconds to import, and only needed here
        import torch._functorch.config as functorch

        with (
            # for each way a network is called: frozen or not, with gradient or without
            dynamo.patch(recompile_limit=64),
            # or the backward pass would write over what D's step is to go through again
            functorch.patch(donated_buffer=False),
        ):
            yield

    def __call__(self, run: "Run", update: Update, batch: Batch) -> Losses:
        if update in self._refused:
            return update(run, batch)
        if update in self._tried:
            return self._quick(run, update, batch)
        self._tried.add(update)
        self.keeps_graphs = True  # a shared pass of D is gone through twice
        try:
            return tried(
                run, update, lambda: update(run, batch), lambda: self._quick(run, update, batch)
            )
        except InTheWayError as reason:
            self._refused.add(update)
            run.say(f"the networks run uncompiled in {update.role}'s step: {reason}")
            return update(run, batch)
        finally:
            self.keeps_graphs = False

    def _quick(self, run: "Run", update: Update, batch: Batch) -> Losses:
        self._active = True
        try:
            return update(run, batch)
        finally:
            self._active = False


class Recorder(Protocol):
    """What records the work of a function, to be done again without the function."""

    def running(self) -> AbstractContextManager[Any]: ...

    def watching(self) -> AbstractContextManager[Any]:
        """Within it, what no recorder could record raises."""

    def record(
        self, function: Callable[[], Answer], generators: Sequence[torch.Generator]
    ) -> tuple[Answer, Callable[[], None]]:
        """What the function returned, and a function that makes its tensors anew in place.

        When the function raises, all that was recorded before is of no more use.
        """


class CudaRecorder:
    """CUDA graphs, captured on a stream of their own, all in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def running(self) -> Iterator[None]:
        # all of training on this stream: the backward pass runs on that of the forward pass
        before = torch.cuda.current_stream(self._stream.device)
        benchmark = torch.backends.cudnn.benchmark
        # shapes are fixed; but what is found to be quick differs from run to run
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
            # thread_local: a checkpoint may be on its way to the disk in another thread
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                answer = function()
        except Exception:
            self._clear_up(generators)
            raise
        return answer, graph.replay

    def _clear_up(self, generators: Sequence[torch.Generator]) -> None:
        """Undo what torch leaves behind when a capture fails (2.11: all of it)."""
        device = self._stream.device
        with suppress(RuntimeError):  # when torch has done it itself
            torch._C._cuda_endAllocateToPool(device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        for generator in (torch.cuda.default_generators[device.index], *generators):
            # its state believes for good that it is being captured
            generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs of a process: cuBLAS keeps 32 MiB for each stream that it has seen."""
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
    """Each update captured once, losses, backward and optimizer step, and replayed from then on.

    Batches are copied into memory that stays. Watched steps, evaluations and all event hooks are
    never captured.
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

    def __call__(self, run: "Run", update: Update, batch: Batch) -> Losses:
        batch = self._in_place(batch)
        if self._given_up:
            return update(run, batch)
        passed = next((one for one in run.passes if one.is_of(batch)), None)
        key = (update, id(batch), id(passed))
        if recorded := self._recorded.get(key):
            return _replayed(run, recorded)
        if update in self._refused:
            return update(run, batch)
        self._calls[update] += 1
        try:
            self._prepare(update.optimizer(run))
            if self._calls[update] <= WARM_UPS or not all(map(self._is_ours, run.passes)):
                return update(run, batch)
            if len(self._recorded) == MOST_GRAPHS:
                raise InTheWayError(f"{MOST_GRAPHS} graphs are captured already")
            self._recorded[key], losses = self._record(run, update, batch)
            return losses
        except InTheWayError as reason:
            self._refused.add(update)
            what = "no step is" if self._given_up else f"{update.role}'s step is not"
            run.say(f"{what} captured as a graph: {reason}")
            return update(run, batch)

    def _is_ours(self, passed: Pass) -> bool:
        return any(passed in recorded.passes for recorded in self._recorded.values())

    def _in_place(self, batch: Batch) -> Batch:
        shape = (batch.real.shape, batch.condition.shape)
        if shape not in self._batches:
            self._batches[shape] = Batch(batch.real.clone(), batch.condition.clone())
        mine = self._batches[shape]
        if batch is not self._filled_from:  # both steps may have the same one
            mine.real.copy_(batch.real)
            mine.condition.copy_(batch.condition)
            self._filled_from = batch
        return mine

    def _prepare(self, optimizer: Optimizer) -> None:
        """Have the optimizer keep on the device what a replay must find there."""
        if id(optimizer) in self._prepared:
            return
        for group in optimizer.param_groups:
            if "capturable" not in group:
                raise InTheWayError(f"{type(optimizer).__name__} has no capturable form")
            device = group["params"][0].device
            # as the fused kernels read it
            dtype = torch.float32 if device.type == "cuda" else torch.float64
            group["lr"] = torch.tensor(float(group["lr"]), device=device, dtype=dtype)
            group["capturable"] = device.type == "cuda"
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = state["step"].to(device)
        self._prepared.add(id(optimizer))

    def _record(self, run: "Run", update: Update, batch: Batch) -> tuple[Recorded, Losses]:
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
            found.append(Recorded(replay, names, values, tuple(run.passes)))
            return _replayed(run, found[0])

        losses = tried(run, update, plain, captured)
        return found[0], losses


def _replayed(run: "Run", recorded: Recorded) -> Losses:
    recorded.replay()
    run.passes[:] = recorded.passes
    # one copy, since the next replay writes over them
    return dict(zip(recorded.names, recorded.values.clone().unbind(), strict=True))


def choose(run: "Run") -> Eager:
    """What the recipe's `compile` asks for, as far as this device and these plugins allow it."""
    mode, cuda = run.recipe.compile, run.device.type == "cuda"
    if mode == "networks":
        return Compiled()
    if mode == "off":
        return Eager()
    if not cuda:
        if mode == "graphs":
            run.notes.append('compile = "graphs" is for CUDA; running eager here')
        return Eager()
    for plugin in run.recipe.plugins.values():
        if not plugin.capturable:
            run.notes.append(f"{plugin.name} cannot be captured as a CUDA graph; running eager")
            return Eager()
    return Graphs(CudaRecorder(run.device))


def tried(
    run: "Run", update: Update, plain: Callable[[], Losses], quick: Callable[[], Losses]
) -> Losses:
    """Take a step the quick way, when it is the step that the plain way takes from here.

    :raises InTheWayError: when either raises or they differ; all is then as it was before.
    """
    before = Snapshot(run)
    parameters = update.parameters(run)
    start = [p.detach().clone() for p in parameters]
    try:
        plain()
        wanted = [p.detach().clone() for p in parameters]
        before.restore()
        losses = quick()
    except Exception as error:  # what torch raises here has no common base
        before.restore()
        raise InTheWayError(culprit(error)) from error
    apart = _distance(parameters, wanted) / max(_distance(start, wanted), 1e-30)
    if not apart <= TOLERANCE:
        before.restore()
        raise InTheWayError(f"the weights would move otherwise, by {apart:.2g} of a step")
    return losses


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    with torch.no_grad():
        squares = [(a - b).double().square().sum() for a, b in zip(some, others, strict=True)]
        return torch.stack(squares).sum().sqrt().item()


def culprit(error: BaseException) -> str:
    """What raised, in one line: the innermost plugin at work, the message, the plugin's line."""
    plugin = line = ""
    cause: BaseException | None = error
    while cause and not plugin:  # a capture that ends because of an error raises another
        for frame, number in traceback.walk_tb(cause.__traceback__):
            if isinstance(owner := frame.f_locals.get("self"), Plugin):
                plugin = f"{owner.name}: "
                line = f" ({linecache.getline(frame.f_code.co_filename, number).strip()})"
                error = cause
        cause = cause.__context__
    error = getattr(error, "inner_exception", error)  # what torch's compiler wraps
    message = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{plugin}{message}{line}"


class Snapshot:
    """All that an update may change, to be put back in place: the memory stays where it is."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        modules = [module for module in (run.G, run.D) if module is not None]
        self._tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self._optimizers = [o for o in (run.G_optimizer, run.D_optimizer) if o is not None]
        states = [state for o in self._optimizers for state in o.state.values()]
        self._tensors += [t for state in states for t in state.values() if isinstance(t, Tensor)]
        self._copies = [t.detach().clone() for t in self._tensors]
        # a shared pass remembers the versions of D's weights, and will see the same values again
        self._versions = torch.autograd._unsafe_preserve_version_counter(tuple(self._tensors))
        self._begun = [bool(optimizer.state) for optimizer in self._optimizers]
        self._plugins = {
            name: copy.deepcopy(plugin.state_dict())
            for name, plugin in run.recipe.plugins.items()
            if hasattr(plugin, "state_dict")
        }
        self._random = run.streams.state()
        self._passes = list(run.passes)

    def restore(self) -> None:
        run = self._run
        with torch.no_grad(), self._versions:
            for tensor, saved in zip(self._tensors, self._copies, strict=True):
                tensor.copy_(saved)
        for optimizer, begun in zip(self._optimizers, self._begun, strict=True):
            if not begun:
                optimizer.state.clear()
        for name, state in self._plugins.items():
            plugin: Any = run.recipe.plugins[name]
            plugin.load_state_dict(copy.deepcopy(state))
        run.streams.set_state(self._random)
        run.passes[:] = self._passes
