"""The device and the precision in which a run computes."""

import gc
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ganlab import system
from ganlab.errors import RecipeError, first_line


def pick_device(name: str) -> torch.device:
    """The device for a name: the first of `devices`. On CUDA it becomes torch's current device.

    :raises RecipeError: when this machine has no such device, or it is not usable.
    """
    device = devices(name)[0]
    if device.type == "cuda":
        try:
            _begin(device)
        except RuntimeError as error:
            raise RecipeError(f"--device {name}: {first_line(error)}; use --device cpu") from None
    return device


def _begin(device: torch.device) -> None:
    """Make a CUDA device the current one, and compute one number on it.

    :raises RuntimeError: when the device is held by another program or full, or when this torch has
        no kernels for a GPU of this age.
    """
    torch.cuda.set_device(device)  # pinned memory would otherwise use the first one too
    torch.ones(1, device=device).add_(1).item()


def devices(name: str) -> list[torch.device]:
    """The devices that a name allows; runs side by side are spread over them.

    `cuda` allows every CUDA device, `cuda:1` that one alone. `auto` is `cuda` where CUDA is usable,
    else `cpu`. The others are `cpu` and `mps`.

    :raises RecipeError: when this machine has no such device, or it is not usable.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", name):
        raise RecipeError(f"--device {name}: it must be auto, cpu, cuda, cuda:N or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(f"--device {name}: this machine has no MPS device; use auto")
    if name in ("cpu", "mps"):
        return [torch.device(name)]
    fault, strange = _begin_cuda()
    if fault and name == "auto":
        if strange:
            _say(f"note: --device auto takes the CPU, since CUDA is not usable: {fault}")
        return [torch.device("cpu")]
    if fault:
        why = f"this machine has no usable CUDA device: {fault}"
        raise RecipeError(f"--device {name}: {why}; use auto")
    found = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    kind, _, index = name.partition(":")
    if index and int(index) >= len(found):
        last = found[-1]
        raise RecipeError(f"--device {name}: this machine has {kind}:0 to {last}; name one of them")
    return [found[int(index)]] if index else found


def cuda_fault() -> str:
    """Why CUDA is not usable here, in one line; empty when it is."""
    return _begin_cuda()[0]


def _begin_cuda() -> tuple[str, bool]:
    """Begin CUDA: before that it has no random generators and no memory counters.

    :returns: why it is not usable, empty when it is; and whether that is strange: torch then sees a
        GPU or warns of its driver. Without a GPU nothing is strange.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
        try:
            torch.cuda.init()
            fault = "" if torch.cuda.device_count() else "torch finds 0 devices"
        except Exception as error:  # what torch raises here has no common base
            fault = first_line(error)
    if not fault:
        for one in caught:  # such as that this torch has no kernels for the GPU
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return fault, there or bool(caught)


@cache
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context of bfloat16 where the recipe asks for it and the device is fast at it, as CUDA is."""
    if precision == "bfloat16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The CPU does not wait for the copy to CUDA."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
def no_kernel_search() -> Iterator[None]:
    """Context in which cuDNN does not try its kernels for each new size.

    The search pays off in training, where sizes come again. Held-out images have many sizes.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


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


def release_memory(device: torch.device) -> None:
    """Give back the memory that nothing uses any more.

    After an error, call it outside of the `except` block: the error's traceback holds every tensor
    of what failed.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
