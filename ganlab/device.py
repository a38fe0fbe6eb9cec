"""Where a run computes and in which precision, and what the manifest says of the machine."""

import platform
import subprocess
from contextlib import AbstractContextManager, nullcontext
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
    return torch.device("cuda", int(index or 0))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 autocast where the recipe asks for it and the device is fast at it: CUDA."""
    if precision == "bfloat16" and device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads: what a result depends on beside the recipe."""
    names = ("ganlab", "torch", "torchvision", "numpy", "pillow", "scikit-image", "pluggy")
    return {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Of the folder the run was started in, with '+' when files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path.cwd())
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
