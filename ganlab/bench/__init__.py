"""`ganlab bench`: how fast a recipe runs here, where its time goes, and how fast it could be."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from ganlab.assembly import assemble
from ganlab.bench.ceilings import Ceilings, measure_ceilings
from ganlab.bench.memory import count_memory
from ganlab.bench.plain import PlainLoop
from ganlab.bench.stopwatch import ENGINE, PHASES, Part, time_parts
from ganlab.bench.work import Operation, count_work
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.monitoring.attribution import attributed
from ganlab.monitoring.calls import Watch, watching
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.environment import describe_environment
from ganlab.speed.device import begin_peak_memory, now, peak_memory, pick_device
from ganlab.system import keep_freed_memory

WARM_UPS = {"cpu": 2, "cuda": 10}  # on CUDA, updates are captured during these
MOST_AGAIN = 20  # timings; in one, a lazy penalty's step may be captured
LEAST = 3  # iterations timed, however long they take
ROUNDS = 7  # ganlab and the bare loop in turn
TRACED = 3
MOST_PARTS = 20  # iterations timed part by part; on CUDA this takes many times longer


def bench_recipe(
    file: Path,
    overrides: Iterable[str],
    device: str,
    seconds: float,
    vs_plain: bool = False,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Time the last iterations of a recipe, after its pretraining; writes no run folder.

    :param seconds: duration of each timing; at least three iterations are timed.
    :param vs_plain: also time a bare loop of the same networks, in turn with the recipe.
    :param trace: a file for a Chrome trace of three iterations.
    :returns: "iteration" (ms, images/s, peak memory), "phases" and "plugins" (ms of an iteration),
        "data", "memory", "watched", "operations", "ceilings", "floor"; and "plain" with `vs_plain`.
    :raises RecipeError: when the recipe cannot run here, or the trace file exists.
    """
    if trace and trace.exists():
        raise RecipeError(f"--trace {trace} exists; name another file")
    changes = list(overrides)
    watch_every = load_recipe(file, changes).watch_every
    run = assemble(load_recipe(file, [*changes, "watch_every=0"]), pick_device(device))
    found: dict[str, Any] = {
        "recipe": str(file),
        "precision": run.recipe.precision,
        "environment": describe_environment(run.device),
    }
    ceilings = measure_ceilings(run)
    keep_freed_memory()  # as training does
    with run.execution.running():
        begin_peak_memory(run.device)
        times = _iterations(run, seconds)
        found["iteration"] = _iteration(run, times)
        whole = found["iteration"]["ms"]
        parts = time_parts(run, min(len(times), MOST_PARTS))
        found["phases"], found["plugins"] = _summed(parts, 0), _summed(parts, 1)
        found["data"] = data_share(parts)
        found["watched"] = {"every": watch_every, "ms more": _watched(run) - whole}
        if vs_plain:
            found["plain"] = _beside_plain(run, len(times))
        if trace:
            _write_trace(run, trace)
            found["trace"] = str(trace)
        found["memory"] = count_memory(run)
        operations = count_work(run)
    ceilings = ceilings.or_higher(measure_ceilings(run))  # the machine may have been busy before
    found["notes"] = list(run.notes)
    found["operations"] = [asdict(one) for one in operations]
    found["ceilings"] = asdict(ceilings)
    found["floor"] = floor(operations, ceilings, whole)
    return found


def floor(operations: list[Operation], ceilings: Ceilings, ms: float) -> dict[str, Any]:
    """The shortest time of the counted work at the measured ceilings, and where the rest goes.

    The floor is that of an ideal compiler: operations other than matrix products and convolutions
    take no extra time, and memory access overlaps with computing. "ms without overlap" is the time
    without this overlap, and with every tensor read and written. The rest is that of `ms`.
    """
    matrix = [one for one in operations if one.is_matrix]
    others = [one for one in operations if not one.is_matrix]
    flops = sum(one.flops for one in matrix)
    compute = 1000 * flops / ceilings.flops
    traffic = [1000 * sum(o.moved for o in some) / ceilings.bytes for some in (matrix, operations)]
    least = max(compute, traffic[0])
    in_matrix, in_others = (1000 * sum(o.seconds for o in some) for some in (matrix, others))
    # measured in another iteration, which may have been slower
    scale = min(1.0, ms / max(in_matrix + in_others, 1e-9))
    in_matrix, in_others = scale * in_matrix, scale * in_others
    calls = sum(one.calls for one in operations)
    return {
        "flops": flops,
        "calls": calls,
        "ms": least,
        "ms without overlap": compute + traffic[1],
        "ms of launches": 1000 * calls * ceilings.launch_seconds,
        "reached": least / ms,
        "rest": {
            "matrix products and convolutions, below the ceiling": max(0.0, in_matrix - least),
            "other operations": in_others,
            "between operations": max(0.0, ms - in_matrix - in_others),
        },
    }


