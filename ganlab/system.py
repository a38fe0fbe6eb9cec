"""Differences between Linux, macOS and Windows, each in one function."""

import _thread
import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
    if hasattr(signal, name)
)
"""The signals at which a run finishes its iteration, saves and ends.

SIGHUP is a closed terminal. SIGUSR1 is what Slurm sends some time before a job's time is up.
Windows has neither, but SIGBREAK: Ctrl-Break, or a closed window.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step, until the process ends.

    Otherwise glibc returns the memory of a step's activations to the system, which must give it
    out page by page in the next step. That takes a sixth of the time of a step of SRResNet and a
    VGG discriminator on two cores. Keeping it takes a fiftieth more memory at the peak. The copy
    that a checkpoint is written from also fits into memory that is kept. With another C library
    this does nothing.
    """
    if platform.system() != "Linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**28)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return to the system the memory that `keep_freed_memory` kept, once."""
    if platform.system() != "Linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def begin_peak_memory() -> None:
    """Count the peak memory of this process from here on; only on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak memory of this process in bytes, since `begin_peak_memory` or since its start."""
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def available_memory() -> int:
    """Bytes of memory that this process may still take: of the machine's, within `ulimit -v`."""
    free = _memory("MemAvailable", "available")
    with suppress(ImportError, OSError):  # Linux
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        free = free if limit == resource.RLIM_INFINITY else min(free, max(0, limit - taken))
    return free


def total_memory() -> int:
    """Bytes of memory that the machine has."""
    return _memory("MemTotal", "total")


def _memory(line: str, attribute: str) -> int:
    """Bytes, by the name of a line of Linux's /proc/meminfo, and that of psutil's attribute."""
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(each.split()[1] for each in lines if each.startswith(line)))
    import psutil  # installed on every system but Linux

    return int(getattr(psutil.virtual_memory(), attribute))


def processor_name() -> str:
    """The model of the processor."""
    with suppress(OSError, StopIteration):  # Linux; on others `platform` knows it
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def as_one_name(path: str) -> str:
    """A text that is equal for two paths if the file system may take them for one file.

    Windows and macOS ignore the case of letters. macOS also ignores how accents are written.
    """
    if sys.platform == "darwin":
        return unicodedata.normalize("NFC", path).casefold()
    return os.path.normcase(path)


def sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk. Windows has no such call and needs none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open a folder
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(process: int) -> bool:
    """Whether a process of this number runs on this machine, whoever's it is."""
    if sys.platform == "win32":
        import psutil

        return bool(psutil.pid_exists(process))
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def own_group() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a program that Ctrl-C of this terminal does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def interrupt(number: int) -> None:
    """Send this process a signal from a thread of its own, for the handler in its main thread."""
    if sys.platform == "win32":
        _thread.interrupt_main(number)  # os.kill would end the process
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # it also ends a wait
