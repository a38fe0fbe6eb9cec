"""What differs between Linux, macOS and Windows, each thing in one function."""

import ctypes
import os
import platform
import signal
from contextlib import suppress
from pathlib import Path

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals at which a run finishes its iteration, saves and ends."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, where it is glibc; for good.

    Otherwise glibc returns the activations of a step to the system, which must hand them out page
    by page in the next step: a sixth of the time of a step of SRResNet and a VGG discriminator on
    two cores. Keeping them takes a fiftieth more memory at the peak.
    """
    if platform.system() != "Linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(setting, 2**28)


def begin_peak_memory() -> None:
    """Count the peak memory of this process from here on; only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes that this process had in memory at most, since `begin_peak_memory` or its start."""
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def available_memory() -> int:
    """Bytes of the machine's memory that a process may still take."""
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(found)
    import psutil  # installed where this line is reached

    return int(psutil.virtual_memory().available)


def processor_name() -> str:
    """The model of the processor."""
    with suppress(OSError, StopIteration):  # Linux; the others tell it to `platform`
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk. Windows has no such call and needs none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
