"""The executor on this machine: runs in this process, or each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import PrivateAttr

from ganlab.speed.device import devices, pick_device, release_memory
from ganlab.stopping import SIGTERMED, exit_code, heard, heeding, held
from ganlab.system import interrupt
from ganlab.toolbox.executor import LOOK_SECONDS, Executor, Handle, Lost, Outcome, Task


class Local(Executor):
    """Carries out runs on this machine, by default one on each CUDA device.

    One at a time, they are made in this process; else each in a process of its own.
    """

    elsewhere: ClassVar[bool] = False

    _device: str = PrivateAttr("")
    _workers: list["_Worker | None"] = PrivateAttr(default_factory=list)
    _apart: bool = PrivateAttr(True)
    _deaf: bool = PrivateAttr(False)

    def check(self, device: str) -> None:
        devices(device)

    def kind(self, device: str) -> str:
        return devices(device)[0].type

    def at_a_time(self, device: str) -> int:
        return len(devices(device))

    def begin(self, parent: Path, device: str, at_a_time: int | None, apart: bool) -> None:
        self._device = device
        self._workers = [None] * (at_a_time or 1)
        self._apart = apart or len(self._workers) > 1
        self._deaf = apart

    def submit(self, task: Task) -> Handle:
        if not self._apart:
            return _InThisProcess(task, self._device)
        number = next(n for n, one in enumerate(self._workers) if not one or one.is_free())
        worker = self._workers[number]
        if worker is None or worker.is_spent:
            if worker:
                worker.end()
            worker = _Worker(number, self._device, len(self._workers), self._deaf)
            self._workers[number] = worker
        return worker.train(task)

    def wait(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            if isinstance(handle, _InThisProcess):
                handle.train()
                return
        futures = [handle.future for handle in handles if isinstance(handle, _InAWorker)]
        wait_for(futures, LOOK_SECONDS, "FIRST_COMPLETED")

    def end(self) -> None:
        for worker in self._workers:
            if worker:
                worker.end()
        self._workers = []


class _InThisProcess(Handle):
    """A task that is carried out when somebody waits for it."""

    def __init__(self, task: Task, device: str) -> None:
        self._task, self._device = task, device
        self._outcome: Outcome | None = None

    def train(self) -> None:
        self._outcome = self._task.train()
        release_memory(pick_device(self._device))

    def done(self) -> bool:
        return self._outcome is not None

    def outcome(self) -> Outcome:
        assert self._outcome
        return self._outcome

    def call_off(self) -> None:
        self._outcome = self._outcome or Outcome(None, exit_code(heard()))


class _Worker:
    """A process that trains one run after the other.

    It is a pool of its own, so that its death breaks no other worker.
    """

    def __init__(self, number: int, device: str, workers: int, deaf: bool) -> None:
        """:param deaf: whether a Ctrl-C in the terminal, which reaches it too, leaves it alone."""
        # spawned, because CUDA does not work after a fork
        context = multiprocessing.get_context("spawn")
        # nothing is ever sent: the worker notices that our end is closed, also by a kill
        self._theirs, self._ours = context.Pipe(duplex=False)
        arguments = (number, self._theirs, device, workers, deaf)
        self._pool = ProcessPoolExecutor(1, context, _begin_worker, arguments)
        self._future: Future[Outcome] | None = None
        self.is_spent = False
        """Whether it takes no further task: its process is gone, or is told to end."""

    def train(self, task: Task) -> "_InAWorker":
        self._future = self._pool.submit(_train_quietly, task)
        return _InAWorker(self, self._future)

    def is_free(self) -> bool:
        return self._future is None or self._future.done()

    def call_off(self) -> None:
        self.is_spent = True
        self._ours.close()

    def end(self) -> None:
        self._ours.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._theirs.close()


class _InAWorker(Handle):
    def __init__(self, worker: _Worker, future: "Future[Outcome]") -> None:
        self._worker, self.future = worker, future

    def done(self) -> bool:
        return self.future.done()

    def outcome(self) -> Outcome:
        try:
            return self.future.result()
        except BrokenProcessPool:
            self._worker.is_spent = True
            raise Lost("its process was killed") from None

    def call_off(self) -> None:
        self._worker.call_off()


def device_of_worker(number: int, name: str) -> str:
    """The device of a worker process: the workers take turns among the devices of this name."""
    allowed = devices(name)
    return str(allowed[number % len(allowed)])


_device = "cpu"  # the device of this worker process
_idle = threading.Event()
_life = ExitStack()


def _begin_worker(number: int, lifeline: Connection, device: str, workers: int, deaf: bool) -> None:
    global _device
    if deaf:
        for name in ("SIGINT", "SIGHUP", "SIGBREAK"):  # what a terminal sends to all its processes
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
    # a run handles signals itself; one that comes between runs is noted, and ends the next
    _life.enter_context(heeding())
    _life.enter_context(held())
    _idle.set()
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    _device = device_of_worker(number, device)
    if not _device.startswith("cuda"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # no bars of several runs on one line


def _end_with_parent(lifeline: Connection) -> None:
    """Stop the run at work when the parent says so or is gone; then end, if it is gone."""
    family = multiprocessing.parent_process()
    assert family
    wait([lifeline, family.sentinel])
    interrupt(signal.SIGTERM)
    family.join()
    _idle.wait()
    os._exit(SIGTERMED)


def _train_quietly(task: Task) -> Outcome:
    _idle.clear()
    try:
        if heard() is not None:  # between its beginning and now
            return Outcome(None, exit_code(heard()))
        return task.train(_device)
    finally:
        _idle.set()
