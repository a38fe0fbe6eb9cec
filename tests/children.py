"""`ganlab ...` in a process of its own, forked from one that has imported torch.

The import takes longer than most commands of a test. So it happens once: a server process imports
torch and ganlab, and each command is a fork of it. A fork can be killed and signalled like any
other process. Where the system has no such server (Windows), a new Python is started.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

METHODS = multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
if "forkserver" in METHODS:
    # torch imports Dynamo when the first optimizer is made
    CONTEXT.set_forkserver_preload(["ganlab.compare.comparison", "torch._dynamo"])


def _begin(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    cwd: Path,
    environment: dict[str, str],
    output: list[str],
) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, to which a test may send Ctrl-C
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(cwd), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    for descriptor, name in enumerate(output, 1):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    function(*arguments)


def _ganlab(*arguments: str) -> None:
    sys.argv = ["ganlab", *arguments]
    from ganlab.cli import main

    main()


def _end(process: BaseProcess, folder: Path) -> None:
    if process.is_alive():  # its test has failed
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


class Child:
    """A command at work, killed with its object; methods as of `subprocess.Popen`.

    :param function: what to call with the arguments instead of `ganlab`.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        function: Callable[..., object] = _ganlab,
        **environment: str,
    ) -> None:
        self.args = [*map(str, arguments)]
        self._folder = Path(tempfile.mkdtemp())
        output = [str(self._folder / name) for name in ("stdout", "stderr")]
        self._process = CONTEXT.Process(
            target=_begin,
            args=(function, tuple(self.args), cwd, dict(os.environ) | environment, output),
        )
        self._process.start()
        weakref.finalize(self, _end, self._process, self._folder)

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def _read(self, name: str) -> str:
        file = self._folder / name
        return file.read_text(encoding="utf-8") if file.exists() else ""


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    child = Child(*arguments, cwd=cwd, **environment)
    child.wait()
    return subprocess.CompletedProcess(child.args, child.returncode, child.stdout, child.stderr)


def fresh(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new Python, as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "ganlab", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def wait_until(condition: Callable[[], bool], child: Child, seconds: float = 120) -> None:
    """Wait for a condition while the command is at work."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, child.stderr
        assert time.monotonic() < deadline, child.stderr
        time.sleep(0.01)
