"""`ganlab bench`: every moment is counted once, FLOPs are right, and the bare loop is the step."""

import inspect
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ganlab import Plugin, hookimpl
from ganlab.assembly import assemble
from ganlab.bench import ceilings, fit, floor, stopwatch
from ganlab.bench.ceilings import Ceilings, measure_ceilings
from ganlab.bench.memory import Counted, count_memory
from ganlab.bench.plain import PlainLoop
from ganlab.bench.work import Operation, count_work
from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run

CPU = torch.device("cpu")
CLOCKED = """
from ganlab import Plugin, hookimpl
import virtual_clock


class Clocked(Plugin):
    hooks_seconds: float = 0.0

    @hookimpl(wrapper=True)
    def degrade(self):
        virtual_clock.pass_(1)
        images = yield
        virtual_clock.pass_(2)
        return images

    @hookimpl
    def penalty(self, discriminator, real):
        virtual_clock.pass_(10)
        return {"D/clocked": discriminator(real).mean() * 0}

    @hookimpl
    def iteration_end(self):
        virtual_clock.pass_(100)
"""


def run_of(recipe: Path, *changes: str) -> Run:
    return assemble(load_recipe(recipe, changes), CPU)


def test_every_moment_belongs_to_the_innermost_part(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = types.SimpleNamespace(now=0.0)
    module = types.ModuleType("virtual_clock")

    def pass_(seconds: float) -> None:
        clock.now += seconds

    module.pass_ = pass_  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "virtual_clock", module)
    (tiny.parent / "clocked.py").write_text(CLOCKED)
    run = run_of(tiny, 'clocked={ use = "./clocked.py" }')
    monkeypatch.setattr(stopwatch, "now", lambda device: clock.now)
    adam_step = torch.optim.Adam.step

    def slow_step(self: torch.optim.Adam) -> None:
        adam_step(self)
        pass_(1000)

    monkeypatch.setattr(
        torch.optim.Adam, "step", torch.optim.Optimizer.profile_hook_step(slow_step)
    )
    parts = stopwatch.time_parts(run, 2)
    seconds = {part: ms / 1000 for part, ms in parts.items() if ms}
    # an iteration here is one D step and one G step, each on a batch of its own
    assert seconds["degrade", "clocked"] == 2 * (1 + 2)
    assert seconds["penalty", "clocked"] == 10
    assert seconds["events", "clocked"] == 100
    assert seconds["optimizer", "engine"] == 2 * 1000
    assert sum(seconds.values()) == 6 + 10 + 100 + 2000


def test_networks_backward_and_optimizers_are_parts_of_their_own(tiny: Path) -> None:
    parts = stopwatch.time_parts(run_of(tiny), 1)
    for phase in ("G forward", "D forward", "optimizer"):
        assert parts[phase, "engine"] > 0
    assert parts["G backward", "pixel_loss"] > 0
    assert parts["D backward", "wasserstein"] > 0
    assert ("D backward", "engine") not in parts  # shared out among the losses
    assert parts["penalty", "gradient_penalty"] > 0


def test_looking_leaves_the_run_as_it_was(tiny: Path) -> None:
    run = run_of(tiny)
    fast, backward = run.execution, Tensor.backward
    functions = [impl.function for impl in run.hook.degrade.get_hookimpls()]
    stopwatch.time_parts(run, 1)
    count_work(run)
    assert run.execution is fast
    assert Tensor.backward is backward
    assert [impl.function for impl in run.hook.degrade.get_hookimpls()] == functions
    assert not optimizer._global_optimizer_pre_hooks


def test_flops_are_those_that_torch_counts(tiny: Path) -> None:
    run = run_of(tiny, "gradient_penalty=false", "weight_clipping={}")
    with FlopCounterMode(display=False) as counter:
        iterate(run)
    assert sum(one.flops for one in count_work(run)) == counter.get_total_flops() > 0


def test_the_second_derivative_of_a_penalty_is_counted(tiny: Path) -> None:
    with_penalty, without = (
        sum(one.flops for one in count_work(run_of(tiny, *changes)))
        for changes in ([], ["gradient_penalty=false", "weight_clipping={}"])
    )
    run = run_of(tiny)
    assert run.D is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.D(torch.zeros(2, *run.real_shape))
    # forward, its gradient for the images, and the backward passes of both: six forward passes,
    # less what the first and the last layer need not pass on
    assert 4 < (with_penalty - without) / counter.get_total_flops() < 6


def test_bytes_are_of_what_is_read_and_written() -> None:
    from ganlab.bench.work import _Counted

    counted = _Counted(CPU)
    a = torch.zeros(8, 4)
    with counted:
        (a.view(4, 8) @ a).add_(1)
    assert counted.found["mm"].flops == 2 * 4 * 8 * 4
    assert counted.found["mm"].moved == 4 * (32 + 32 + 16)
    assert counted.found["add"].moved == 4 * (16 + 16)
    assert "view" not in counted.found


