"""Stops a run early when the trials that have ended say that it is not worth its time.

The decision is a function of the evaluations of the run and of the trials that had ended when it
was handed out: it goes with the run to another process or machine, and needs nothing of the sweep.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import optuna
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from ganlab.limits import Limits

PRUNED = "pruned"
"""How a run was stopped, in its status."""


@dataclass(slots=True)
class Judge:
    """Says at each evaluation of a run whether to stop it. It can be pickled."""

    figure: str
    highest: bool
    pruner: str
    startup_trials: int
    prune_after: int
    evaluate_every: int
    past: list[tuple[dict[int, float], bool]]
    """Of each trial that has ended, in order, the run with the same seed: its figures by
    iteration, and whether it came to its end."""
    seen: dict[int, float] = field(default_factory=dict)
    """The evaluations of this run so far."""

    def stops(self, iteration: int, figure: float | None) -> bool:
        """Whether the run ends at this evaluation."""
        if self.pruner == "none" or figure is None or figure != figure:
            return False
        self.seen[iteration] = figure
        if sum(ended for _, ended in self.past) < self.startup_trials:
            return False
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = StudyDirection.MAXIMIZE if self.highest else StudyDirection.MINIMIZE
        study = optuna.create_study(direction=direction, pruner=self._pruner())
        for figures, ended in self.past:
            trial = study.ask()
            _report(trial, figures)
            value = list(figures.values())[-1]
            if ended:
                study.tell(trial, value)
            else:
                study.tell(trial, state=TrialState.PRUNED)
        return _report(study.ask(), self.seen)

    def _pruner(self) -> BasePruner:
        if self.pruner == "median":
            return MedianPruner(1, n_warmup_steps=self.prune_after)
        first = max(self.prune_after, self.evaluate_every)
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)


def _report(trial: optuna.Trial, figures: dict[int, float]) -> bool:
    """Tell a trial its figures in order; "halving" keeps notes. Returns the last answer."""
    answer = False
    for iteration, figure in sorted(figures.items()):
        trial.report(figure, iteration)
        answer = trial.should_prune()
    return answer


class Pruning(Limits):
    """Limits of a run that also ends when its judge says so."""

    def __init__(self, judge: Judge, called_off: Callable[[], bool] = lambda: False) -> None:
        super().__init__(called_off=called_off)
        self.judge = judge
        self._evaluated = 0

    def __call__(self) -> str:
        return super().__call__() or self._judged()

    def _judged(self) -> str:
        if self.run is None:  # it has not begun
            return ""
        progress = self.run.progress
        if progress.evaluated <= self._evaluated:
            return ""
        self._evaluated = progress.evaluated
        figure = progress.scores.get(self.judge.figure)
        return PRUNED if self.judge.stops(progress.evaluated, figure) else ""
