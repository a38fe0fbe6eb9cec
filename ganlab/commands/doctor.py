"""What a report of a fault needs: versions, machine, devices, and whether a step works on each."""

import getpass
import os
import platform
import re
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ganlab import system
from ganlab.commands.device_trial import Found, try_device
from ganlab.errors import first_line
from ganlab.images.files import cache_folder
from ganlab.recipe.discovery import offered
from ganlab.runs.environment import describe_environment, installed_packages
from ganlab.speed.device import cuda_fault, devices, free_memory
from ganlab.terminal import Terminal

EXTRAS = ("triton", "spandrel")
"""Packages that are not required: for `compile = "networks"` on CUDA, and for tests."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "GANLAB_CACHE",
    "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_NVML_BASED_CUDA_CHECK",
)  # fmt: skip
"""Environment variables that change how a run computes or where it writes."""


def examine(name: str) -> Found:
    """Everything about this machine that a report of a fault needs, as plain data.

    Home folder and user name are left out of every text.

    :param name: of the device to try, as in `--device`. `auto` tries all devices.
    :returns: `versions`, `machine`, `cache`, `auto`, `devices`, `chosen`, `works`.
    :raises RecipeError: when this machine has no such device.
    """
    chosen = str(devices(name)[0])
    variables = {key: os.environ[key] for key in VARIABLES if key in os.environ}
    tried = [_device(device) for device in (_all_devices() if name == "auto" else devices(name))]
    works = all("fault" not in one["as_written"] for one in tried if one["device"] == chosen)
    found = {
        "versions": _versions(),
        "machine": _machine() | {"variables": variables},
        "cache": _cache(cache_folder()),
        "auto": _auto(),
        "devices": tried,
        "chosen": chosen,
        "works": works,
    }
    return without_names(found)


def _all_devices() -> list[torch.device]:
    cuda = [] if cuda_fault() else devices("cuda")
    mps = [torch.device("mps")] if torch.backends.mps.is_available() else []
    return [torch.device("cpu"), *cuda, *mps]


def _versions() -> dict[str, Any]:
    here = describe_environment(torch.device("cpu"))
    packages = installed_packages()
    distributions: dict[str, int] = {}
    for point in offered():
        name = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
        distributions[name] = distributions.get(name, 0) + 1
    return here["versions"] | {
        "code": here["code"],
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
        "cuDNN": torch.backends.cudnn.version(),
        "driver": nvidia_driver(),
        "plugins": distributions,
        "extras": {name: packages.get(name) for name in EXTRAS},
    }


def nvidia_driver() -> str:
    """Version of NVIDIA's driver and the GPUs that it sees; empty where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi fails: {first_line(error)}"
    return "; ".join(dict.fromkeys((done.stdout or done.stderr).strip().splitlines()))


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": system.processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_free": system.available_memory(),
        "memory_total": system.total_memory(),
        "disk_free_here": shutil.disk_usage(".").free,
    }


def _cache(folder: Path) -> dict[str, Any]:
    """Whether the cache folder can be written, or made; the files of published weights in it."""
    found: dict[str, Any] = {"folder": str(folder), "weights": []}
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        found |= {"exists": there == folder, "free": shutil.disk_usage(there).free}
        with tempfile.TemporaryFile(dir=there):
            pass
        weights = folder / "weights"
        found["weights"] = sorted(path.name for path in weights.iterdir() if path.is_file())
    except FileNotFoundError:  # no weights
        pass
    except OSError as error:
        found["fault"] = error.strerror or str(error)
    return found


def _auto() -> dict[str, str]:
    """What `--device auto` takes here, and why."""
    if fault := cuda_fault():
        return {"device": "cpu", "why": f"no usable CUDA device: {fault}"}
    count = len(devices("cuda"))
    return {
        "device": "cuda:0",
        "why": "the CUDA device" if count == 1 else f"the first of {count} CUDA devices",
    }


def _device(device: torch.device) -> Found:
    """A device: what it is, what settings of a recipe mean on it, and how its trial ended."""
    found: Found = {"device": str(device)}
    try:
        found |= _identity(device)
    except RuntimeError as error:  # a GPU that another program holds, or that fell off the bus
        found["identity_fault"] = first_line(error)
    return found | try_device(device)


def _identity(device: torch.device) -> Found:
    if device.type != "cuda":
        total = system.total_memory()
        return {"name": system.processor_name(), "free": free_memory(device), "total": total}
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "free": free_memory(device),
        "total": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
    }


def without_names(value: Any) -> Any:
    """The same data with `~` for the home folder, and USER for the user's name in other paths."""
    if isinstance(value, dict):
        return {without_names(key): without_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_names(inner) for inner in value]
    if not isinstance(value, str):
        return value
    for pattern, instead in _names():
        value = re.sub(pattern, instead, value)
    return value


def _names() -> Iterator[tuple[str, str]]:
    with suppress(RuntimeError, OSError):  # a user without a home
        for home in dict.fromkeys((Path.home(), Path.home().resolve())):
            if len(home.parts) > 1:
                yield re.escape(str(home)) + r"(?![\w.-])", "~"
    with suppress(KeyError, OSError, ImportError):  # a user without a name
        yield rf"(?<=[/\\]){re.escape(getpass.getuser())}(?![\w.-])", "USER"


# --- as text -------------------------------------------------------------------------------------

WIDTH, LABEL = 80, 17
Row = tuple[str, str]


