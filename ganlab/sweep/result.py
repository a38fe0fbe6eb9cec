"""What a sweep has found: the best trial and its recipe, a table, a page, what to do next."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ganlab.errors import GanlabError
from ganlab.files import whole, write_text
from ganlab.recipe.bundled import is_bundled
from ganlab.recipe.file import as_typed
from ganlab.recipe.model import Recipe, resolved
from ganlab.report import write_sweep
from ganlab.report.sweep import OptionRow, TrialRow
from ganlab.report.wording import short
from ganlab.sweep.check import Base, Goal
from ganlab.sweep.space import SpaceFile
from ganlab.sweep.trials import Trial
from ganlab.sweep.work import Work, best_of
from ganlab.terminal import Terminal

WIDTH = 160  # columns in a file or a pipe, which have no width of their own
FRESH = 5
"""How many seeds that no trial had a comparison of the best with the recipe gets."""


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep."""

    folder: Path
    goal: Goal
    space: SpaceFile
    base: Base
    parent: Path
    trials: tuple[Trial, ...]
    """In the order in which they were chosen."""
    failed: dict[int, str]
    """The trials with a run that failed, by number, and its error; the same command tries again."""
    importance: dict[str, float]
    """Option -> its part of what decides about the figure; empty for too few trials."""
    page: Path
    recipe: Path | None
    """The recipe of the best trial as a file; None when no trial is done."""

    @property
    def best(self) -> Trial | None:
        return best_of(self.trials, self.goal)

    @property
    def best_run(self) -> Path | None:
        """The first run of the best trial."""
        return self.parent / self.best.runs[0] if self.best else None

    @property
    def ranked(self) -> list[Trial]:
        """The best first; those without a figure last."""
        return sorted(
            self.trials,
            key=lambda t: (t.figure is None, -self.goal.sign * (t.figure or 0.0), t.number),
        )

    def state(self, trial: Trial) -> str:
        if trial.number in self.failed:
            return "failed"
        return trial.outcome or "not ended"

    @property
    def caveat(self) -> str:
        """What the figure of the best trial is worth."""
        done = sum(trial.figure is not None for trial in self.trials)
        return (
            f"The best of {done} trials was chosen for its figure, so chance has helped it: expect "
            "less of other seeds. Compare it with the recipe on seeds that chose nothing"
        )

    @property
    def command(self) -> list[str]:
        """`ganlab compare` of the best with the recipe, on seeds that decided nothing here."""
        assert self.recipe
        first = max(self.space.space.seed_list) + 1
        base = self.base.file
        named = str(base) if is_bundled(base) else as_typed(base)
        overrides = [part for one in self.base.overrides for part in ("--set", one)]
        seeds = f"{first}..{first + FRESH - 1}"
        return ["compare", named, as_typed(self.recipe), *overrides, "--seeds", seeds]

    @property
    def longer(self) -> list[str]:
        """`ganlab resume` of the best run, with twice the iterations."""
        run = self.best_run
        assert run
        return ["resume", as_typed(run), "--iterations", str(2 * self._iterations)]

    @property
    def _iterations(self) -> int:
        assert self.best
        return self.base.variant(self.best.values).recipe(0).iterations


def result_of(work: Work, folder: Path, page: Path) -> Swept:
    """Write the recipe of the best trial, and the page."""
    trials = tuple(work.trials.all())
    best = best_of(trials, work.goal)
    found = Swept(
        folder, work.goal, work.space, work.base, work.where.parent, trials, work.failed,
        work.trials.importance(), page, _write_best(work, folder, best) if best else None,
    )  # fmt: skip
    rows = [_row(found, trial) for trial in found.ranked]
    options = [
        OptionRow(
            key, str(option), option.log, option.choices is not None, found.importance.get(key)
        )
        for key, option in work.space.options.items()
    ]
    title = f"Sweep of {work.base.recipe.name}"
    write_sweep(page, title, list(_lead(found)), work.goal.figure, options, rows)
    return found


