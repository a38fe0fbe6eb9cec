"""The trials of a sweep, in a file of Optuna's: which come next, how each ended.

A proposal is a function of the trials that have ended and of the sampler's seed: each comes from a
new study in memory that holds those trials, with a sampler whose seed is that of its number. So a
sweep that was killed proposes what an unbroken one would, when one trial is made at a time.
"""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from ganlab.streams import stream_seed
from ganlab.sweep.check import Goal
from ganlab.sweep.space import Option, SpaceFile, text_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

FILE = "trials.log"
_STUDY = "sweep"
DRAWS = 100
"""How often another point is drawn when one was tried already."""
ENOUGH = 5
"""Trials with a figure from which the importance of options is told."""

History = dict[int, dict[int, float]]
"""Seed -> iteration -> the figure that decides."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of the space, and how its runs ended."""

    number: int
    values: dict[str, str]
    """Option -> its value as TOML."""
    outcome: str = ""
    """done, pruned, diverged or refused; empty while it has not ended."""
    figure: float | None = None
    """The mean over its seeds; None when it is not done."""
    runs: tuple[str, ...] = ()
    """The names of its run folders, in the order of the seeds."""
    figures: dict[int, float] = field(default_factory=dict)
    """Seed -> the figure of its run, of each run that came to its end."""
    history: History = field(default_factory=dict)
    message: str = ""
    """Why it was refused, or how it failed."""


