"""The device and the precision in which a run computes."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ganlab import system
from ganlab.errors import RecipeError


def pick_device(name: str) -> torch.device:
    """The device for a name: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1` or `mps`.

    :raises RecipeError: when this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
        raise RecipeError(f"--device {name}: it must be auto, cpu, cuda, cuda:N or mps")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise RecipeError(f"--device {name}: this machine has no MPS device; use auto")
        return torch.device("mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise RecipeError(f"--device {name}: this machine has {count} CUDA devices; use auto")
    torch.cuda.init()  # before it CUDA has no random generators and no memory counters
    return torch.device("cuda", int(index or 0))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context of bfloat16 where the recipe asks for it and the device is fast at it, as CUDA is."""
    if precision == "bfloat16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def wants_channels_last(precision: str, device: torch.device) -> bool:
    """Whether networks store their weights channels last, the layout for CUDA's matrix units.

    On a CPU it is slower: 0.8 to 0.95 times the speed on an AMD EPYC, torch 2.15.
    """
    return precision == "bfloat16" and device.type == "cuda"


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device: float64, but float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def choose_numerics(device: torch.device, tf32: bool, deterministic: bool) -> None:
    """Set, for this process, how torch computes on CUDA, as the recipe asks.

    TF32 applies to convolutions only, which is torch's default; matrix products stay in float32.
    """
    if device.type != "cuda":
        return
    # cuBLAS needs this to be deterministic, and reads it at its first use
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = tf32 and not deterministic


@contextmanager
def full_float32() -> Iterator[None]:
    """Context in which no float32 product or convolution is computed in TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def now(device: torch.device) -> float:
    """Seconds on a clock, read after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def begin_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        system.begin_peak_memory()


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since `begin_peak_memory`: by tensors on CUDA, else by the process.

    Outside Linux the peak is counted from the start of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return system.peak_memory()


def free_memory(device: torch.device) -> int:
    """Bytes that are still free: in the device's own memory on CUDA, else in the machine's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return system.available_memory()
