"""A finished run leaves no memory behind: its networks go at once, not at some later collection."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training import build, train

from ganlab import assembly
from ganlab.bench.cost import estimate
from ganlab.bench.fit import peak_of
from ganlab.commands.trace import trace_recipe
from ganlab.compare import local
from ganlab.compare.crew import Placement, carry_out
from ganlab.compare.plan import Variant, make_plan
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.session import start
from ganlab.speed.graphs import Graphs
from ganlab.testing.recorder import CpuRecorder

SETTINGS = ("ema={}", "evaluate_every=2")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Any]]]:
    """References to every run and every network that the test makes; nothing collects garbage."""
    found: list[weakref.ref[Any]] = []

    def noted(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            answer = make(*arguments, **options)
            found.append(weakref.ref(answer))
            return answer

        return call

    monkeypatch.setattr(assembly, "Run", noted(Run))
    monkeypatch.setattr(assembly, "build_network", noted(assembly.build_network))
    gc.collect()
    gc.disable()
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    yield found
    gc.enable()


def alive(made: list[weakref.ref[Any]]) -> list[str]:
    return [type(one()).__name__ for one in made if one() is not None]


def peaks(file: Path) -> None:
    for _ in range(3):
        peak_of(file, SETTINGS, "cpu", 2)


def estimates(file: Path) -> None:
    for _ in range(3):
        estimate(load_recipe(file, SETTINGS), "cpu")


def traces(file: Path) -> None:
    trace_recipe(file, SETTINGS, "cpu")


def a_sitting(file: Path) -> None:
    start(load_recipe(file, SETTINGS), "cpu", Limits(), file.parent)


def captured_steps(file: Path) -> None:
    run = build(file, [*SETTINGS, "watch_every=3"], Graphs(CpuRecorder()))
    train(run, 8)
    assert run.execution._recorded


@pytest.mark.parametrize("work", [peaks, estimates, traces, a_sitting, captured_steps])
def test_nothing_of_a_finished_run_is_left(
    tiny: Path, made: list[weakref.ref[Any]], work: Callable[[Path], None]
) -> None:
    work(tiny)
    assert len(made) >= 3 and not alive(made)


def test_an_average_goes_with_its_run_although_its_plugin_is_registered(tiny: Path) -> None:
    run = build(tiny, SETTINGS)
    average = weakref.ref(run.recipe.plugins["ema"].average)
    gc.disable()
    try:
        del run
        assert average() is None
    finally:
        gc.enable()


def test_a_run_of_a_comparison_is_gone_before_the_next_begins(
    tiny: Path, made: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[list[str]] = []
    monkeypatch.setattr(local, "release_memory", lambda device: left.append(alive(made)))
    jobs = make_plan([Variant("tiny", tiny, SETTINGS)], [0, 1, 2], tiny.parent, "cpu")
    carry_out(jobs, Placement(local.Local(), tiny.parent, "cpu", 1), lambda text: None)
    assert left == [[], [], []] and len(made) >= 9
