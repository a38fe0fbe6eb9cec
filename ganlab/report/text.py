"""Prints a comparison on the terminal."""

import sys
from collections.abc import Iterator

from rich.table import Table as RichTable

from ganlab.report.model import Comparison, Cost, Table
from ganlab.report.wording import decimals, narrowing, shown, shown_alone
from ganlab.terminal import Terminal

WIDTH = 160  # columns in a file or a pipe, which have no width of their own


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison: scores, costs, verdicts, and notes.

    The first view is printed with all figures, the others with the first figure only. The page has
    all of them.
    """
    console = Terminal(width=None if sys.stdout.isatty() else WIDTH)
    console.print(f"{comparison.title}", style="bold")
    for line in comparison.data:
        console.print(line, soft_wrap=True)
    first = comparison.tables[0] if comparison.tables else None
    for table in comparison.tables:
        if first and table.view != first.view and table.figure != first.figure:
            continue
        console.print()
        console.print(f"{table.figure}: {table.view}")
        console.print(_scores(table))
    if comparison.images and comparison.images.tallies:
        console.print(f"\n{comparison.images.figure} image by image")
        for arm, tally in comparison.images.tallies.items():
            p = f", Wilcoxon p {tally.p:.3g}" if tally.p is not None else ""
            console.print(
                f"  {arm}: won {tally.won}, lost {tally.lost}, tied {tally.tied}; over images "
                f"{shown(tally.difference, signed=True)}{p}",
                soft_wrap=True,
            )  # fmt: skip
    if first and any(row.visible is not None for row in first.rows):
        console.print(f"\nprecision of {first.figure}: half-widths of the 95 % intervals")
        console.print(_sight(first))
    console.print()
    console.print(_costs(comparison.costs))
    for line in _health(comparison):
        console.print(line, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _scores(table: Table) -> RichTable:
    result = _columns("", "mean, 95 % interval", "difference, paired by seed", "")
    for row in table.rows:
        difference = shown(row.difference, signed=True) if row.difference else ""
        result.add_row(row.arm, shown(row.value), difference, row.words)
    if table.bicubic is not None:
        result.add_row("bicubic", shown_alone(table.bicubic), "", "")
    return result


def _sight(table: Table) -> RichTable:
    """Table of the gain from pairing, and of the smallest effect that could be seen."""
    result = _columns("", "paired", "unpaired", "pairing narrows", "smallest effect visible")
    for row in table.rows:
        if row.difference and row.difference.half_width is not None:
            narrower = narrowing(row)
            result.add_row(
                row.arm,
                _size(row.difference.half_width, "+-"),
                _size(row.unpaired.half_width if row.unpaired else None, "+-"),
                f"{narrower:.1f} times" if narrower else "",
                _size(row.visible),
            )
    return result


def _columns(*titles: str) -> RichTable:
    result = RichTable(box=None, pad_edge=False)
    for title in titles:
        result.add_column(title, overflow="fold")
    return result


def _size(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{sign}{value:.{decimals(value)}f}"


def _costs(costs: tuple[Cost, ...]) -> RichTable:
    result = _columns("", "runs", "seconds a run", "images/s", "peak memory", "verdicts")
    for cost in costs:
        result.add_row(
            cost.arm,
            cost.states,
            f"{cost.seconds:,.0f}",
            f"{cost.images_per_second:,.0f}",
            f"{cost.peak_memory / 2**20:,.0f} MiB",
            str(cost.verdicts),
        )
    return result


def _health(comparison: Comparison) -> Iterator[str]:
    for arm in comparison.arms:
        for run in arm.runs:
            for found in run.verdicts:
                yield f"verdict on {arm.name}, seed {run.seed}: {found['sentence']}"
