"""The page of a sweep: its trials as a table, and for each option a picture of figure by value."""

from collections.abc import Sequence
from dataclasses import dataclass

from ganlab.report.charts import Chart, scatter
from ganlab.report.offline import offline_page
from ganlab.report.page import look
from ganlab.report.wording import short, shown_alone


@dataclass(frozen=True, slots=True)
class OptionRow:
    """An option that varies."""

    key: str
    words: str
    """Its range or its choices."""
    log: bool
    named: bool
    """Whether its values are names: choices."""
    importance: float | None


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial; without a figure when it is not done."""

    number: int
    values: dict[str, str]
    state: str
    figure: float | None
    figures: list[float]
    """Of each seed."""
    runs: list[str]
    message: str


def render_sweep(
    title: str,
    lead: Sequence[str],
    figure: str,
    options: Sequence[OptionRow],
    trials: Sequence[TrialRow],
) -> str:
    """Render the page as UTF-8 text.

    :param trials: the best first.
    """
    return offline_page(
        "sweep.html.j2",
        "page.css",
        "page.js",
        title=title,
        lead=lead,
        figure=figure,
        options=options,
        trials=trials,
        charts=[c for option in options if (c := _chart(option, figure, trials))],
        shown_alone=shown_alone,
        short=short,
        several=any(len(trial.figures) > 1 for trial in trials),
        weighed=any(option.importance is not None for option in options),
        look=look,
    )


def _chart(option: OptionRow, figure: str, trials: Sequence[TrialRow]) -> Chart | None:
    """A chart of the figure over an option's values: a point for each trial that has one."""
    done = [t for t in trials if t.figure is not None]
    points = [
        (
            t.values[option.key],
            t.figure or 0.0,
            f"trial {t.number}: {option.key} = {t.values[option.key]}, {figure} {t.figure:.5g}",
            number == 0,
        )
        for number, t in enumerate(done)
    ]
    return scatter(option.key, (option.key, figure), points, option.log, option.named)
