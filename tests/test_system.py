"""What a system lacks is met in one place, and a run on Windows or macOS needs none of it."""

import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ganlab import system
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.session import start

REAL_OPEN = os.open


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc is Linux's own."""
    read, write = Path.read_text, Path.write_text

    def absent(path: Path) -> None:
        if path.as_posix().startswith("/proc"):
            raise FileNotFoundError(path)

    def read_text(path: Path, *args: object, **options: object) -> str:
        absent(path)
        return read(path, *args, **options)

    def write_text(path: Path, *args: object, **options: object) -> int:
        absent(path)
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(Path, "write_text", write_text)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch, without_proc: None) -> None:
    """No /proc, no `resource`, no folder that can be opened; psutil knows the memory."""

    def opened(path: str, flags: int, *rest: int, **more: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return REAL_OPEN(path, flags, *rest, **more)

    memory = SimpleNamespace(peak_wset=123)
    psutil = SimpleNamespace(
        Process=lambda: SimpleNamespace(memory_info=lambda: memory),
        virtual_memory=lambda: SimpleNamespace(available=456 * 2**20, total=789 * 2**20),
    )
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr(sys, "platform", "win32")


def test_windows_tells_its_memory_and_syncs_no_folder(windows: None, tmp_path: Path) -> None:
    system.keep_freed_memory()
    system.begin_peak_memory()
    assert (system.peak_memory(), system.available_memory()) == (123, 456 * 2**20)
    assert system.total_memory() == 789 * 2**20
    assert system.processor_name()
    system.sync_folder(tmp_path)


def test_macos_counts_its_peak_memory_in_bytes(
    monkeypatch: pytest.MonkeyPatch, without_proc: None
) -> None:
    usage = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=1000), RUSAGE_SELF=0)
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert system.peak_memory() == 1000
    monkeypatch.setattr("platform.system", lambda: "FreeBSD")
    assert system.peak_memory() == 1000 * 1024


def test_a_run_goes_through_on_windows(windows: None, tiny: Path) -> None:
    folder, code = start(load_recipe(tiny), "cpu", Limits(), tiny.parent / "runs")
    assert code == 0
    assert folder.read_status()["peak_memory"] == 123
    assert len(list(folder.checkpoints.glob("*.sha256"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_linux_counts_the_peak_anew() -> None:
    size = 64 * 2**20
    with mmap.mmap(-1, size) as block:
        block.write(b"x" * size)
        high = system.peak_memory()
    system.begin_peak_memory()
    assert high - system.peak_memory() > size // 2
    assert 2**20 < system.available_memory() < system.total_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_beyond_a_limit_of_the_process_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**24  # room for 16 MiB
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, resource.RLIM_INFINITY))
    assert 0 <= system.available_memory() <= 2**25
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2**20, resource.RLIM_INFINITY))
    assert system.available_memory() == 0


HOLDS = """
import torch
from ganlab import system

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

system.keep_freed_memory()
kept = [torch.ones(2**20) for _ in range(64)]  # 256 MiB
last = torch.ones(16)  # above them, so that the heap cannot shrink from its end
before = resident()
kept.clear()
held = resident()
system.return_freed_memory()
print(before - held, before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps memory")
def test_freed_memory_is_kept_until_it_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, check=True)
    after_free, after_return = map(int, done.stdout.split())
    assert after_free < 64 and after_return > 200, "MiB of 256"