class Trials:
    """The trials in the file of a sweep's folder. Who changes them has locked the folder."""

    def __init__(self, folder: Path, space: SpaceFile, goal: Goal, at_a_time: int) -> None:
        self._space, self._goal, self._at_a_time = space, goal, at_a_time
        self._distributions = {key: _distribution(one) for key, one in space.options.items()}
        self._direction = _direction(goal)
        self._storage = JournalStorage(JournalFileBackend(str(folder / FILE)))
        try:
            self._study = optuna.load_study(study_name=_STUDY, storage=self._storage)
        except KeyError:
            self._study = optuna.create_study(
                storage=self._storage, study_name=_STUDY, direction=self._direction
            )

    def all(self) -> list[Trial]:
        return [_trial(one) for one in self._study.get_trials(deepcopy=False)]

    def propose(self) -> Trial | None:
        """The next trial, now in the file; None when all are there, or no point is left."""
        there = self.all()
        if len(there) >= self._space.num_trials:
            return None
        tried = [trial.values for trial in there]
        values = self._next(len(there), tried)
        if values is None:
            return None
        params = {key: _param(self._space.options[key], text) for key, text in values.items()}
        self._study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions)
        )
        return self.all()[-1]

    def _next(self, number: int, tried: list[dict[str, str]]) -> dict[str, str] | None:
        if self._space.space.sampler == "grid":
            return next(islice(self._space.grid(), number, None), None)
        if self._space.size is not None and self._space.size <= len(tried):
            return None
        for draw in range(DRAWS):
            values = self._drawn(number, draw)
            if values not in tried:
                return values
        # "tpe" may come back to a few points again and again
        points = self._space.grid() if self._space.size is not None else ()
        return next((point for point in points if point not in tried), None)

    def _drawn(self, number: int, draw: int) -> dict[str, str]:
        seed = stream_seed(self._space.space.sampler_seed, "trial", number, draw) % 2**32
        study = optuna.create_study(direction=self._direction, sampler=self._sampler(seed))
        states = [TrialState.COMPLETE, TrialState.PRUNED]
        if self._at_a_time > 1:  # so that those at work at the same time differ
            states.append(TrialState.RUNNING)
        study.add_trials(self._study.get_trials(deepcopy=False, states=tuple(states)))
        return _values(study.ask(self._distributions).params)

    def _sampler(self, seed: int) -> BaseSampler:
        space = self._space.space
        if space.sampler == "random":
            return RandomSampler(seed)
        return TPESampler(
            n_startup_trials=space.startup_trials,
            seed=seed,
            multivariate=True,
            constant_liar=self._at_a_time > 1,
        )

    def end(self, trial: Trial) -> None:
        """Write how a trial ended. Killed in the middle, it is not ended, and is written again."""
        known = self._study.get_trials(deepcopy=False)[trial.number]._trial_id
        self._storage.set_trial_user_attr(known, "ended", _record(trial))
        for iteration, figure in sorted(_means(trial.history).items()):
            if trial.outcome != "diverged":  # without figures it counts as worse than any other
                self._storage.set_trial_intermediate_value(known, iteration, figure)
        if trial.outcome == "done":
            assert trial.figure is not None
            self._study.tell(trial.number, trial.figure)
        else:
            failed = trial.outcome == "refused"
            self._study.tell(trial.number, state=TrialState.FAIL if failed else TrialState.PRUNED)

    def importance(self) -> dict[str, float]:
        """How much each option decides, in parts of 1 (PED-ANOVA, Watanabe et al. 2023,
        arXiv:2304.10255); empty for too few trials, or where all figures are equal."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(done) < ENOUGH or len({one.value for one in done}) == 1:
            return {}
        # it imports sklearn
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        found = get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator())
        return {key: float(part) for key, part in found.items()}


def mend(folder: Path) -> None:
    """Remove what a killed process or a full disk left in the file of trials.

    That is half a line, after which Optuna could not read the next one, and a lock, for which it
    would wait 30 seconds. The caller has locked the folder.
    """
    file = folder / FILE
    file.with_name(f"{FILE}.lock").unlink(missing_ok=True)
    content = file.read_bytes() if file.exists() else b""
    if content and not content.endswith(b"\n"):
        with file.open("rb+") as opened:
            opened.truncate(content.rfind(b"\n") + 1)


def _direction(goal: Goal) -> StudyDirection:
    return StudyDirection.MAXIMIZE if goal.highest else StudyDirection.MINIMIZE


def _distribution(option: Option) -> BaseDistribution:
    if option.choices is not None:
        return CategoricalDistribution(option.texts() or [])
    low, high = option.ends
    if option.ints is not None:
        return IntDistribution(int(low), int(high), log=option.log, step=int(option.step or 1))
    return FloatDistribution(low, high, log=option.log, step=option.step)


def _param(option: Option, text: str) -> Any:
    """A value as Optuna has it: a number, or the text of a choice."""
    if option.choices is not None:
        return text
    return int(text) if option.ints is not None else float(text)


def _values(params: dict[str, Any]) -> dict[str, str]:
    """The values as TOML."""
    return {key: one if isinstance(one, str) else text_of(one) for key, one in params.items()}


def _means(history: History) -> dict[int, float]:
    """The mean over the seeds that have a figure at an iteration."""
    at = dict.fromkeys(iteration for one in history.values() for iteration in one)
    return {i: fmean(one[i] for one in history.values() if i in one) for i in at}


def _record(trial: Trial) -> dict[str, Any]:
    history = {str(seed): [*map(list, one.items())] for seed, one in trial.history.items()}
    return {
        "outcome": trial.outcome,
        "figure": trial.figure,
        "runs": list(trial.runs),
        "figures": {str(seed): figure for seed, figure in trial.figures.items()},
        "history": history,
        "message": trial.message,
    }


def _trial(known: FrozenTrial) -> Trial:
    trial = Trial(known.number, _values(known.params))
    if not known.state.is_finished():
        return trial
    ended = known.user_attrs["ended"]
    return Trial(
        trial.number,
        trial.values,
        ended["outcome"],
        ended["figure"],
        tuple(ended["runs"]),
        {int(seed): figure for seed, figure in ended["figures"].items()},
        {int(seed): dict(pairs) for seed, pairs in ended["history"].items()},
        ended["message"],
    )
