"""`ganlab explain`: every value with its origin, and what the run will take."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ganlab.bench.cost import POINTS, estimate
from ganlab.cli import main
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.speed.graphs import Graphs
from ganlab.testing.recorder import CpuRecorder


def explain(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["explain", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def child(tiny: Path) -> Path:
    file = tiny.with_name("child.toml")
    file.write_text(
        'extends = "tiny.toml"\nbatch_size = 3\n\n[plugins]\ngradient_penalty = { weight = 2.0 }\n'
    )
    return file


def test_every_value_is_there_with_the_line_or_the_option_that_set_it(child: Path) -> None:
    found = explain(str(child), "--set", "pixel_loss.weight=0.5", "--no-cost")
    values = {value["key"]: value for value in found["values"]}

    def told(key: str) -> tuple[str, str]:
        return values[key]["value"], values[key]["origin"].rpartition("/")[2]

    assert told("batch_size") == ("3", "child.toml:2")
    assert told("iterations") == ("4", "tiny.toml:1")
    assert told("d_steps") == ("1", "default")
    assert told("gradient_penalty.weight") == ("2.0", "child.toml:5")
    assert told("gradient_penalty.target") == ("1.0", "default")
    assert told("pixel_loss.weight") == ("0.5", "--set pixel_loss.weight=0.5")
    recipe = load_recipe(child)
    options = sum(len(type(plugin).model_fields) for plugin in recipe.plugins.values())
    assert len(values) == len(type(recipe).model_fields) + len(recipe.plugins) + options


def test_steps_and_images_are_counted(child: Path) -> None:
    found = explain(str(child), "--set", "d_steps=5", "--set", "g_steps=2", "--no-cost")
    assert found["steps"] == {
        "iterations": 4,
        "G steps": 8,
        "D steps, at most": 20,
        "images for G": 24,
        "evaluations": 1,
    }
    assert "cost" not in found


def test_the_cost_is_measured(child: Path) -> None:
    found = explain(str(child))
    cost = found["cost"]
    assert cost["parameters"]["G"] > cost["parameters"]["D"] > 0
    assert cost["peak_memory"] > 1e6
    assert cost["seconds"] >= 0
    assert cost["share of iterations with D"] == 1


def test_pretraining_shows_in_the_share_of_iterations_with_a_discriminator(tiny: Path) -> None:
    recipe = load_recipe(tiny, ["iterations=700", "pretraining={ iterations = 500 }"])
    assert estimate(recipe, "cpu").d_share == pytest.approx(2 / POINTS)


@pytest.mark.parametrize("penalty", ["gradient_penalty={}", "r1={ every = 2 }"])
def test_neither_warm_ups_nor_captures_count_in_the_cost(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, penalty: str
) -> None:
    class Recorder(CpuRecorder):
        is_running = False

        @contextmanager
        def running(self) -> Iterator[None]:
            self.is_running = True
            yield
            self.is_running = False

    graphs = Graphs(recorder := Recorder())
    seconds = 0

    def iterate_by_the_clock(run: Run) -> dict[str, torch.Tensor]:
        nonlocal seconds
        assert recorder.is_running
        slow, calls = graphs.slow_steps, len(recorder.tapes)
        losses = iterate(run)
        assert graphs.slow_steps - slow >= len(recorder.tapes) - calls
        seconds += 1 + 1000 * (graphs.slow_steps - slow)
        return losses

    monkeypatch.setattr("ganlab.assembly.choose_execution", lambda run: graphs)
    monkeypatch.setattr("ganlab.bench.cost.iterate", iterate_by_the_clock)
    monkeypatch.setattr("ganlab.bench.cost.time.perf_counter", lambda: seconds)
    overrides = ["iterations=700", "pretraining={ iterations = 300 }", "watch_every=0"]
    found = estimate(load_recipe(tiny, ["gradient_penalty=false", *overrides, penalty]), "cpu")
    assert len(recorder.tapes) == (4 if "r1" in penalty else 3)
    assert found.seconds == 700


def test_what_cannot_be_measured_says_why_and_the_rest_is_told(child: Path) -> None:
    folder = "image_folder={ path = 'nowhere', crop = 16 }"
    found = explain(str(child), "--set", "dead_leaves=false", "--set", folder)
    assert "no such folder" in found["cost"]["unknown"]
    assert found["steps"]["iterations"] == 4


def test_one_key_is_told_with_what_it_means_and_its_limits(child: Path) -> None:
    result = CliRunner().invoke(main, ["explain", str(child), "plugins.gradient_penalty.weight"])
    assert result.exit_code == 0
    assert "2.0" in result.stdout
    assert (
        "".join(result.stdout.split()).split("toml:5")[1].startswith("Thepaper'slambda.(atleast0)")
    )
    (value,) = explain(str(child), "gradient_penalty.weight")["values"]
    assert value["description"]
    plugin = explain(str(child), "gradient_penalty")["values"]
    assert [v["key"] for v in plugin][:2] == ["gradient_penalty", "gradient_penalty.weight"]


def test_a_key_that_is_not_there_is_refused_with_the_nearest(child: Path) -> None:
    result = CliRunner().invoke(main, ["explain", str(child), "gradient_penalty.weigth"])
    assert result.exit_code == 2
    assert "did you mean 'gradient_penalty.weight'?" in result.stderr
