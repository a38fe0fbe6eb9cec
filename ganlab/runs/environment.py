"""The environment of a run, for the manifest; a result depends on it as well as on the recipe."""

import hashlib
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from ganlab.system import processor_name

_PACKAGES = ("ganlab", "torch", "torchvision", "numpy", "pillow", "scikit-image", "pluggy")
# parts that show results or start runs, and change no result
_WITHOUT_EFFECT = (
    "api.py", "bench", "checking", "cli", "commands", "compare", "recipes", "report",
    "testing.py", "__main__.py",
)  # fmt: skip


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in _PACKAGES},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "code": code_digest(),
    }


@cache  # reading a hundred files of metadata takes 30 ms
def installed_packages() -> dict[str, str]:
    """The version of every installed distribution, by its name in lower case with hyphens."""
    found: dict[str, str] = {}
    for distribution in distributions():
        about = distribution.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"] or "").lower()
        found.setdefault(name, about["Version"])  # the first on the path is the one imported
    return dict(sorted(found.items()))


@cache
def code_digest() -> str:
    """The sha256 of the source files of ganlab that can change a result."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder)
        if name.parts[0] not in _WITHOUT_EFFECT:
            digest.update(f"{name.as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _git_commit() -> str | None:
    """The commit of the folder in which the run was started, with '+' when files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path.cwd())
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