def test_tensors_are_counted_while_they_live_for_the_part_that_made_them() -> None:
    part = ("penalty", "one")
    before = torch.zeros(10_000)
    counted = Counted(lambda: part)
    with counted:
        a = torch.zeros(1000)
        b = a.view(10, 100) + before[:100]  # views are not new
        before.add_(1)
        part = ("penalty", "two")
        c = torch.zeros(500)
        del a
        d = torch.zeros(700)  # less than a: not the highest moment
    assert counted.peak == 4 * 2500
    assert counted.at_peak == {("penalty", "one"): 4 * 2000, ("penalty", "two"): 4 * 500}
    assert counted._live == {("penalty", "one"): 4 * 1000, ("penalty", "two"): 4 * 1200}
    assert len(b) + len(c) + len(d) == 1210


HOG = """
import torch
from ganlab import Plugin, hookimpl


class Hog(Plugin):
    @hookimpl
    def generator_loss(self, fake):
        kept = torch.ones(1_000_000) * fake.mean()
        return {"G/hog": kept.square().mean()}
"""


def test_what_a_loss_keeps_for_its_backward_pass_is_its_own(tiny: Path) -> None:
    (tiny.parent / "hog.py").write_text(HOG)
    run = run_of(tiny, 'hog={ use = "./hog.py" }')
    found = count_memory(run)
    assert sum(found["parts"].values()) == found["peak"]
    # `ones`, and their product with a number, whose square is differentiated
    assert 2 * 4e6 <= found["parts"]["hog"] < 4 * 4e6
    assert count_memory(run_of(tiny))["peak"] < 4e6


def test_the_floor_is_the_longer_of_computing_and_moving() -> None:
    highest = Ceilings(flops=1e9, bytes=1e9, launch_seconds=1e-6)
    matrix = Operation("mm", calls=1, seconds=0.004, flops=2_000_000, moved=1_000_000)
    other = Operation("add", calls=9, seconds=0.002, moved=3_000_000)
    found = floor([matrix, other], highest, ms=10.0)
    assert found["ms"] == 2.0
    assert found["ms without overlap"] == 2.0 + 4.0
    assert found["reached"] == 0.2
    assert found["calls"] == 10
    assert list(found["rest"].values()) == [2.0, 2.0, 4.0]
    moving = floor([Operation("mm", 1, 0.004, 1_000_000, 5_000_000)], highest, ms=10.0)
    assert moving["ms"] == 5.0


@pytest.mark.parametrize(("tf32", "named"), [(True, "TF32"), (False, "float32")])
def test_the_ceiling_is_of_products_computed_as_the_convolutions_are(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tf32: bool, named: str
) -> None:
    monkeypatch.setattr(ceilings, "_SIDE", {"cpu": 8, "cuda": 8})
    monkeypatch.setattr(ceilings, "_COPIED", {"cpu": 8, "cuda": 8})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    run, seen = run_of(tiny), []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mm.default:
                seen.append(torch.backends.cuda.matmul.allow_tf32)
            return func(*args, **(kwargs or {}))

    with Look():
        assert measure_ceilings(run).products_in == "float32"  # on a CPU
    assert set(seen) == {tf32}
    assert not torch.backends.cuda.matmul.allow_tf32
    run.device = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert ceilings._products_in(run) == named
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert ceilings._products_in(run) == "float32"


class Still(Plugin):
    """The same images at every draw."""

    images_only: ClassVar[bool] = True

    @hookimpl
    def sample_real(self, batch_size, device):
        images = torch.rand(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return images.to(device)


@pytest.mark.parametrize(
    "changes",
    [
        ["wasserstein=false", "gradient_penalty=false", "bce={}", "label_smoothing={}"],
        ["wasserstein=false", "gradient_penalty=false", "relativistic_average={}", "d_steps=2"],
        ["gradient_penalty=false", "r1={}", "conditional_discriminator={}"],
        ["gradient_penalty=false", "r1={}", "ema={}", 'first="generator"'],
    ],
    ids=["labels", "real logits and two D steps", "augment", "generator first"],
)
def test_the_bare_loop_takes_the_steps_of_the_engine(tiny: Path, changes: list[str]) -> None:
    (tiny.parent / "still.py").write_text(
        "import torch\nfrom typing import ClassVar\nfrom ganlab import Plugin, hookimpl\n\n\n"
        + inspect.getsource(Still)
    )
    still = ["dead_leaves=false", 'still={ use = "./still.py" }']
    own, bare = run_of(tiny, *still, *changes), run_of(tiny, *still, *changes)
    loop = PlainLoop(bare)
    for _ in range(3):
        iterate(own)
        own.iteration += 1
        loop.iterate()
    begun = run_of(tiny, *still, *changes)
    for networks in ((own.G, bare.G, begun.G), (own.D, bare.D, begun.D)):
        one, other, before = (parameters_to_vector(n.parameters()) for n in networks if n)
        assert torch.allclose(one, other, rtol=0, atol=1e-7)
        assert not torch.allclose(one, before, rtol=0, atol=1e-5)


def test_the_command_tells_times_and_leaves_a_trace(tiny: Path) -> None:
    trace = tiny.parent / "trace.json"
    command = ["bench", str(tiny), "--time", "0.05s", "--vs", "plain", "--trace", str(trace)]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for words in (
        "images/s",
        "gradient_penalty",
        "convolution",
        "of the floor",
        "bare loop",
        "at their peak",
    ):
        assert words in result.stdout
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"iteration", "bicubic.degrade", "wasserstein.generator_loss"} <= names
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 2
    assert f"{trace} exists" in again.output


