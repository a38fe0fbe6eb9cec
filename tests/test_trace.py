"""`ganlab trace`: which plugin ran where, and that looking changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.commands.trace import describe, trace_recipe, tracing
from ganlab.iteration import iterate
from ganlab.plugin import Batch
from ganlab.recipe.model import load_recipe
from ganlab.run import Eager, Run
from ganlab.speed.graphs import Graphs
from ganlab.testing.recorder import CpuRecorder

CPU = torch.device("cpu")


def test_the_calls_of_an_iteration_are_those_of_the_engine_in_order(tiny: Path) -> None:
    noise = "instance_noise={ sigma = 0.1 }"
    (traced,) = trace_recipe(tiny, [noise], "cpu", [1])
    calls = [(call.depth, call.hook, call.plugin, call.wraps) for call in traced.calls]
    d_step = calls.index((0, "discriminator_step", "engine", False))
    g_step = calls.index((0, "generator_step", "engine", False))
    assert calls[:4] == [
        (0, "sample_batch", "engine", False),
        (1, "sample_real", "dead_leaves", False),
        (1, "degrade", "bicubic", True),
        (1, "degrade", "engine", False),
    ]
    inside = [(hook, plugin) for _, hook, plugin, _ in calls[d_step + 1 : g_step - 4]]
    assert inside == [
        ("augment", "instance_noise"),
        ("augment", "engine"),
        ("augment", "instance_noise"),
        ("augment", "engine"),
        ("labels", "engine"),
        ("discriminator_loss", "wasserstein"),
        ("penalty", "gradient_penalty"),
        ("gradients", "engine"),
    ]
    losses = {(hook, plugin) for _, hook, plugin, _ in calls[g_step + 1 :]}
    assert {("generator_loss", "wasserstein"), ("generator_loss", "pixel_loss")} <= losses


def test_shapes_values_and_times_are_told(tiny: Path) -> None:
    (traced,) = trace_recipe(tiny, [], "cpu", [0])
    results = {(call.hook, call.plugin): call for call in traced.calls}
    assert results["degrade", "bicubic"].result == "[2, 3, 4, 4] float32"
    assert results["sample_real", "dead_leaves"].result == "[2, 3, 16, 16] float32"
    penalty = traced.losses["D/gradient_penalty"]
    assert results["penalty", "gradient_penalty"].result.startswith(
        f"D/gradient_penalty {penalty:.4g}"
    )
    step, inner = results["discriminator_step", "engine"], results["penalty", "gradient_penalty"]
    assert 0 < inner.milliseconds < step.milliseconds


def test_a_traced_iteration_is_the_iteration(tiny: Path) -> None:
    def weights(traced: bool) -> list[torch.Tensor]:
        run = assemble(load_recipe(tiny, ["instance_noise={ sigma = 0.1 }", "ema={}"]), CPU)
        functions = [i.function for i in run.hook.augment.get_hookimpls()]
        if traced:
            with tracing(run):
                iterate(run)
        else:
            iterate(run)
        assert [i.function for i in run.hook.augment.get_hookimpls()] == functions
        return list(run.G.parameters())

    for one, other in zip(weights(True), weights(False), strict=True):
        assert torch.equal(one, other)


def test_both_phases_of_a_pretrained_game_are_shown(tiny: Path) -> None:
    result = CliRunner().invoke(
        main,
        ["trace", str(tiny), "--set", "pretraining={ iterations = 2 }"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    first, last = result.stdout.split("iteration 3\n")
    assert "wasserstein" not in first
    assert "wasserstein" in last
    assert "~bicubic" in last
    command = ["trace", str(tiny), "--iteration", "2", "--json"]
    (one,) = json.loads(CliRunner().invoke(main, command, catch_exceptions=False).stdout)
    assert one["iteration"] == 2


def test_answers_in_short() -> None:
    image = torch.zeros(2, 3, 4, 4)
    assert describe(Batch(image, image[:, :, ::2, ::2])) == (
        "real [2, 3, 4, 4] float32, condition [2, 3, 2, 2] float32"
    )
    assert describe({"G/x": torch.tensor(0.5)}) == "G/x 0.5 float32"
    assert describe({}) == "nothing"
    assert describe(None) == ""
    assert describe((image, None)) == "[2, 3, 4, 4] float32, "


def test_steps_are_traced_as_written_where_a_run_replays_them(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = Graphs(CpuRecorder())

    def choose(run: Run) -> Eager:
        return Eager() if run.recipe.compile == "off" else graphs

    monkeypatch.setattr("ganlab.assembly.choose_execution", choose)
    (traced,) = trace_recipe(tiny, ["compile=auto", "watch_every=0"], "cpu", [2])
    assert graphs.slow_steps == 0
    assert {"discriminator_loss", "generator_loss"} <= {call.hook for call in traced.calls}


def test_the_environment_asks_for_every_call_as_it_happens(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = iterate(assemble(load_recipe(tiny), CPU))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("GANLAB_TRACE_PLUGINS", "1")
    run = assemble(load_recipe(tiny), CPU)
    capsys.readouterr()
    told = iterate(run)
    assert told == quiet
    lines = capsys.readouterr().err.splitlines()
    assert "engine.sample_batch(batch_size=2, device=cpu)" in lines
    assert "  ~bicubic.degrade -> float32[2, 3, 4, 4]" in lines
    (answer,) = [line for line in lines if "gradient_penalty.penalty ->" in line]
    assert answer.endswith("penalty -> {D/gradient_penalty: float64[]}")
    called = [line.split("(")[0].strip() for line in lines if "(" in line and "->" not in line]
    answered = [line.split(" ->")[0].strip() for line in lines if " ->" in line]
    assert sorted(called) == sorted(answered)


def test_tracing_escapes_what_a_terminal_would_obey(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GANLAB_TRACE_PLUGINS", "1")
    run = assemble(load_recipe(tiny), CPU)
    capsys.readouterr()
    run.hook.augment(images="\x1b[2J\n", condition=None)
    called, answered = capsys.readouterr().err.splitlines()
    assert called.startswith(r"engine.augment(images=\x1b[2J\n")
    assert answered == r"engine.augment -> \x1b[2J\n"


def test_tracing_by_the_environment_leaves_captured_steps_as_they_are(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for value in ("0", "1"):
        monkeypatch.setenv("GANLAB_TRACE_PLUGINS", value)
        run = assemble(load_recipe(tiny, ["watch_every=0", "iterations=9"]), CPU)
        run.notes.clear()
        run.execution = Graphs(CpuRecorder())
        with run.execution.running():
            for run.iteration in range(7):
                found.append(iterate(run))
        assert run.notes == []
    assert found[:7] == found[7:]
