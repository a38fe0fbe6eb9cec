"""The runs of a plan at work: handed to an executor, awaited, handed out again when one is lost."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from ganlab.compare.plan import Job, make_plan
from ganlab.compare.task import task_of
from ganlab.ending import DIVERGED, DONE, FAILED, UNHEALTHY
from ganlab.errors import GanlabError
from ganlab.runs.folder import RunFolder
from ganlab.stopping import Stopped, exit_code, heard, held
from ganlab.toolbox.executor import Executor, Handle, Lost, Outcome

FINISHED = (DONE, DIVERGED, UNHEALTHY)
"""The exit codes of a run that is a result."""

SAVING = "saving the runs in progress"
FINISHING = "no more runs begin; those in progress go on to their end"


class Interrupted(GanlabError):  # noqa: N818  # it names an outcome
    """A signal stopped the comparison; the runs in progress are saved, or finished."""

    def __init__(self, code: int) -> None:
        super().__init__("interrupted; the same command continues where it stopped")
        self.exit_code = code


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the runs of a command are carried out, and how."""

    executor: Executor
    parent: Path
    """The folder that holds the run folders."""
    device: str
    """On which runs compute, as the user named it."""
    at_a_time: int | None = None
    """Runs at a time; None: as many as the executor takes."""
    on_interrupt: Literal["save", "finish"] = "save"
    """What a signal does with the runs in progress."""
    apart: bool = False
    """Whether runs are never made in this process, so that one can be called off while it goes
    on."""

    @property
    def here(self) -> str:
        """The device for what is done in this process: looking up data, timing iterations."""
        return "cpu" if self.executor.elsewhere else self.device

    @property
    def kind(self) -> str:
        """The kind of device on which the runs compute."""
        return self.executor.kind(self.device)

    @property
    def limit(self) -> int | None:
        """Runs at a time, by `--jobs` or by the executor; None: all at once."""
        return self.at_a_time or self.executor.at_a_time(self.device)

    def found(self, job: Job) -> Job:
        """The job as it is now, with the folder of its run."""
        (found,) = make_plan([job.variant], [job.seed], self.parent, self.here, kind=self.kind)
        return replace(found, data=job.data, limits=job.limits)


Result = tuple[Job, int, str]
"""A job with its folder, the exit code of its run, and its error, empty if there was none."""


@dataclass(slots=True)
class _AtWork:
    job: Job
    handle: Handle
    called_off: bool = False


