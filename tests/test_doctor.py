"""`ganlab doctor` says what a report of a fault needs, and names nobody."""

import getpass
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and would look at what a test has replaced
from children import run as ganlab
from click.testing import CliRunner

from ganlab.assembly import choose_execution
from ganlab.cli import main
from ganlab.commands import device_trial, doctor
from ganlab.commands.device_trial import try_device
from ganlab.iteration import iterate
from ganlab.plugin import Batch, Losses
from ganlab.run import Eager, Run, Update
from ganlab.speed.graphs import Graphs
from ganlab.testing.recorder import CpuRecorder

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "people" / "ada"
    folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: folder)
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    return folder


def test_in_a_process_of_its_own_it_reports_and_leaves_nothing(tmp_path: Path) -> None:
    home, here = tmp_path / "people" / "ada", tmp_path / "here"
    home.mkdir(parents=True)
    here.mkdir()
    cache = str(home / "cache")
    surroundings = {"HOME": str(home), "USERPROFILE": str(home), "GANLAB_CACHE": cache}
    done = ganlab("doctor", "--device", "cpu", cwd=here, **surroundings)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "cpu works"
    for row in (
        r"  ganlab ", r"  python ", f"  torch          {torch.__version__.partition('+')[0]}",
        f"  cache          {Path('~/cache')}: not there yet, can be made, ", "  iteration ",
        "  repeated       equal to the bit after 3 iterations",
        '  compile        "auto": steps as written',
        "  variables      ",
    ):  # fmt: skip
        assert any(line.startswith(row) for line in lines), row
    assert f"GANLAB_CACHE={Path('~/cache')}" in done.stdout.split()  # beside those of the tests
    assert str(tmp_path) not in done.stdout
    assert [*home.iterdir(), *here.iterdir()] == []


def test_json_has_the_same_as_data() -> None:
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["chosen"], found["works"]) == ("cpu", True)
    assert [one["device"] for one in found["devices"]] == ["cpu"]
    assert found["versions"]["plugins"].keys() == {f"ganlab {found['versions']['ganlab']}"}
    assert 0 < found["machine"]["memory_free"] < found["machine"]["memory_total"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_fails_is_told_in_one_line_and_the_cpu_is_tried_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = "CUDA error: all CUDA-capable devices are busy or unavailable"

    def set_device(device: torch.device) -> None:
        raise RuntimeError(f"{busy}\nCUDA kernel errors might be reported later")

    monkeypatch.setattr("torch.cuda.init", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", set_device)
    monkeypatch.setattr("torch.cuda.set_device", set_device)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1, result.output
    lines = result.stdout.splitlines()
    assert "  auto           takes cuda:0: the first of 2 CUDA devices" in lines
    assert [line for line in lines if line.startswith(("cpu: ", "cuda:0: ", "cuda:1: "))][1:] == [
        "cuda:0: unknown", "cuda:1: unknown"
    ]  # fmt: skip
    assert sum(line.startswith("  iteration ") for line in lines) == 1  # that of the CPU
    assert f"FAILS: --device cuda:0: {busy}" in " ".join(result.stdout.split())
    assert "reported later" not in result.stdout
    assert lines[-1] == "cuda:0 does not work"


def test_what_fails_on_a_device_is_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(run: Run) -> None:
        next(run.G.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(device_trial, "iterate", spoil)
    fault = try_device(CPU)["as_written"]["fault"]
    assert fault == "FloatingPointError: a weight is not finite after 3 iterations"
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu"])
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "cpu does not work")


def test_runs_that_do_not_repeat_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def drift(run: Run) -> None:
        iterate(run)
        calls.append(run)
        next(run.G.parameters()).data.add_(1e-4 * len(calls))

    assert try_device(CPU)["as_written"]["repeats_apart"] == 0
    monkeypatch.setattr(device_trial, "iterate", drift)
    assert try_device(CPU)["as_written"]["repeats_apart"] > 0.01


class Twice(Eager):
    """A way to take steps that takes each of them twice."""

    def take(self, run: Run, update: Update, batch: Batch) -> Losses:
        update(run, batch)
        return update(run, batch)


@pytest.mark.parametrize(
    ("quick", "equal"), [(lambda: Graphs(CpuRecorder()), True), (Twice, False)]
)
def test_captured_steps_are_measured_beside_plain_ones(
    quick: Callable[[], Eager], equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(run: Run) -> Eager:
        return quick() if run.recipe.compile == "graphs" else choose_execution(run)

    monkeypatch.setattr("ganlab.assembly.choose_execution", choose)
    monkeypatch.setattr(device_trial, "FEW", 6)
    found = device_trial._graphs(CPU)
    assert (found["plain_apart"] == 0, found["notes"]) == (equal, [])
    assert (device_trial._deterministic(CPU)["graphs_apart"] == 0) == equal


def test_the_error_of_full_float32_is_that_of_float32() -> None:
    found = device_trial._tf32(CPU)
    assert 1e-8 < found["error_without"] < 1e-6


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{home}/runs/a.toml: no such file", "~/runs/a.toml: no such file"),
        ("in {home}", "in ~"),
        ("{home}s/b", "/people/USERs/b"),
        ("/scratch/ada/cache", "/scratch/USER/cache"),
        (r"D:\work\ada", r"D:\work\USER"),
        ("adam and /adam/x of ada", "adam and /adam/x of ada"),
    ],
)
def test_neither_home_nor_user_is_named(said: str, told: str, home: Path) -> None:
    found = doctor.without_names({"a": [said.format(home=home)], said.format(home=home): 3})
    if "USERs" in told:  # another folder that begins as the home does
        told = f"{home}s/b"
    assert found == {"a": [told], told: 3}


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "fault" in doctor._cache(tmp_path / "file")
    weights = tmp_path / "cache" / "weights"
    weights.mkdir(parents=True)
    (weights / "vgg.pth").write_text("")
    found = doctor._cache(tmp_path / "cache")
    assert (found["exists"], found["weights"]) == (True, ["vgg.pth"])
    assert "fault" not in found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "file"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (SimpleNamespace(stdout="580.65, RTX\n580.65, RTX\n", stderr=""), "580.65, RTX"),
        (SimpleNamespace(stdout="", stderr="no connection\n"), "no connection"),
        (FileNotFoundError("nvidia-smi"), ""),
        (subprocess.TimeoutExpired("nvidia-smi", 10), "nvidia-smi fails: "),
    ],
)
def test_the_driver_is_asked_for_itself(
    answer: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object, **options: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    driver = doctor.nvidia_driver()
    assert driver.startswith(told) if told.endswith(" ") else driver == told


@pytest.mark.cuda
def test_every_way_works_on_a_gpu() -> None:
    found = try_device(torch.device("cuda", 0))
    assert [name for name, way in found.items() if "fault" in way] == []
    assert found["graphs"]["plain_apart"] < 0.02
    assert found["graphs"]["notes"] == []
    assert found["deterministic"]["repeats_apart"] == 0.0
    assert found["deterministic"]["graphs_apart"] < 1e-5  # the graph reads its step size in float32
    assert found["tf32"]["error_without"] < 1e-6
    assert not torch.are_deterministic_algorithms_enabled()
    result = CliRunner().invoke(main, ["doctor", "--device", "cuda"])
    assert result.exit_code == 0, result.output
