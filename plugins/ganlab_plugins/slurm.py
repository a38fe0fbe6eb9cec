"""Slurm, through submitit: each run as a job, which goes on when it was preempted."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from ganlab import Executor, GanlabError, Handle, Lost, Outcome, RecipeError, Task

FOLDER = ".slurm"
"""In the folder of runs: what submitit keeps of its jobs, and what they print."""


class Slurm(Executor):
    """Makes each run as one job of Slurm (Yoo et al. 2003, JSSPP), by submitit.

    All machines see the folder of runs, the data and ganlab under the same paths. Before its time
    is over, and when it is preempted, a job gets SIGUSR1: the run is saved, and the job is put back
    into the queue, where it goes on.
    """

    package: ClassVar[str] = "submitit"
    extra: ClassVar[str] = "ganlab[slurm]"

    minutes: int = Field(240, gt=0)
    """Time limit of a job. A run that needs longer goes on in the same job, queued again."""
    partition: str = ""
    """Partition; by default Slurm's own choice."""
    account: str = ""
    """Account to which the time is charged."""
    cpus: int = Field(4, gt=0)
    """Processors for a run."""
    gpus: int = Field(1, gt=0)
    """GPUs for a run on CUDA. A run uses one."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory for a run, in GB; by default Slurm's own choice."""
    setup: list[str] = []
    """Lines of the shell before Python begins, such as ["module load cuda"]."""
    more: dict[str, str | int] = {}
    """Further options of sbatch by their long names, such as { qos = "low" }."""
    save_seconds: int = Field(90, gt=0)
    """How long before the end of its time a job gets the signal."""
    requeues: int = Field(20, ge=0)
    """How often a job that has used up its time is queued again."""
    cluster: Literal["slurm", "local"] = "slurm"
    """"local" begins the jobs on this machine, without Slurm, to try the rest."""

    _executor: Any = PrivateAttr(None)

    def check(self, device: str) -> None:
        super().check(device)
        if self.cluster == "slurm" and not shutil.which("sbatch"):
            raise RecipeError(
                "--executor slurm: there is no sbatch on this machine; type the command on a login "
                "node of the cluster"
            )

    def begin(self, parent: Path, device: str, at_a_time: int | None, apart: bool) -> None:
        # ganlab saves at SIGUSR1; it is read when submitit is imported, also in the jobs
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
        import submitit

        submitit.JobEnvironment.USR_SIG = "USR1"
        folder = parent.resolve() / FOLDER / "%j"
        self._executor = submitit.AutoExecutor(
            folder, cluster=self.cluster, slurm_max_num_timeout=self.requeues
        )
        parameters: dict[str, Any] = {
            "name": "ganlab",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus if device == "cuda" else 0,
            "slurm_partition": self.partition or None,
            "slurm_account": self.account or None,
            "mem_gb": self.memory_gb,
            "slurm_setup": self.setup,
            "slurm_signal_delay_s": self.save_seconds,
            "slurm_additional_parameters": self.more,
        }
        self._executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})

    def submit(self, task: Task) -> Handle:
        from submitit.core.utils import FailedJobError

        try:
            return _Job(self._executor.submit(_Training(), task))
        except FailedJobError as error:
            raise GanlabError(f"--executor slurm: sbatch: {_line(error)}") from None


class _Job(Handle):
    """A job of Slurm, in the queue or at work."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def done(self) -> bool:
        return bool(self._job.done())

    def outcome(self) -> Outcome:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            found: Outcome = self._job.result()
        except (FailedJobError, UncompletedJobError) as error:
            raise Lost(f"job {self._job.job_id}: {_line(error)}") from None
        return found

    def call_off(self) -> None:
        if self._job.state == "PENDING":
            self._job.cancel()


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


class _Training:
    """What a job does. submitit asks `checkpoint` for what the job does when it begins again."""

    def __call__(self, task: Task) -> Outcome:
        from submitit import JobEnvironment

        requeue = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        outcome = task.train()
        if outcome.stopped_by in (requeue, signal.SIGTERM):  # Slurm sends this one first
            # the run is saved; now submitit may have the signal, and queue the job again
            signal.raise_signal(requeue)
        return outcome

    def checkpoint(self, task: Task) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)
