"""The device that is named is the one used, or the command ends before it reads anything."""

import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from children import fresh
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.compare.executors import placement_of
from ganlab.compare.local import device_of_worker
from ganlab.errors import RecipeError
from ganlab.speed import device
from ganlab.speed.device import devices, pick_device

WITH_DEVICE = sorted(
    name
    for name, command in main.commands.items()
    if any("--device" in parameter.opts for parameter in command.params)
)
VARIANTS = [(name,) for name in WITH_DEVICE] + [
    ("bench", "--fit"),
    ("compare", "--jobs", "2"),
    ("run", "--dry-run"),
    ("run", "--continue"),
]
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040)"


def refuse(error: Exception) -> Callable[..., None]:
    def init(*arguments: object) -> None:
        raise error

    return init


def no_gpu(patch: pytest.MonkeyPatch) -> str:
    patch.setattr("torch.cuda.is_available", lambda: False)
    patch.setattr("torch.cuda.init", refuse(RuntimeError("No CUDA GPUs are available\nmore")))
    return "no usable CUDA device: No CUDA GPUs are available; use auto"


def old_driver(patch: pytest.MonkeyPatch) -> str:
    def is_available() -> bool:
        warnings.warn(f"CUDA initialization: {TOO_OLD}", UserWarning, stacklevel=2)
        return False

    patch.setattr("torch.cuda.is_available", is_available)
    patch.setattr("torch.cuda.init", refuse(RuntimeError(f"{TOO_OLD}.\nUpdate it")))
    return f"no usable CUDA device: {TOO_OLD}; use auto"


def without_cuda(patch: pytest.MonkeyPatch) -> str:
    patch.setattr("torch.cuda.is_available", lambda: False)
    patch.setattr("torch.cuda.init", refuse(AssertionError("Torch not compiled with CUDA enabled")))
    return "no usable CUDA device: Torch not compiled with CUDA enabled; use auto"


def hidden_gpus(patch: pytest.MonkeyPatch) -> str:
    """As with CUDA_VISIBLE_DEVICES="" and a check through the driver's own library."""
    gpus(patch, 0)
    return "no usable CUDA device: torch finds 0 devices; use auto"


def gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr("torch.cuda.is_available", lambda: True)
    patch.setattr("torch.cuda.init", lambda: None)
    patch.setattr("torch.cuda.device_count", lambda: count)
    patch.setattr(device, "_begin", lambda device: None)


def required(command: click.Command) -> list[str]:
    """A word for every argument and option that a command must have; none of them exists."""
    words = []
    for parameter in command.params:
        if parameter.required:
            words += [parameter.opts[0]] if isinstance(parameter, click.Option) else []
            words += ["absent"] * (2 if parameter.nargs == -1 else 1)
    return words


