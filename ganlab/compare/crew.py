"""The runs of a plan at work: handed to an executor, awaited, handed out again when one is lost."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from rich.console import Console

from ganlab.compare.plan import Job, make_plan
from ganlab.compare.progress import Progress, showing
from ganlab.compare.task import task_of
from ganlab.compare.ticket import Ticket
from ganlab.ending import DIVERGED, DONE, FAILED, UNHEALTHY
from ganlab.errors import GanlabError
from ganlab.recipe.model import resolved
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

    @property
    def is_apart(self) -> bool:
        """Whether runs are made in other processes than this one."""
        alone = self.limit == 1 and not self.apart and self.on_interrupt == "save"
        return self.executor.elsewhere or not alone

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
    ticket: Ticket | None
    called_off: bool = False

    def call_off(self) -> None:
        self.called_off = True
        if self.ticket:
            self.ticket.withdraw()
        self.handle.call_off()

    def is_taken_over(self) -> bool:
        """Whether a later command makes this run now."""
        return not self.called_off and self.ticket is not None and not self.ticket.holds()


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
    looks: Callable[[], object] = lambda: None
    """Called now and then while runs are at work in other processes."""
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
        if finish:
            self._life.enter_context(held(FINISHING, "save them and end"))
        else:  # one run in this process says itself what it does
            self._life.enter_context(held(SAVING if where.is_apart else ""))
        if where.executor.elsewhere:  # their libraries print; stdout is for the result
            self._life.enter_context(redirect_stdout(sys.stderr))
        where.executor.begin(where.parent, where.device, self._limit, finish or where.apart)
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
                each.call_off()

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
            self._at_work.append(_AtWork(job, where.executor.submit(task), task.ticket))

    def _pause(self) -> None:
        if not self._at_work:
            return
        try:
            self.placement.executor.wait([each.handle for each in self._at_work])
            self.looks()
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
            each.call_off()

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
        if each.is_taken_over():
            raise GanlabError(f"{each.job}: another command makes this run now, so this one ends")
        if each.ticket:
            each.ticket.withdraw()
        if isinstance(outcome, Lost):
            return self._after_loss(each, str(outcome))
        if outcome.refusal:
            raise outcome.refusal
        code = outcome.code
        stopped = code not in (*FINISHED, FAILED)
        if stopped and not each.called_off and heard() is None:
            if not self.placement.executor.elsewhere:  # a signal to the worker alone
                raise Interrupted(code)
            return self._after_loss(each, outcome.fault or "it was stopped there")
        folder = outcome.folder and self.placement.parent / outcome.folder.name
        finished = code in FINISHED
        return replace(each.job, folder=folder, finished=finished), code, outcome.fault

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
    if not waiting:
        return [*jobs]
    with ExitStack() as stack:
        if placement.is_apart:
            progress = Progress(placement.parent)
            show, say = stack.enter_context(showing(progress, Console(stderr=True), say))
        else:  # the run at work shows itself
            progress, show = None, lambda: None
        report = _Report(waiting, placement, say, progress)
        crew = stack.enter_context(Crew(placement, say, report.begins, show))
        if placement.limit != 1:
            say(f"{len(waiting)} runs, {placement.limit or 'all'} at a time")
        for job in waiting:
            crew.add(job)
        for result in crew.results():
            report.ended(*result)
    if crew.given_up:  # a table of runs that have not reached their end would mislead
        names = ", ".join(map(str, crew.given_up))
        raise GanlabError(f"not finished: {names}; the same command goes on with what is there")
    return [report.done.get(str(job), job) for job in jobs]


class _Report:
    """Tells the user of each run when it begins and when it has ended."""

    def __init__(
        self,
        jobs: Sequence[Job],
        placement: Placement,
        say: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self._numbers = {str(job): number for number, job in enumerate(jobs, 1)}
        self._placement, self._say, self._progress = placement, say, progress
        self.done: dict[str, Job] = {}
        """The jobs whose runs have ended, with their folders."""
        if progress:
            for job in jobs:
                progress.add(str(job))

    def begins(self, job: Job) -> None:
        if self._placement.limit == 1:
            how = "continuing" if job.folder else "starting"
            self._say(f"{how} run {self._numbers[str(job)]} of {len(self._numbers)}: {job}")
        if self._progress:
            text = resolved(job.variant.recipe(job.seed))
            self._progress.begins(str(job), text, job.folder)

    def ended(self, job: Job, code: int, fault: str) -> None:
        state = RunFolder(job.folder).read_status().get("state") if job.folder else "failed"
        if self._progress:
            self._progress.ended(str(job), str(state), job.folder)
        if code not in (*FINISHED, FAILED):  # it is saved; the command is about to end
            return
        self.done[str(job)] = job
        what = f"failed: {fault}" if code == FAILED else str(state)
        number = f"{len(self.done)} of {len(self._numbers)}"
        self._say(f"{number}: {job}: {what}, {job.folder}")
