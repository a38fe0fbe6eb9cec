"""`ganlab bisect`: which of the changes between two recipes makes a figure worse.

The changes are applied one after another to the good recipe. A binary search over how many are
applied finds the one at which the figure becomes bad: about log2(n) recipes for n changes. A last
recipe has that change alone. When that one is good, the change does harm only together with an
earlier one; the search then goes on with the change held in place, until the changes found are bad
by themselves. That is a simple form of delta debugging (Zeller and Hildebrandt 2002, IEEE TSE 28).
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ganlab.assembly import assemble
from ganlab.bench.cost import clock
from ganlab.compare.comparison import say
from ganlab.compare.crew import Placement, carry_out
from ganlab.compare.data import DataNow
from ganlab.compare.difference import Side, check_two
from ganlab.compare.executors import placement_of
from ganlab.compare.mixing import Mixtures, spans
from ganlab.compare.plan import Job, cost, make_plan, parse_seeds
from ganlab.compare.seeds import find_needs, words_of
from ganlab.errors import GanlabError, RecipeError
from ganlab.evaluation.scores import SCORES
from ganlab.report.figures import HIGHER_IS_BETTER
from ganlab.report.model import Arm
from ganlab.report.statistics import Interval, paired_difference
from ganlab.report.tables import by_seed
from ganlab.report.wording import shown
from ganlab.runs.data import digests
from ganlab.runs.records import read_run
from ganlab.speed.device import pick_device

RULE = (
    "A recipe counts as bad when its mean difference from the good one is at least half of the "
    "bad one's, or when at least half of its runs diverge."
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe between the good and the bad one, run with all seeds."""

    name: str
    numbers: tuple[int, ...]
    """The numbers of the changes that it has from the bad recipe."""
    difference: Interval | None
    """Its figure minus that of the good recipe, paired by seed; None when no pair has one."""
    lost: int
    """How many of its runs diverged and have no figure."""
    bad: bool
    sure: bool
    """Whether the interval leaves no doubt about that."""
    runs: tuple[str, ...]
    """The folders of its runs."""


@dataclass(slots=True)
class Bisection:
    """What was found, and all that was tried on the way."""

    good: str
    bad: str
    figure: str
    higher_is_better: bool
    seeds: list[int]
    changes: list[str]
    """The changes from good to bad in words, in the order of their numbers, from 1."""
    left_out: list[str]
    """Differences that no recipe can bring about, such as versions: all runs are made as of now."""
    trials: list[Trial] = field(default_factory=list)
    found: tuple[int, ...] = ()
    """The numbers of the changes that make the figure worse; empty when there is no answer."""
    alone: Trial | None = None
    """The trial of the changes found and no others; None when that is no complete recipe."""
    share: float | None = None
    """The part of the whole difference that the changes found make by themselves."""
    notes: list[str] = field(default_factory=list)
    made: int = 0
    reused: int = 0


def bisect_recipes(good: Path | str, bad: Path | str, options: dict[str, Any]) -> Bisection | None:
    """`ganlab bisect`: plan, then run recipes between the two until the change is found.

    :param options: those of the command line.
    :returns: None when only the plan was asked for.
    :raises RecipeError: when the two do not differ, or cannot be compared.
    """
    seeds = parse_seeds(options["seeds"])
    where = placement_of(options)
    if len(seeds) < 2:
        raise RecipeError(f"--seeds {options['seeds']}: one seed has no interval; give two or more")
    sides = check_two(good, bad, options["overrides"], options["data"])
    figure = options["figure"] or sides[0].recipe.best_metric
    higher = _direction(figure, sides[0])
    _check_comparable(*sides, figure)
    with tempfile.TemporaryDirectory() as folder:
        mixtures = Mixtures(*sides, Path(folder))
        if not mixtures.shifts:
            left = "; ".join(change.key for change in mixtures.left_out)
            raise RecipeError(
                f"{good} and {bad} are the same recipe{f'; they differ in {left}' if left else ''}"
            )
        found = Bisection(
            sides[0].name, sides[1].name, figure, higher, seeds,
            [str(shift) for shift in mixtures.shifts],
            [change.key for change in mixtures.left_out],
        )  # fmt: skip
        walk = _Walk(mixtures, found, where)
        for line in walk.plan():
            say(line)
        if options["only_plan"]:
            return None
        walk.go()
    return found