def refused(folder: Path, patch: pytest.MonkeyPatch, words: tuple[str, ...], name: str) -> str:
    """The one line with which a command refuses a device; it has made no file."""
    patch.chdir(folder)
    patch.setenv("GANLAB_CACHE", str(folder / "cache"))
    command = main.commands[words[0]]
    arguments = [words[0], *required(command), *words[1:], "--device", name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert (result.stdout, told, list(folder.iterdir())) == ("", [], [])
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("fault", [no_gpu, old_driver, without_cuda, hidden_gpus])
@pytest.mark.parametrize("words", VARIANTS, ids=" ".join)
def test_without_cuda_a_command_ends_with_one_line_before_it_reads_anything(
    words: tuple[str, ...],
    fault: Callable[[pytest.MonkeyPatch], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = fault(monkeypatch)
    said = refused(tmp_path, monkeypatch, words, "cuda")
    assert said == f"--device cuda: this machine has {reason}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda:7", "this machine has cuda:0 to cuda:1; name one of them"),
        ("cuda:99999999999999999999", "this machine has cuda:0 to cuda:1; name one of them"),
        ("mps", "this machine has no MPS device; use auto"),
        *((wrong, "it must be auto, cpu, cuda, cuda:N or mps")
          for wrong in ("nonsense", "cpu:1", "mps:0", "cuda:", "cuda:x", "cuda:²", "CUDA", "")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("words", [(name,) for name in WITH_DEVICE], ids=" ".join)
def test_a_device_that_is_not_there_is_refused_in_one_line(
    words: tuple[str, ...], name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert refused(tmp_path, monkeypatch, words, name) == f"--device {name}: {reason}"


def test_the_commands_that_compute_take_a_device() -> None:
    assert {"run", "resume", "check", "explain", "trace", "bench", "eval", "upscale"} <= {
        *WITH_DEVICE
    }
    assert {"compare", "ablate", "bisect", "verify"} <= {*WITH_DEVICE}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_in_a_new_process_torch_says_nothing_beside_it(tiny: Path) -> None:
    done = fresh("explain", tiny, "--device", "cuda", cwd=tiny.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--device cuda: this machine has no usable CUDA device: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"),
    ],
)
def test_a_gpu_that_cannot_compute_is_one_line(
    fault: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 1)
    general = "\nCUDA kernel errors might be reported asynchronously"
    monkeypatch.setattr(device, "_begin", refuse(type(fault)(f"{fault}{general}")))
    with pytest.raises(RecipeError, match=f"^--device auto: {fault}; use --device cpu$"):
        pick_device("auto")


@pytest.mark.parametrize("fault", [no_gpu, old_driver, without_cuda, hidden_gpus])
def test_auto_is_the_cpu_where_cuda_is_not_usable(
    fault: Callable[[pytest.MonkeyPatch], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(monkeypatch)
    assert placement_of({"device": "auto", "jobs": None, "parent": Path("runs")}).limit == 1
    capsys.readouterr()
    device._say.cache_clear()
    assert [pick_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    # a GPU that could be used and is not is told once; a machine without one is nothing strange
    strange = fault in (old_driver, hidden_gpus)
    assert capsys.readouterr().err.count("note: --device auto takes the CPU") == strange


def test_a_warning_of_torch_about_a_usable_gpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    monkeypatch.setattr("torch.cuda.init", lambda: warnings.warn("old GPU", stacklevel=2))
    with pytest.warns(UserWarning, match="old GPU"):
        assert pick_device("auto").type == "cuda"


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("cuda:1", ["cuda:1", "cuda:1", "cuda:1", "cuda:1"]),
        ("cuda", ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("cpu", ["cpu", "cpu", "cpu", "cpu"]),
        ("mps", ["mps", "mps", "mps", "mps"]),
    ],
)
def test_runs_side_by_side_use_the_devices_that_are_allowed_and_no_other(
    name: str, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 3)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    opened: list[str] = []
    monkeypatch.setattr(device, "_begin", lambda device: opened.append(str(device)))
    found = [device_of_worker(number, name) for number in range(4)]
    assert found == used
    assert opened == []  # a worker opens the device of its run alone, not the first one too


@pytest.mark.parametrize(
    ("name", "jobs", "workers"),
    [("cuda:1", None, 1), ("cuda", None, 3), ("auto", None, 3), ("cpu", None, 1),
     ("mps", None, 1), ("cuda:1", 2, 2), ("cpu", 5, 5)],
)  # fmt: skip
def test_there_is_one_run_at_a_time_on_each_device_that_is_allowed(
    name: str, jobs: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 3)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    options = {"device": name, "jobs": jobs, "parent": Path("runs")}
    assert placement_of(options).limit == workers


def test_the_current_device_is_the_one_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 3)
    opened: list[str] = []
    monkeypatch.setattr(device, "_begin", lambda device: opened.append(str(device)))
    assert pick_device("cuda:2") == torch.device("cuda", 2)
    assert opened == ["cuda:2"]
    assert [str(one) for one in devices("cuda")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert opened == ["cuda:2"]