def show(found: Found) -> None:
    """Print what `examine` found, for a person, and to be pasted."""
    console = Terminal(soft_wrap=True)
    for title, rows in sections(found):
        console.print(title, style="bold")
        for label, text in rows:
            for line in _wrapped(label, text):
                console.print(line)
        console.print()
    chosen = found["chosen"]
    state = "works" if found["works"] else "does not work"
    console.print(f"{chosen} {state}", style="bold")


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"  {label:<{LABEL - 2}}{text}",
        WIDTH,
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def sections(found: Found) -> Iterator[tuple[str, list[Row]]]:
    """The parts of the report: a title, and rows of a label and a text."""
    yield "versions", list(_version_rows(found["versions"]))
    yield "machine", list(_machine_rows(found["machine"], found["cache"]))
    auto = found["auto"]
    yield "devices", [("auto", f"takes {auto['device']}: {auto['why']}")]
    for one in found["devices"]:
        yield f"{one['device']}: {one.get('name', 'unknown')}", list(_device_rows(one))


def _version_rows(versions: dict[str, Any]) -> Iterator[Row]:
    many = versions["plugins"].items()
    yield "ganlab", f"{versions['ganlab']}, code {versions['code'][:12]}"
    yield "plugins", "; ".join(f"{count} of {name}" for name, count in many) or "none"
    for name in ("python", "torch", "torchvision"):
        yield name, versions[name]
    rest = ("numpy", "pillow", "scikit-image", "pluggy")
    yield "others", ", ".join(f"{name} {versions[name]}" for name in rest)
    built = [f"{name} {versions[name]}" for name in ("CUDA", "ROCm") if versions[name]]
    number = versions["cuDNN"]
    built += [f"cuDNN {number // 10000}.{number // 100 % 100}.{number % 100}"] if number else []
    yield "torch brings", ", ".join(built) or "no CUDA"
    yield "NVIDIA driver", versions["driver"] or "none found"
    extras = versions["extras"].items()
    yield "extras", ", ".join(f"{name} {version or 'absent'}" for name, version in extras)


def _machine_rows(machine: dict[str, Any], cache: dict[str, Any]) -> Iterator[Row]:
    yield "system", machine["system"]
    yield "processor", machine["processor"]
    yield "threads", f"{machine['threads']} of torch, on {machine['cores']} cores"
    yield "memory", _of(machine["memory_free"], machine["memory_total"])
    yield "cache", f"{cache['folder']}: {_cache_state(cache)}"
    yield "weights there", ", ".join(cache["weights"]) or "none"
    yield "disk here", f"{_size(machine['disk_free_here'])} free"
    variables = machine["variables"].items()
    yield "variables", " ".join(f"{name}={value}" for name, value in variables) or "none"


def _cache_state(cache: dict[str, Any]) -> str:
    if "fault" in cache:
        return f"cannot be written: {cache['fault']}"
    state = "can be written" if cache["exists"] else "not there yet, can be made"
    return f"{state}, {_size(cache['free'])} free"


def _device_rows(one: Found) -> Iterator[Row]:
    if "identity_fault" in one:
        yield "fault", one["identity_fault"]
    if "free" in one and one["device"] != "cpu":  # that of the machine is told already
        version = f"; CUDA capability {one['capability']}" if "capability" in one else ""
        yield "memory", _of(one["free"], one["total"]) + version
    for name, words in _WAYS.items():
        if found := one.get(name):
            yield from (
                [(name.replace("_", " "), f"FAILS: {found['fault']}")]
                if "fault" in found
                else words(found)
            )
    if not one["device"].startswith("cuda"):
        yield "on CUDA only", "tf32 and bfloat16; here both are float32"


def _as_written(found: Found) -> Iterator[Row]:
    yield "iteration", f"{_ms(found)}, the first {found['first_ms']:,.1f} ms (tiny networks)"
    yield "repeated", f"{_apart(found['repeats_apart'])} after {found['iterations']} iterations"
    auto = "captured steps" if found["compile_auto"] == "graphs" else "steps as written"
    yield "compile", "; ".join([f'"auto": {auto}', *found["notes"]])


def _graphs(found: Found) -> Iterator[Row]:
    apart = f"beside plain steps: {_apart(found['plain_apart'])}"
    yield "captured", "; ".join([_ms(found), apart, *found["notes"]])


def _deterministic(found: Found) -> Iterator[Row]:
    repeated, captured = (_apart(found[name]) for name in ("repeats_apart", "graphs_apart"))
    yield "deterministic", f"repeated: {repeated}; captured: {captured}"


def _bfloat16(found: Found) -> Iterator[Row]:
    yield "bfloat16", f"autocast, {_ms(found)}" + ("" if found["native"] else ", emulated: slow")


def _tf32(found: Found) -> Iterator[Row]:
    with_it, without = (f"{found[name]:.1g}" for name in ("error_with", "error_without"))
    yield "tf32", f"error of a convolution {with_it}; with tf32 = false {without}"


_WAYS = {
    "as_written": _as_written,
    "graphs": _graphs,
    "deterministic": _deterministic,
    "bfloat16": _bfloat16,
    "tf32": _tf32,
}
"""The words for each way of `try_device`."""


def _apart(distance: float) -> str:
    return (
        "equal to the bit"
        if distance == 0
        else f"the weights differ by {distance:.1g} of their way"
    )


def _ms(found: Found) -> str:
    return f"{found['ms']:,.1f} ms"


def _of(free: int, total: int) -> str:
    return f"{free / 2**30:.1f} of {_size(total)} free"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
