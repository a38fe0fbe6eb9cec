"""Where a run computes and in which precision, and what the manifest says of the machine."""

import ctypes
import hashlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ganlab.errors import RecipeError


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`.

    :raises RecipeError: when there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise RecipeError(f"--device {name}: it must be auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise RecipeError(f"--device {name}: this machine has {count} CUDA devices; use auto")
    torch.cuda.init()  # its generators and its counts of memory are not there before
    return torch.device("cuda", int(index or 0))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 autocast where the recipe asks for it and the device is fast at it: CUDA."""
    if precision == "bfloat16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def wants_channels_last(precision: str, device: torch.device) -> bool:
    """Whether networks lay their weights channels last: where the matrix units want them so.

    On a CPU that is slower (0.8 to 0.95 times the speed on an AMD EPYC, torch 2.15).
    """
    return precision == "bfloat16" and device.type == "cuda"


def choose_numerics(device: torch.device, tf32: bool, deterministic: bool) -> None:
    """Set torch, for this process, to how a recipe wants numbers computed on CUDA.

    TF32 for convolutions alone, as is torch's default: matrix products stay in full float32.
    """
    if device.type != "cuda":
        return
    # cuBLAS wants it, and reads it when first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = tf32 and not deterministic


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it float32 is float32: no product and no convolution is computed in TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next step, where it is glibc; for good.

    Left alone it gives the activations of a step back to the system, which must hand them out page
    by page in the next: a sixth of the time of a step of SRResNet and a VGG discriminator on two
    cores, for which a fiftieth more memory is in use at its peak.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(setting, 2**28)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def begin_peak_memory(device: torch.device) -> None:
    """Count the peak memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux only: the high-water mark of this process starts anew
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use since `begin_peak_memory`: of tensors on CUDA, of the process on a CPU.

    Where the system cannot start the mark anew (not Linux), since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the device's own memory on CUDA, of the machine's else."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(li.split()[1] for li in lines if li.startswith("MemAvailable")))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads: what a result depends on beside the recipe."""
    names = ("ganlab", "torch", "torchvision", "numpy", "pillow", "scikit-image", "pluggy")
    return {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else _processor(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "code": code_digest(),
    }


def _processor() -> str:
    with suppress(OSError, StopIteration):  # Linux; elsewhere platform knows the model itself
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(li.partition(": ")[2] for li in lines if li.startswith("model name"))
    return platform.processor() or platform.machine()


def code_digest() -> str:
    """The sha256 of ganlab's own source files: equal digests, the same engine.

    Reports and benchmarks are left out, for they change no result.
    """
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    apart = {file for part in ("report", "bench") for file in folder.glob(f"{part}/*")}
    for file in sorted(set(folder.rglob("*.py")) - apart):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _git_commit() -> str | None:
    """Of the folder the run was started in, with '+' when files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path.cwd())
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