def _iterations(run: Run, seconds: float) -> list[float]:
    """Warm up, then time the recipe's last iterations for this many seconds: ms of each."""
    warm = WARM_UPS.get(run.device.type, WARM_UPS["cpu"])
    run.iteration = max(0, run.recipe.iterations - warm - LEAST)
    _advance(run, warm)
    first = _timed(run, 1)
    count = max(LEAST, int(1000 * seconds / first))
    for _ in range(MOST_AGAIN):
        slow = run.execution.slow_steps
        times = _times(run, count)
        if run.execution.slow_steps == slow:
            break
    return times


def _times(run: Run, count: int) -> list[float]:
    """Milliseconds of each of the recipe's last iterations."""
    run.iteration = max(0, run.recipe.iterations - count)
    if run.device.type == "cuda":  # wait once for all: one by one, each would include its launches
        return [_timed(run, count) / count] * count
    return [_timed(run, 1) for _ in range(count)]


def _advance(run: Run, count: int) -> None:
    for _ in range(count):
        iterate(run)
        run.iteration += 1


def _timed(run: Run, count: int) -> float:
    began = now(run.device)
    _advance(run, count)
    return 1000 * (now(run.device) - began)


def _iteration(run: Run, times: list[float]) -> dict[str, Any]:
    ms, recipe = median(times), run.recipe
    return {
        "ms": ms,
        "timed": len(times),
        "images/s": 1000 * recipe.batch_size * recipe.g_steps / ms,
        "peak_memory": peak_memory(run.device),
        "carried out by": type(run.execution).__name__,
        "shares D's pass": run.share_forward,
    }


def _summed(parts: dict[Part, float], which: int) -> dict[str, float]:
    """Milliseconds by phase (`which` = 0) or by plugin (1): the two halves of a part's name."""
    names = PHASES if which == 0 else tuple(sorted({plugin for _, plugin in parts} - {ENGINE}))
    return {n: sum(ms for part, ms in parts.items() if part[which] == n) for n in names}


def data_share(parts: dict[Part, float]) -> dict[str, Any]:
    """The share of an iteration that drawing samples and degrading them take, whole and by plugin.

    :param parts: milliseconds by (phase, plugin).
    """
    whole = max(sum(parts.values()), 1e-9)
    of_data = {part: ms / whole for part, ms in parts.items() if part[0] in ("data", "degrade")}
    names = {plugin for _, plugin in of_data} - {ENGINE}
    plugins = {n: sum(s for part, s in of_data.items() if part[1] == n) for n in sorted(names)}
    return {"share": sum(of_data.values()), "plugins": plugins}


def _watched(run: Run) -> float:
    """Milliseconds of an iteration in which every loss's gradient is measured.

    Where steps are replayed, it is replayed too: it is taken again until it has been captured.
    """
    for _ in range(MOST_AGAIN):
        slow = run.execution.slow_steps
        began = now(run.device)
        iterate(run, attributed)
        ms = 1000 * (now(run.device) - began)
        if run.execution.slow_steps == slow:
            break
    return ms


def _beside_plain(run: Run, count: int) -> dict[str, float]:
    """Time the run and a bare loop of its networks in turn: medians, and ratios within rounds."""
    plain, each = PlainLoop(run), max(1, count // ROUNDS)
    plain.iterate()

    def bare() -> float:
        began = now(run.device)
        for _ in range(each):
            plain.iterate()
        return 1000 * (now(run.device) - began)

    rounds = []
    for number in range(ROUNDS):
        if number % 2:
            other, own = bare(), _timed(run, each)
        else:
            own, other = _timed(run, each), bare()
        rounds.append((own / each, other / each))
    ratios = sorted(own / other for own, other in rounds)
    return {
        "ms": median(own for own, _ in rounds),
        "plain_ms": median(other for _, other in rounds),
        "ratio": median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "rounds": ROUNDS,
    }


def _write_trace(run: Run, file: Path) -> None:
    """Write a Chrome trace of iterations as the recipe takes them, with the name of every hook."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # otherwise it warns about a missing GPU
    activities = [ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with watching(run.manager, _Named), profile(activities=activities, acc_events=True) as profiled:
        for _ in range(TRACED):
            with record_function("iteration"):
                _advance(run, 1)
    profiled.export_chrome_trace(str(file))


class _Named(Watch):
    """A section of a trace, named after its plugin and hook."""

    def __init__(self, hook: str, plugin: str, wraps: bool) -> None:
        self._name = f"{plugin}.{hook}"

    def __enter__(self) -> None:
        self._stretch = record_function(self._name)
        self._stretch.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._stretch.__exit__(*error)
