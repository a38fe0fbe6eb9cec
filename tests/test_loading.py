"""The share of a step that the data take, in `bench` and at the end of a run."""

import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab import engine, iteration
from ganlab.bench import data_share
from ganlab.cli import main
from ganlab.limits import Limits
from ganlab.monitoring.loading import data_words
from ganlab.recipe.model import load_recipe
from ganlab.session import start

SLOW = """
from ganlab import Plugin, hookimpl
import data_clock


class Slow(Plugin):
    data: float
    steps: float

    @hookimpl(wrapper=True)
    def degrade(self):
        data_clock.pass_(self.data)
        return (yield)

    @hookimpl
    def iteration_end(self):
        data_clock.pass_(self.steps)
"""


@pytest.mark.parametrize(
    ("data", "steps", "iterations", "told"),
    [(3.0, 14.0, 50, "30%"), (1.0, 18.0, 50, ""), (3.0, 14.0, 49, "")],
)
def test_a_run_tells_at_its_end_when_the_data_took_much(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: float,
    steps: float,
    iterations: int,
    told: str,
) -> None:
    clock = types.ModuleType("data_clock")
    passed = [0.0]
    clock.pass_ = lambda seconds: passed.append(passed[-1] + seconds)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "data_clock", clock)
    for module in (engine, iteration):
        monkeypatch.setattr(module, "perf_counter", lambda: passed[-1])
    (tiny.parent / "slow.py").write_text(SLOW)
    slow = f'slow={{ use = "./slow.py", data = {data}, steps = {steps} }}'
    changes = [slow, f"iterations={iterations}", "checkpoint_every=100"]
    _, code = start(load_recipe(tiny, changes), "cpu", Limits(), tiny.parent / "runs")
    assert code == 0
    # a D step and a G step, each on a batch of its own: two degradations an iteration
    line = f"the data took {told} of the steps' time; `ganlab bench {tiny.parent}/runs/tiny-1/"
    assert (line in capsys.readouterr().err) == bool(told)


def test_the_share_is_that_of_sampling_and_degrading_by_plugin() -> None:
    parts = {
        ("data", "painter"): 3.0,
        ("degrade", "painter"): 1.0,
        ("degrade", "blur"): 2.0,
        ("data", "engine"): 1.0,
        ("G forward", "engine"): 13.0,
    }
    found = data_share(parts)
    assert found["share"] == pytest.approx(0.35)
    assert found["plugins"] == pytest.approx({"blur": 0.1, "painter": 0.2})
    line = data_words(found["share"], found["plugins"])
    assert line.startswith("the data take 35% of a step: painter 20%, blur 10%. The networks wait")
    assert "cheaper options of painter" in line
    assert data_words(0.2, {"painter": 0.2}) == "the data take 20% of a step: painter 20%"


def test_bench_tells_what_the_data_take(tiny: Path) -> None:
    command = ["bench", str(tiny), "--time", "0.05s"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    (line,) = [one for one in result.stdout.splitlines() if one.startswith("the data take ")]
    assert "dead_leaves" in line