@dataclass
class Crew:
    """Carries out jobs by an executor.

        with Crew(placement, say) as crew:
            crew.add(job)
            for job, code, fault in crew.results():
                ...  # may add more jobs, and call off those at work

    Leaving the context calls off what is still at work, and waits until it is saved.
    """

    placement: Placement
    say: Callable[[str], None]
    begins: Callable[[Job], object] = lambda job: None
    """Called when a job is handed out."""
    given_up: list[Job] = field(default_factory=list)
    """Those whose worker was lost too often."""
    _limit: int | None = None
    _waiting: list[Job] = field(default_factory=list)
    _at_work: list[_AtWork] = field(default_factory=list)
    _lost: dict[str, int] = field(default_factory=dict)
    """How often the worker of a job was lost."""
    _obeyed: bool = False
    _life: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        where = self.placement
        finish = where.on_interrupt == "finish"
        self._limit = where.limit
        apart = finish or where.apart
        if finish:
            self._life.enter_context(held(FINISHING, "save them and end"))
        else:  # one run in this process says itself what it does
            self._life.enter_context(held("" if self._limit == 1 and not apart else SAVING))
        where.executor.begin(where.parent, where.device, self._limit, apart)
        self._life.callback(where.executor.end)
        return self

    def __exit__(self, *error: object) -> None:
        with self._life:
            if not isinstance(error[1], Stopped):  # a second signal: at once
                self._waiting.clear()
                self._call_all_off()
                while self._at_work:
                    self._pause()
                    for _ in self._ended():
                        pass  # how they ended is in their folders

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        self._waiting.append(job)

    def call_off(self, job: Job) -> None:
        """Have a job's run saved and ended, or take it out of the queue.

        Its result comes with the exit code of a stopped run; from the queue none comes.
        """
        self._waiting = [one for one in self._waiting if str(one) != str(job)]
        for each in self._at_work:
            if str(each.job) == str(job):
                each.called_off = True
                each.handle.call_off()

    def results(self) -> Iterator[Result]:
        """The results of all jobs as they end, until none is left.

        :raises Interrupted: at a signal that asks to end, after the runs in progress have ended.
        :raises GanlabError: when a run cannot begin.
        """
        while self._waiting or self._at_work:
            if heard() is None:
                self._hand_out()
            self._pause()
            if heard() is not None:
                self._obey()
            for each, outcome in self._ended():
                if (result := self._result(each, outcome)) is not None:
                    yield result
        if (number := heard()) is not None:
            raise Interrupted(exit_code(number))

    def _hand_out(self) -> None:
        where = self.placement
        while self._waiting and (self._limit is None or len(self._at_work) < self._limit):
            job = self._waiting.pop(0)
            self.begins(job)
            task = task_of(job, where.parent, where.device, where.executor)
            self._at_work.append(_AtWork(job, where.executor.submit(task)))

    def _pause(self) -> None:
        if not self._at_work:
            return
        try:
            self.placement.executor.wait([each.handle for each in self._at_work])
        except Stopped:  # the second signal
            if self.placement.on_interrupt == "save":
                raise
            self.say(SAVING)
            self._call_all_off()

    def _obey(self) -> None:
        """What the first signal asks for."""
        if self._obeyed:
            return
        self._obeyed = True
        self._waiting.clear()
        if self.placement.on_interrupt == "save":
            self._call_all_off()

    def _call_all_off(self) -> None:
        for each in self._at_work:
            each.called_off = True
            each.handle.call_off()

    def _ended(self) -> Iterator[tuple[_AtWork, Outcome | Lost]]:
        """Those that have ended since the last look; they are at work no more."""
        for each in [one for one in self._at_work if one.handle.done()]:
            self._at_work.remove(each)
            try:
                yield each, each.handle.outcome()
            except Lost as lost:
                yield each, lost

    def _result(self, each: _AtWork, outcome: Outcome | Lost) -> Result | None:
        """The result of a job; None when it is handed out again."""
        if isinstance(outcome, Lost):
            return self._after_loss(each, str(outcome))
        if outcome.refusal:
            raise outcome.refusal
        code = outcome.code
        stopped = code not in (*FINISHED, FAILED)
        if stopped and not each.called_off and heard() is None:
            if not self.placement.executor.elsewhere:  # a signal to the worker alone
                raise Interrupted(code)
            return self._after_loss(each, "it was stopped there")
        finished = code in FINISHED
        return replace(each.job, folder=outcome.folder, finished=finished), code, outcome.fault

    def _after_loss(self, each: _AtWork, reason: str) -> Result | None:
        found = self.placement.found(each.job)
        if found.finished:  # it had just ended
            return found, DONE, ""
        if heard() is not None or each.called_off:
            return found, exit_code(heard()), ""
        times = self._lost.get(str(found), 0) + 1
        self._lost[str(found)] = times
        most = self.placement.executor.retries
        if times > most:
            self.given_up.append(found)
            return found, FAILED, f"its worker was lost {times} times: {reason}"
        on = "goes on from its newest checkpoint" if found.folder else "begins again"
        self.say(
            f"{found}: its worker was lost ({reason}); it {on}, {times} of at most {most} times"
        )
        self._waiting.insert(0, found)
        return None


def carry_out(jobs: Sequence[Job], placement: Placement, say: Callable[[str], None]) -> list[Job]:
    """Make or finish every run of a plan; returns the jobs with their folders.

    A run that fails does not stop the others: its error is printed, and its job is returned
    unfinished.

    :raises Interrupted: at a signal that asks to end, after the runs in progress are saved.
    :raises GanlabError: when a run cannot begin; when all others have ended and one has lost its
        worker too often.
    """
    if any(job.finished for job in jobs):
        say(f"{sum(job.finished for job in jobs)} of {len(jobs)} runs exist already")
    waiting = [job for job in jobs if not job.finished]
    done: dict[str, Job] = {}
    if not waiting:
        return [*jobs]
    numbers = {str(job): number for number, job in enumerate(waiting, 1)}

    def begins(job: Job) -> None:
        if placement.limit == 1:
            how = "continuing" if job.folder else "starting"
            say(f"{how} run {numbers[str(job)]} of {len(waiting)}: {job}")

    with Crew(placement, say, begins) as crew:
        if placement.limit != 1:
            say(f"{len(waiting)} runs, {placement.limit or 'all'} at a time")
        for job in waiting:
            crew.add(job)
        for job, code, fault in crew.results():
            if code not in (*FINISHED, FAILED):  # it is saved; the command is about to end
                continue
            done[str(job)] = job
            number = len(done)
            state = RunFolder(job.folder).read_status().get("state") if job.folder else "failed"
            what = f"failed: {fault}" if code == FAILED else str(state)
            say(f"{number} of {len(waiting)}: {job}: {what}, {job.folder}")
    if crew.given_up:  # a table of runs that have not reached their end would mislead
        names = ", ".join(map(str, crew.given_up))
        raise GanlabError(f"not finished: {names}; the same command goes on with what is there")
    return [done.get(str(job), job) for job in jobs]
