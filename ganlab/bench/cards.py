"""The memory that a recipe needs on a CUDA device, estimated on a machine without one.

The run is assembled on the CPU. Then all its tensors are replaced by torch's fake tensors, which
have a shape and a dtype but no memory, and some iterations are taken with these. Every tensor that
comes and goes is counted, as `ganlab bench` counts those of a real iteration.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from ganlab.assembly import assemble
from ganlab.bench.memory import Counted
from ganlab.bench.stopwatch import ENGINE
from ganlab.errors import RecipeError
from ganlab.images.store import ImageStore
from ganlab.iteration import iterate
from ganlab.monitoring.attribution import attributed
from ganlab.monitoring.blame import blame
from ganlab.plugin import Batch, hookimpl
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager, Run
from ganlab.toolbox.weights import weights_left_out

CARDS = (6, 8, 12, 16, 24)  # GB, as cards are sold
# allowances: for the CUDA context, cuBLAS and the kernels that cuDNN tries; and for the inner
# memory of the others. docs/explanation/performance.md has what they are beside measured peaks
CUDA, SPARE = 2**30, 1.15
BLOCK = 512  # torch's allocator hands out multiples of it on CUDA
_ANY = (ENGINE, ENGINE)  # the parts of an iteration are not told apart
ITERATIONS = 3  # the first one makes the moments; the last one is watched


@dataclass(frozen=True, slots=True)
class Need:
    """An estimate of the memory on a CUDA device, in bytes."""

    kept: int
    """Of all that stays: weights, moments of the optimizers, averages, other tensors of plugins."""
    step: int
    """Of the tensors of an iteration at its highest moment, or of drawing a batch if larger."""
    captured: int
    """Of captured steps: they keep their tensors beside those of the steps that are not captured,
    and each is compared with the plain step once, which needs copies. 0 when none is captured."""
    data: int
    """Of the training images, which lie on the device when they take at most a quarter of it."""

    @property
    def uncaptured(self) -> "Need":
        """The same with `compile = "off"`."""
        return replace(self, captured=0)

    @property
    def tensors(self) -> int:
        return self.kept + self.step + self.captured

    @property
    def whole(self) -> int:
        """What the device must have: tensors, a reserve, and CUDA itself."""
        return int(SPARE * self.tensors) + CUDA

    @property
    def cards(self) -> list[int]:
        """The sizes of cards, in GB, that have enough memory for it."""
        return [size for size in CARDS if self.fits(size)]

    def fits(self, gigabytes: int) -> bool:
        """Whether a card of this size has enough memory for it."""
        size = gigabytes * 2**30
        resident = self.data if self.data <= size // 4 else 0
        return self.whole + resident <= size


def need_on_cuda(file: Path, overrides: Iterable[str]) -> Need:
    """Estimate the memory for training a recipe on a CUDA device; evaluations are left out.

    Published weights may be absent: only their shapes count. The data must be there.

    :raises RecipeError: when the recipe cannot be assembled, or a plugin's code depends on values:
        fake tensors have none.
    """
    recipe = load_recipe(file, overrides)
    with weights_left_out():
        run = assemble(recipe, torch.device("cpu"))
    drawn = Counted(lambda: _ANY, BLOCK)
    with drawn:
        batch = run.hook.sample_batch(batch_size=recipe.batch_size, device=run.device)
    try:
        kept, peak = count_faked(run, batch, BLOCK)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        found = blame(error)
        who = f"{found.plugin.name}: " if found else ""
        raise RecipeError(
            f"{file}: {who}its code depends on the values of tensors ({error}), so its memory "
            "cannot be estimated without running it; use --fit"
        ) from None
    step = max(peak - kept, drawn.peak)
    return Need(kept, step, step + _copies(run) if _is_captured(run) else 0, _data(run))


def count_faked(run: Run, batch: Batch, block: int = 1) -> tuple[int, int]:
    """Take iterations late in the run with fake tensors in the precision that CUDA would use.

    The run is of no use afterwards.

    :param batch: it is given to each step.
    :param block: each tensor is counted as a multiple of so many bytes.
    :returns: bytes of the tensors that stay, and of all at the highest moment.
    """
    fakes = _Fakes(FakeTensorMode(allow_non_fake_inputs=True), block)
    fakes.of_run(run)
    faked = Batch(fakes(batch.real), fakes(batch.condition))
    run.manager.register(_Sampled(faked), "one batch for each step")
    run.execution = _AsOnCuda(run)
    run.iteration = max(0, run.recipe.iterations - ITERATIONS)
    before = fakes.bytes
    counted = Counted(lambda: _ANY, block)
    with warnings.catch_warnings(), fakes.mode, counted:
        warnings.filterwarnings("ignore", "CPU Autocast|In CPU autocast")
        for number in range(ITERATIONS):
            watched = run.recipe.watch_every > 0 and number == ITERATIONS - 1
            iterate(run, attributed if watched else None)
            run.iteration += 1
    return before + counted.total, before + counted.peak


class _Sampled:
    """Gives the same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    @hookimpl(tryfirst=True)
    def sample_batch(self, batch_size: int, device: torch.device) -> Batch:
        return self._batch