def test_the_figures_are_there_for_machines(tiny: Path) -> None:
    command = ["bench", str(tiny), "--time", "0.05s", "--json"]
    found = json.loads(CliRunner().invoke(main, command, catch_exceptions=False).stdout)
    assert found["iteration"]["timed"] >= 3
    assert set(found["phases"]) == set(stopwatch.PHASES)
    assert found["floor"]["reached"] > 0
    assert not list(tiny.parent.glob("runs"))


def test_a_batch_is_found_by_doubling_and_halving(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def peak_of(file: Path, changes: tuple[str, ...], device: str, batch_size: int) -> int:
        tried.append(batch_size)
        if batch_size > 100:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return batch_size

    monkeypatch.setattr(fit, "peak_of", peak_of)
    monkeypatch.setattr(fit, "free_memory", lambda device: 1000)
    found = fit._by_trying(tiny, (), CPU, 4)
    assert found.batch_size == 100
    assert all(size % 4 == 0 for size in tried)
    assert found.measured[100] == 100


def test_no_batch_at_all_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "peak_of", lambda *arguments: 950)
    monkeypatch.setattr(fit, "free_memory", lambda device: 1000)
    with pytest.raises(Exception, match="not even one sample fits"):
        fit._by_trying(tiny, (), CPU, 1)


def cost_of(shape: str) -> Callable[[int], int]:
    """Peak memory by batch size; each leaves room for a little more than 30,000 in 40,000."""
    return {
        "line": lambda size: 10_000 + size,
        "flat at first": lambda size: 10_000 + max(0, size - 500),
        "curve": lambda size: 10_000 + size * size // 30_000,
        "one step": lambda size: 10_000 if size < 30_000 else 50_000,
    }[shape]


@pytest.mark.parametrize("shape", ["line", "flat at first", "curve", "one step"])
@pytest.mark.parametrize("first", [1, 8, 100_000])
def test_on_a_cpu_the_size_found_was_run_and_is_the_largest(shape: str, first: int) -> None:
    tried: list[int] = []
    peak = cost_of(shape)

    def trial(size: int) -> int | str:
        largest = max((one for one in tried if peak(one) <= 40_000), default=first)
        assert size <= fit.GROWTH * largest
        tried.append(size)
        return peak(size) if peak(size) <= 40_000 else "no room"

    found, measured = fit.grow(trial, first, 40_000)
    assert found in measured
    assert peak(found) <= 40_000 < peak(int(1.2 * found))
    assert len(tried) < 40


@pytest.mark.parametrize("trials", range(1, 9))
def test_without_time_no_more_than_twice_what_was_run_is_promised(trials: int) -> None:
    left = [trials]

    def trial(size: int) -> int | str:
        left[0] -= 1
        return 10_000 + size if left[0] >= 0 else "no time"

    found, measured = fit.grow(trial, 8, 10**12)
    assert len(measured) == trials
    assert found == (1 if trials == 1 else 2) * max(measured)


def test_when_there_is_no_time_for_a_large_trial_a_smaller_one_is_made() -> None:
    def trial(size: int) -> int | str:
        return 10_000 + size if size < 1000 else "no time"

    found, measured = fit.grow(trial, 8, 10**9)
    assert max(measured) >= 500
    assert found == 2 * max(measured)


def test_no_room_for_one_and_no_time_for_one_are_told() -> None:
    assert fit.grow(lambda size: "no room", 8, 1) == (0, {})
    with pytest.raises(RecipeError, match="longer than 120 s; begin with a smaller batch_size"):
        fit.grow(lambda size: "no time", 8, 1)


@pytest.mark.long  # 20 s: processes that import torch
def test_on_a_cpu_sizes_are_run_until_the_memory_is_used(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free_memory", lambda device: 2**30)
    found = fit.largest_batch(tiny, ["batch_size=32", "dead_leaves.crop=32"], "cpu")
    largest = max(found.measured)
    assert largest > 32
    assert found.measured[largest] < 0.9 * 2**30
    assert found.batch_size <= 2 * largest
    assert found.extrapolated == (found.batch_size not in found.measured)
    trial = (tiny, (), "cpu", 4)
    assert fit.in_a_process(*trial, room=1000, seconds=60) == "no room"
    assert fit.in_a_process(*trial, room=2**40, seconds=0) == "no time"
    with pytest.raises(RecipeError, match="iterations"):
        fit.in_a_process(tiny, ("iterations=0",), "cpu", 4, 2**40, 60)