def _direction(figure: str, good: Side) -> bool:
    """Whether a higher value is better."""
    if figure == good.recipe.best_metric:
        return good.recipe.best_is == "highest"
    if figure not in HIGHER_IS_BETTER:
        raise RecipeError(
            f"--figure {figure}: it is not known whether higher is worse; set best_metric and "
            f"best_is: --set best_metric={figure} --set best_is=lowest"
        )
    return HIGHER_IS_BETTER[figure]


def _check_comparable(good: Side, bad: Side, figure: str) -> None:
    """Refuse recipes that cannot run here, or whose figures say nothing of each other."""
    one, other = (assemble(side.recipe, pick_device("cpu")) for side in (good, bad))
    if figure in SCORES and not one.held_out:
        raise RecipeError(
            f"{good.name} has no held-out images, so there is no {figure}; give the data source "
            "some, or name a figure of a plugin with --figure"
        )
    if digests(one.data).get("held_out") != digests(other.data).get("held_out"):
        raise RecipeError(
            f"{good.name} and {bad.name} are evaluated on different held-out images, so a "
            "difference says nothing; give both the same ones"
        )


class _Walk:
    """The search: runs recipes between the two, and remembers what they showed."""

    def __init__(self, mixtures: Mixtures, found: Bisection, where: Placement) -> None:
        self._mixtures, self._found, self._where = mixtures, found, where
        self._all = len(mixtures.shifts)
        self._trials: dict[frozenset[int], Trial] = {}
        self._figures: dict[int, float] = {}  # of the good recipe, by seed
        self._data = DataNow(pick_device(where.here))
        self._whole = math.nan  # how much worse the bad recipe is

    def plan(self) -> Iterator[str]:
        """The changes, the number of runs that the search may need, and their cost."""
        found = self._found
        yield f"{self._all} changes from {found.good} to {found.bad}:"
        for number, change in enumerate(found.changes, 1):
            yield f"  {number}. {change}"
        if found.left_out:
            left = ", ".join(found.left_out)
            yield f"not part of the search, since every run is made as of now: {left}"
        ends = [self._jobs(numbers) for numbers in (frozenset(), self._prefix(self._all))]
        jobs = [job for several in ends for job in several]
        between = math.ceil(math.log2(self._all)) + 1 if self._all > 1 else 0
        middle = self._jobs(self._prefix(self._all // 2)) if between else []
        runs, have = len(jobs) + between * len(found.seeds), sum(job.finished for job in jobs)
        cut = sum(job.folder is not None and not job.finished for job in jobs)
        yield (
            f"plan: at most {2 + between} recipes x {len(found.seeds)} seeds = {runs} runs; of "
            f"{found.good} and {found.bad} {have} exist, {cut} to be continued; "
            f"at most {runs - have - cut} to be made"
        )
        # whatever is run between the two costs about the same
        unknown = [replace(job, folder=None, finished=False) for job in middle] * between
        seconds, source = cost([*jobs, *unknown], self._where.here, self._where.executor.elsewhere)
        if have < runs:
            time = f"at most about {clock(seconds)} of training" if math.isfinite(seconds) else (
                "time unknown")  # fmt: skip
            yield f"{time}, one run at a time ({source})"

    def go(self) -> None:
        """Search; the answer is in the bisection afterwards."""
        good, whole = self._try(frozenset()), self._try(self._prefix(self._all))
        if refusal := self._no_answer(good, whole):
            self._found.notes += refusal
            return
        fixed, limit = frozenset[int](), self._all
        while True:
            low, high = self._narrowed(fixed, limit)
            fixed |= {*range(low + 1, high + 1)}
            self._found.found = tuple(sorted(fixed))
            if fault := self._fault(fixed):
                self._found.notes.append(f"the change alone cannot be tried: {fault}")
                return
            alone = self._try(fixed)
            if alone.bad:
                break
            say(f"not bad by itself: {self._shown(alone)}; searching for what it acts with")
            limit = low
        self._found.alone = alone
        if alone.difference and math.isfinite(self._whole):
            self._found.share = self._worse(alone.difference.mean) / self._whole
        if not all(trial.sure for trial in self._found.trials):
            self._found.notes.append(
                "some answers on the way were not sure, because their interval contains half of "
                "the difference; more seeds make them so"
            )

    def _narrowed(self, fixed: frozenset[int], limit: int) -> tuple[int, int]:
        """Binary search: with the first `low` changes it is good, with the first `high` bad."""
        low, high = 0, limit
        while high - low > 1:
            half = (low + high) / 2
            for number in sorted(range(low + 1, high), key=lambda n: abs(n - half)):
                if not self._fault(fixed | self._prefix(number)):
                    break
            else:
                self._found.notes.append(
                    f"changes {low + 1} to {high} cannot be told apart: no recipe with a part of "
                    "them can run"
                )
                break
            if self._try(fixed | self._prefix(number)).bad:
                high = number
            else:
                low = number
        return low, high

    def _prefix(self, number: int) -> frozenset[int]:
        return frozenset(range(1, number + 1))

    def _jobs(self, numbers: frozenset[int]) -> list[Job]:
        variant, seeds = self._mixtures.variant(numbers), self._found.seeds
        where = self._where
        return make_plan([variant], seeds, where.parent, where.here, self._data, where.kind)

    def _fault(self, numbers: frozenset[int]) -> str:
        """Why a recipe cannot run; "" when it can. It is assembled, unless its runs exist."""
        if numbers in self._trials or all(job.finished for job in self._jobs(numbers)):
            return ""
        try:
            assemble(
                self._mixtures.variant(numbers).recipe(self._found.seeds[0]), pick_device("cpu")
            )
        except RecipeError as error:
            return str(error)
        return ""

    def _try(self, numbers: frozenset[int]) -> Trial:
        """Run a recipe with all seeds, and judge it by its difference from the good one."""
        if numbers in self._trials:
            return self._trials[numbers]
        found = self._found
        jobs = self._jobs(numbers)
        done = carry_out(jobs, self._where, say)
        there = sum(job.finished for job in jobs)
        found.reused += there
        found.made += len(jobs) - there
        records = [read_run(job.folder) for job in done if job.folder]
        name = jobs[0].variant.name
        if any(record.state == "failed" for record in records) or len(records) < len(jobs):
            raise GanlabError(
                f"{name} ({self._applied(numbers)}): a run failed, so the search cannot go on; "
                "mend the cause and give the same command again"
            )
        arm = Arm(name, tuple(records))
        figures = by_seed(arm, found.figure, lambda r: r.last if r.counts else None)
        if not numbers:
            self._figures = figures
        lost = sum(not record.counts for record in records)
        if not figures and not lost:
            raise RecipeError(f"{name}: its runs have no figure {found.figure}; choose --figure")
        trial = self._judged(
            name, numbers, figures, lost, tuple(str(record.folder.path) for record in records)
        )
        self._trials[numbers] = trial
        found.trials.append(trial)
        say(self._shown(trial))
        return trial

    def _judged(
        self,
        name: str,
        numbers: frozenset[int],
        figures: dict[int, float],
        lost: int,
        runs: tuple[str, ...],
    ) -> Trial:
        difference = paired_difference(figures, self._figures)
        bad, sure = 2 * lost >= len(self._found.seeds), lost in (0, len(self._found.seeds))
        if difference and not bad and len(numbers) == self._all:
            self._whole = self._worse(difference.mean)
            bad, sure = self._whole > 0, difference.excludes_zero
        elif difference and not bad and numbers and math.isfinite(self._whole):
            half = self._whole / 2
            bad = self._worse(difference.mean) >= half
            ends = (difference.low, difference.high)
            sure = all(end is not None and (self._worse(end) >= half) == bad for end in ends)
        return Trial(name, tuple(sorted(numbers)), difference, lost, bad, sure, runs)

    def _no_answer(self, good: Trial, bad: Trial) -> list[str]:
        """Why a search would be in vain; [] when the bad recipe is worse beyond doubt."""
        found = self._found
        if good.lost:
            return [f"{found.good}: {good.lost} of its runs diverged, so it is not a good one"]
        if 2 * bad.lost >= len(found.seeds):
            return []
        difference = bad.difference
        assert difference
        if difference.excludes_zero and self._whole > 0:
            return []
        words = f"{found.bad} is not shown to be worse than {found.good}: {found.figure} "
        refusal = [f"{words}{shown(difference, signed=True)}"]
        if not difference.excludes_zero and difference.low is not None and difference.mean:
            arms = [Arm(t.name, tuple(map(read_run, t.runs))) for t in (good, bad)]
            names = [trial.name for trial in (good, bad)]
            needs = find_needs(abs(difference.mean), names, arms, [found.figure])
            refusal += words_of(needs)
        return refusal

    def _worse(self, value: float) -> float:
        """A difference as a size that is positive where it is worse."""
        return -value if self._found.higher_is_better else value

    def _applied(self, numbers: frozenset[int]) -> str:
        return f"with changes {spans(numbers)}" if numbers else "without a change"

    def _shown(self, trial: Trial) -> str:
        what = {0: self._found.good, self._all: self._found.bad}.get(len(trial.numbers))
        what = what or f"with {spans(trial.numbers)} of {self._all} changes"
        return f"{what}: {verdict(self._found, trial)}"


def verdict(found: Bisection, trial: Trial) -> str:
    """What a trial showed, in words."""
    lost = f"{trial.lost} of {len(found.seeds)} runs diverged" if trial.lost else ""
    value = f"{found.figure} {shown(trial.difference, signed=True)}" if trial.difference else ""
    judged = "bad" if trial.bad else "as good as the good one"
    doubt = "" if trial.sure else " (not sure)"
    if not trial.numbers:
        return lost or "the good one"
    return f"{', '.join(part for part in (value, lost) if part)}: {judged}{doubt}"


def as_data(found: Bisection) -> dict[str, Any]:
    """A bisection as plain data for JSON."""
    return asdict(found) | {"rule": RULE}


def lines(found: Bisection) -> Iterator[str]:
    """A bisection in words."""
    yield f"{found.figure}, last evaluation, difference from {found.good}, paired by seed."
    yield RULE
    for trial in found.trials:
        plural = "" if len(trial.numbers) == 1 else "s"
        applied = f"change{plural} {spans(trial.numbers)}" if trial.numbers else "no change"
        yield f"  {applied}: {verdict(found, trial)}"
    if found.found:
        yield "found:" if len(found.found) == 1 else "found, only together:"
        for number in found.found:
            yield f"  {number}. {found.changes[number - 1]}"
    if found.alone:
        subject = "by itself the change makes" if len(found.found) == 1 else "together they make"
        if found.share is None or not found.alone.difference:
            yield f"{subject} {found.alone.lost} of {len(found.seeds)} runs diverge"
        else:
            value = shown(found.alone.difference, signed=True)
            yield f"{subject} {found.share:.0%} of the whole difference: {found.figure} {value}"
    for note in found.notes:
        yield f"note: {note}"
    yield f"{found.made} runs made, {found.reused} reused"