class _AsOnCuda(Eager):
    """Steps as written, in the types that autocast would choose on CUDA."""

    replays = True  # as there, no value is read on the host within a step

    def __init__(self, run: Run) -> None:
        self.keeps_graphs = _is_captured(run)
        self._casts = run.recipe.precision == "bfloat16"

    def network(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        if not self._casts:
            return module

        def cast(images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16), _Float32():
                answer: Tensor = module(images)
            return answer

        return cast


class _Float32(TorchFunctionMode):
    """Context in which functions run in float32 that do so on CUDA, but not in autocast on a CPU.

    Those of torch's list that a network may hold.
    """

    FUNCTIONS = (
        F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax,
        F.softplus, F.normalize, torch.sum, Tensor.sum, torch.prod, Tensor.prod, torch.exp,
        Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, torch.rsqrt, Tensor.rsqrt,
        torch.norm, Tensor.norm,
    )  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in self.FUNCTIONS:
            args = tuple(map(_widened, args))
            named = {name: _widened(value) for name, value in named.items()}
        return func(*args, **named)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


class _Fakes:
    """Replaces tensors by fake ones, wherever they are; what shared memory shares it again."""

    def __init__(self, mode: FakeTensorMode, block: int) -> None:
        self.mode, self.bytes = mode, 0
        self._block = block
        self._memory: dict[tuple[int, torch.dtype], tuple[Any, Tensor]] = {}
        self._known: dict[int, tuple[Any, Any]] = {}

    def of_run(self, run: Run) -> None:
        """Replace the tensors of networks, optimizers and plugins; data stores are left out."""
        for part in (*run.networks.values(), *run.optimizers.values()):
            self(part)
        for plugin in run.recipe.plugins.values():
            self(plugin.__pydantic_private__)

    def __call__(self, value: Any) -> Any:
        """The value with fake tensors; lists, dicts, modules and optimizers are changed in place"""
        if id(value) not in self._known:
            self._known[id(value)] = value, value  # a list may hold itself
            new = self._faked(value)
            self._known[id(value)] = value, new
            self._known[id(new)] = new, new
        return self._known[id(value)][1]

    def _faked(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            for module in value.modules():
                self._entries(vars(module))
        elif isinstance(value, Optimizer):
            self(value.param_groups)
        elif isinstance(value, dict):
            self._entries(value)
        elif isinstance(value, list):
            value[:] = [self(each) for each in value]
        elif isinstance(value, tuple):
            parts = [self(each) for each in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    def _entries(self, held: Any) -> None:
        for key, each in list(held.items()):
            if isinstance(each, Tensor | nn.Module | list | tuple | dict):
                held[key] = self(each)

    def _tensor(self, tensor: Tensor) -> Tensor:
        storage, dtype = tensor.untyped_storage(), tensor.dtype
        key = storage._cdata, dtype
        with self.mode:
            if key not in self._memory:
                size = storage.nbytes()
                whole = torch.empty(size // dtype.itemsize, dtype=dtype)
                self._memory[key] = storage, whole  # kept, so that no other gets its address
                self.bytes += -(-size // self._block) * self._block
            view = self._memory[key][1].as_strided(
                tensor.size(), tensor.stride(), tensor.storage_offset()
            )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(view, tensor.requires_grad)
        return view.requires_grad_(tensor.requires_grad)


def _is_captured(run: Run) -> bool:
    capturable = all(plugin.capturable for plugin in run.recipe.plugins.values())
    return run.recipe.compile in ("auto", "graphs") and capturable


def _copies(run: Run) -> int:
    """Bytes of the copies that the comparison of a captured step with the plain one needs."""
    sizes = {
        role: sum(t.numel() * t.element_size() for t in network.parameters())
        for role, network in run.networks.items()
    }
    # of weights and two moments of all networks, and of one network before and after its step
    return 3 * sum(sizes.values()) + 2 * max(sizes.values())


def _data(run: Run) -> int:
    held = [
        value
        for plugin in run.recipe.plugins.values()
        for value in (plugin.__pydantic_private__ or {}).values()
    ]
    several = [each for value in held for each in (value if isinstance(value, tuple) else [value])]
    return sum(store.num_bytes for store in several if isinstance(store, ImageStore))