def _write_best(work: Work, folder: Path, best: Trial) -> Path:
    """Write the recipe of a trial with every value, its plugin files beside it."""
    recipe = work.base.variant(best.values).recipe(work.space.space.seed_list[0])
    file = folder / f"{work.base.recipe.name}-best.toml"
    for key, source in recipe.sources.items():
        if source.beside_recipe:
            with whole(folder / f"{key}.py") as opened:
                opened.write(source.file.read_bytes())
    write_text(file, f"# Trial {best.number + 1} of {folder.name}.\n{_text(recipe)}")
    return file


def _text(recipe: Recipe) -> str:
    return resolved(recipe)


def _row(found: Swept, trial: Trial) -> TrialRow:
    return TrialRow(
        trial.number + 1, trial.values, found.state(trial), trial.figure,
        list(trial.figures.values()), list(trial.runs), trial.message or found.failed.get(
            trial.number, ""),
    )  # fmt: skip


def _lead(found: Swept) -> Iterator[str]:
    """What there is to say about the trials, and about what the best of them is worth."""
    counts: dict[str, int] = {}
    for trial in found.trials:
        counts[found.state(trial)] = counts.get(found.state(trial), 0) + 1
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    seeds = found.space.space.seed_list
    each = f"each the mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else (
        f"each one run with seed {seeds[0]}")  # fmt: skip
    yield f"{len(found.trials)} trials ({words}), {each}. Looked for: {found.goal}."
    if found.best:
        yield f"{found.caveat}: ganlab {shlex.join(found.command)}"


def print_sweep(found: Swept) -> None:
    """Print the trials, the best first, and how much each option decides."""
    console = Terminal(width=None if sys.stdout.isatty() else WIDTH)
    several = len(found.space.space.seed_list) > 1
    table = Table(box=None, pad_edge=False)
    titles = ["trial", found.goal.figure, *(["of each seed"] if several else []),
              *found.space.options, "", "runs"]  # fmt: skip
    for title in titles:
        table.add_column(title, overflow="fold")
    for trial in found.ranked:
        figure = "" if trial.figure is None else f"{trial.figure:.5g}"
        each = [" ".join(f"{value:.5g}" for value in trial.figures.values())] if several else []
        state = found.state(trial)
        table.add_row(
            str(trial.number + 1), figure, *each, *map(short, trial.values.values()),
            "" if state == "done" else state, " ".join(trial.runs),
        )  # fmt: skip
    console.print(table)
    if found.importance:
        parts = ", ".join(f"{key} {part:.0%}" for key, part in found.importance.items())
        console.print(f"\nwhat decides, as far as these trials tell: {parts}", soft_wrap=True)
    for trial in found.trials:
        if why := trial.message or found.failed.get(trial.number, ""):
            state = found.state(trial)
            console.print(f"trial {trial.number + 1} {state}: {why}", soft_wrap=True)


def check_done(found: Swept) -> None:
    """Refuse to call it done when no trial has a figure.

    :raises GanlabError: naming how they ended.
    """
    if found.best is None:
        words = ", ".join(f"trial {t.number + 1} {found.state(t)}" for t in found.trials)
        raise GanlabError(f"no trial has a figure: {words or 'there is none'}")


def as_data(found: Swept) -> dict[str, Any]:
    """A sweep as plain data for JSON."""
    return {
        "folder": str(found.folder),
        "figure": found.goal.figure,
        "best": "highest" if found.goal.highest else "lowest",
        "seeds": found.space.space.seed_list,
        "trials": [
            {
                "trial": trial.number + 1,
                "values": trial.values,
                "state": found.state(trial),
                "figure": trial.figure,
                "figures": trial.figures,
                "runs": [str(found.parent / run) for run in trial.runs],
                "message": trial.message or found.failed.get(trial.number, ""),
            }
            for trial in found.trials
        ],
        "best_trial": found.best.number + 1 if found.best else None,
        "recipe": str(found.recipe) if found.recipe else None,
        "importance": found.importance,
        "page": str(found.page),
    }
