"""The runs of a sweep's trials: made or found, and taken into account when they have ended."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

from ganlab.compare.ablation import fault_of
from ganlab.compare.crew import FINISHED, Crew, Placement
from ganlab.compare.data import DataNow
from ganlab.compare.plan import Job, make_plan
from ganlab.ending import FAILED
from ganlab.errors import RecipeError
from ganlab.runs.records import RunRecord, read_run
from ganlab.sweep.check import Base, Goal, require_figure
from ganlab.sweep.pruning import PRUNED, Judge, Pruning
from ganlab.sweep.space import SpaceFile
from ganlab.sweep.trials import Trial, Trials


@dataclass(slots=True)
class _Open:
    """A trial that has not ended."""

    trial: Trial
    waiting: list[Job]
    """The runs that are still to be handed out, in the order of the seeds."""
    at_work: int = 0
    records: dict[int, RunRecord] = field(default_factory=dict)
    """Seed -> a run that has ended."""
    figures: dict[int, float] = field(default_factory=dict)
    outcome: str = ""
    """pruned, diverged or failed, once one of its runs was."""


@dataclass
class Work:
    """Carries out the trials of a sweep."""

    base: Base
    goal: Goal
    space: SpaceFile
    trials: Trials
    where: Placement
    now: DataNow
    say: Callable[[str], None]
    failed: dict[int, str] = field(default_factory=dict)
    """The trials with a run that failed, by number, and the error."""
    _open: dict[str, _Open] = field(default_factory=dict)
    """By the name of their runs."""

    def carry_out(self) -> None:
        """Make all trials.

        :raises Interrupted: at a signal that asks to end, after the runs in progress are saved.
        :raises RecipeError: when no evaluation has the figure that decides.
        """
        for trial in self.trials.all():
            if not trial.outcome:
                self._begin(trial)
        with Crew(self.where, self.say, self._tell_beginning) as crew:
            self._fill(crew, self.where.limit)
            for job, code, fault in crew.results():
                one = self._open[job.variant.name]
                one.at_work -= 1
                if code in FINISHED:
                    self._take(one, job)
                elif code == FAILED:
                    self.failed[one.trial.number] = fault
                    one.outcome, one.waiting = "failed", []
                    self._end_if_whole(one)
                else:  # it is saved; the command is about to end
                    continue
                self._fill(crew, 1)

    def _fill(self, crew: Crew, count: int | None) -> None:
        """Hand out more runs: so many, or all that can be known now."""
        left = math.inf if count is None else count
        while left > 0 and (job := self._next_job()) is not None:
            crew.add(job)
            left -= 1

    def _next_job(self) -> Job | None:
        while True:
            for one in self._open.values():
                if one.waiting:
                    one.at_work += 1
                    return self._with_judge(one.waiting.pop(0))
            if (trial := self.trials.propose()) is None:
                return None
            self._begin(trial)

    def _begin(self, trial: Trial) -> None:
        """Find the runs of a trial; those that have ended count at once."""
        variant = self.base.variant(trial.values, self._name(trial))
        where, seeds = self.where, self.space.space.seed_list
        try:
            jobs = make_plan([variant], seeds, where.parent, where.here, self.now, where.kind)
            whole = all(job.finished for job in jobs)
            fault = "" if whole else fault_of(variant, self.base.task)
        except RecipeError as error:
            fault = str(error)
        if fault:
            self._tell(replace(trial, outcome="refused", message=fault.partition("\n")[0]))
            return
        one = self._open[variant.name] = _Open(trial, [*jobs])
        for job in jobs:
            if job in one.waiting and (job.finished or self._was_pruned(job)):
                one.waiting.remove(job)
                self._take(one, job, pruned=not job.finished)

    def _take(self, one: _Open, job: Job, pruned: bool = False) -> None:
        """Take in a run that has ended, and end its trial when it was the last."""
        assert job.folder
        record = one.records[job.seed] = read_run(job.folder)
        status = record.status
        pruned = pruned or (record.state == "stopped" and status.get("message") == PRUNED)
        if record.last and record.counts:
            require_figure(self.space, self.goal, record.last.figures, job.folder)
        figure = self._figure(record)
        if figure is not None and not pruned:
            one.figures[job.seed] = figure
        else:
            one.outcome = one.outcome or ("pruned" if pruned else "diverged")
            one.waiting = []
        self._end_if_whole(one)

    def _end_if_whole(self, one: _Open) -> None:
        """End a trial none of whose runs is at work, or still to come."""
        if one.waiting or one.at_work:
            return
        del self._open[self._name(one.trial)]
        if one.outcome == "failed":  # the next command tries it again
            return
        done = not one.outcome
        records = dict(sorted(one.records.items()))
        self._tell(
            replace(
                one.trial,
                outcome=one.outcome or "done",
                figure=fmean(one.figures.values()) if done else None,
                runs=tuple(record.folder.path.name for record in records.values()),
                figures=dict(sorted(one.figures.items())),
                history={seed: self._figures(record) for seed, record in records.items()},
            )
        )

    def _figures(self, record: RunRecord) -> dict[int, float]:
        """The figure that decides at each evaluation of a run where it is finite."""
        name = self.goal.figure
        found = {e.iteration: e.figures.get(name, math.nan) for e in record.evaluations}
        return {iteration: value for iteration, value in found.items() if math.isfinite(value)}

    def _figure(self, record: RunRecord) -> float | None:
        """The figure of a run; None when it has none, or has diverged."""
        figures = self._figures(record)
        if not record.counts or not record.last:
            return None
        if self.goal.at == "best":
            return max(figures.values(), key=lambda v: self.goal.sign * v, default=None)
        return figures.get(record.last.iteration)

    def _judge(self, seed: int) -> Judge:
        space = self.space.space
        past = [
            (trial.history[seed], seed in trial.figures)
            for trial in self.trials.all()
            if trial.history.get(seed)
        ]
        return Judge(
            self.goal.figure, self.goal.highest, space.pruner, space.startup_trials,
            space.prune_after, self.base.recipe.evaluate_every, past,
        )  # fmt: skip

    def _with_judge(self, job: Job) -> Job:
        """The job with what may stop it early, by the trials that have ended until now."""
        if self.space.space.pruner == "none":
            return job
        return replace(job, limits=partial(Pruning, self._judge(job.seed)))

    def _was_pruned(self, job: Job) -> bool:
        """Whether one of its evaluations stops a run, which was cut off before that was told."""
        if self.space.space.pruner == "none" or job.folder is None:
            return False
        judge, last = self._judge(job.seed), self.base.recipe.iterations
        figures = self._figures(read_run(job.folder))
        return any(judge.stops(i, figure) for i, figure in figures.items() if i < last)

    def _name(self, trial: Trial) -> str:
        return f"{self.base.recipe.name}-trial{trial.number + 1}"

    def _tell_beginning(self, job: Job) -> None:
        trial = self._open[job.variant.name].trial
        how = "continuing" if job.folder else "starting"
        self.say(f"{how} {self._count(trial)}, seed {job.seed}: {words_of(trial)}")

    def _count(self, trial: Trial) -> str:
        return f"trial {trial.number + 1} of {self.space.num_trials}"

    def _tell(self, trial: Trial) -> None:
        """Write how a trial ended, and say so."""
        self.trials.end(trial)
        what = trial.outcome
        if trial.figure is not None:
            best = best_of(self.trials.all(), self.goal)
            what = f"{self.goal.figure} {trial.figure:.5g}"
            what += ", the best so far" if best and best.number == trial.number else ""
        self.say(f"{self._count(trial)}: {what}{f': {m}' if (m := trial.message) else ''}")


def words_of(trial: Trial) -> str:
    """The values of a trial, for the user."""
    return ", ".join(f"{key} = {text}" for key, text in trial.values.items())


def best_of(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """The trial with the best figure; of equal ones the first."""
    done = [trial for trial in trials if trial.figure is not None]
    return max(done, key=lambda t: goal.sign * (t.figure or 0.0), default=None)
