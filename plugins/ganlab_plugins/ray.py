"""Ray: runs on the machines of a Ray cluster."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from ganlab import Executor, Handle, Lost, Outcome, RecipeError, Sent, Task

WAIT_SECONDS = 0.2
MOST_WAITING = 16
"""Messages with files that may wait for the command; a worker that has more waits with them."""


class Ray(Executor):
    """Makes each run as one task of Ray (Moritz et al. 2018, arXiv:1712.05889).

    Every machine needs the same ganlab, and the data under the same path. With `shared`, all see
    the folder of runs under the same path too; without it, workers send the files of their runs to
    the command while they go on.
    """

    package: ClassVar[str] = "ray"
    extra: ClassVar[str] = "ganlab[ray]"

    address: str = "local"
    """Of the cluster, as `ray.init` takes it: "auto" or "host:6379". "local": one on this machine,
    for the time of the command."""
    cpus: float = Field(1, gt=0)
    """Processors that Ray sets aside for a run. Torch takes as many threads."""
    gpus: float | None = Field(None, gt=0)
    """GPUs that Ray sets aside for a run on CUDA; half a GPU is 0.5. By default one."""
    shared: bool = True
    """Whether all machines see the folder of runs under the same path."""

    _began: bool = PrivateAttr(False)
    _train: Any = PrivateAttr(None)
    _post: Any = PrivateAttr(None)
    _open: dict[int, "_Running"] = PrivateAttr(default_factory=dict)
    _count: int = PrivateAttr(0)

    def check(self, device: str) -> None:
        super().check(device)
        if self.gpus and device == "cpu":
            raise RecipeError("--executor-option gpus: has no effect with --device cpu")

    def begin(self, parent: Path, device: str, at_a_time: int | None, apart: bool) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of that
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            quiet["include_dashboard"] = False
        self._began = not ray.is_initialized()
        if self._began:
            try:
                ray.init(self.address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                fault = str(error).partition("\n")[0]
                raise RecipeError(
                    f"--executor-option address={self.address}: no Ray cluster there: {fault}"
                ) from None
        gpus = (self.gpus or 1) if device == "cuda" else 0
        self._require(ray.cluster_resources(), {"CPU": self.cpus, "GPU": gpus})
        # the core hands a lost run out again, and counts that
        self._train = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=0)(_train)
        if not self.shared:
            from ray.util.queue import Queue

            self._post = Queue(MOST_WAITING, actor_options={"num_cpus": 0})

    def _require(self, there: dict[str, float], needs: dict[str, float]) -> None:
        """Refuse runs that no machine will ever have room for."""
        for name, need in needs.items():
            if need > there.get(name, 0):
                raise RecipeError(
                    f"--executor ray: a run needs {need:g} {name}s, and the whole cluster has "
                    f"{there.get(name, 0):g}"
                )

    def submit(self, task: Task) -> Handle:
        self._count += 1
        if self.shared:
            return _Running(self._train.remote(task, self._count, None))
        reference = self._train.remote(task.packed(), self._count, self._post)
        self._open[self._count] = _Running(reference, task.receiver(), self._collect)
        return self._open[self._count]

    def wait(self, handles: Sequence[Handle]) -> None:
        import ray

        references = [h.reference for h in handles if isinstance(h, _Running)]
        ray.wait(references, timeout=WAIT_SECONDS, fetch_local=False)
        self._collect()

    def _collect(self) -> None:
        """Write what workers have sent."""
        while self._post is not None and not self._post.empty():
            number, sent = self._post.get()
            if number in self._open:
                self._open[number].take(sent)

    def end(self) -> None:
        import ray

        for running in self._open.values():
            running.close()
        self._open.clear()
        if self._began:
            ray.shutdown()


class _Running(Handle):
    """A task at work, or in Ray's queue."""

    def __init__(
        self,
        reference: Any,
        receiver: Any = None,
        collect: Callable[[], object] = lambda: None,
    ) -> None:
        """:param receiver: when its worker sends the files of the run.

        :param collect: lets the receivers have what was sent.
        """
        self.reference, self._receiver, self._collect = reference, receiver, collect

    def take(self, sent: Sent) -> None:
        self._receiver.take(sent)

    def close(self) -> None:
        if self._receiver:
            self._receiver.close()

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self.reference], timeout=0, fetch_local=False)[0])

    def outcome(self) -> Outcome:
        import ray
        from ray.exceptions import RayError, TaskCancelledError

        try:
            found: Outcome = ray.get(self.reference)
        except TaskCancelledError:
            raise Lost("it was called off before it began") from None
        except RayError as error:
            raise Lost(_reason(error)) from None
        finally:
            self._collect()
            self.close()
        return replace(found, folder=self._receiver.folder) if self._receiver else found

    def call_off(self) -> None:
        import ray

        ray.cancel(self.reference)  # a worker gets it as Ctrl-C


def _reason(error: Exception) -> str:
    """What Ray says of a lost worker, in short."""
    return f"{type(error).__name__}: {str(error).strip().partition('.')[0]}"


def _train(task: Task, number: int, post: Any) -> Outcome:
    """What a worker does."""
    if post is None:
        return task.train()
    return task.train(send=lambda sent: post.put((number, sent)))
