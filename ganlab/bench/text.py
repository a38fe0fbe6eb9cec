"""Prints the results of `ganlab bench` as tables on a terminal."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from ganlab.bench.cards import Need
from ganlab.bench.fit import MOST_SECONDS, Fit
from ganlab.monitoring.loading import data_words
from ganlab.terminal import Terminal

MOST_OPERATIONS = 8
SHOWN = 0.0005  # share of an iteration; parts that take less are not printed
_WAYS = {
    "Eager": "as written",
    "Compiled": "networks compiled",
    "Graphs": "CUDA graphs",
}


def show(found: dict[str, Any]) -> None:
    """Print what `bench_recipe` returns."""
    console = Terminal(soft_wrap=True)
    for line in _head(found):
        console.print(line)
    whole = found["iteration"]["ms"]
    looked_at = sum(found["phases"].values())
    _print(console, "where an iteration goes", _rows(found["phases"], looked_at))
    _print(console, "by plugin, with the backward passes of its losses",
           _rows(found["plugins"], looked_at))  # fmt: skip
    console.print(_memory(found["memory"]))
    data = found["data"]
    console.print(f"\n{data_words(data['share'], data['plugins'])}")
    console.print(_operations(found, whole))
    for line in (*_floor(found), *_watched(found), *_plain(found), *_trace(found)):
        console.print(line)


def show_fit(fit: Fit) -> None:
    """Print the largest batch, and the measurements that it was found from."""
    gib = 2**30
    for size, peak in sorted(fit.measured.items()):
        print(f"batch_size = {size}: {peak / gib:.2f} GiB")
    how = "run here"
    if fit.extrapolated:
        how = f"estimated from these, at most twice the largest; trials end after {MOST_SECONDS} s"
    print(
        f"largest: batch_size = {fit.batch_size} fits into 90 % of the "
        f"{fit.available / gib:.1f} GiB free ({how})"
    )


def show_need(need: Need) -> None:
    """Print the memory that training needs on a CUDA device, and the cards that have it."""
    gib = 2**30
    for what, size in (
        ("weights, moments, averages and what else stays", need.kept),
        ("tensors of an iteration at its highest moment", need.step),
        ("the same again in captured steps, and copies for their trial", need.captured),
        ("allowance for kernels, cuBLAS and CUDA itself", need.whole - need.tensors),
    ):
        if size:
            print(f"{size / gib:6.2f} GiB  {what}")
    for one, which in ((need, ""), (need.uncaptured, ' with compile = "off"')):
        if one is need or need.captured:
            cards = ", ".join(map(str, one.cards)) or "none of those with up to 24"
            print(f"about {one.whole / gib:.1f} GiB on CUDA{which}: fits {cards} GB")
    print("an estimate from shapes alone, without evaluations; --fit measures")


def _head(found: dict[str, Any]) -> Iterable[str]:
    where, step = found["environment"], found["iteration"]
    threads = f"{where['threads']} CPU thread{'s' * (where['threads'] != 1)}"
    yield (
        f"{found['recipe']} on {where['device']} ({where['device_name']}, {threads}), "
        f"{found['precision']}, torch {where['versions']['torch']}"
    )
    yield (
        f"{step['ms']:.2f} ms an iteration, {step['images/s']:,.1f} images/s, "
        f"{step['peak_memory'] / 2**20:,.0f} MiB peak memory; {step['timed']} iterations timed, "
        f"{_WAYS.get(step['carried out by'], step['carried out by'])}"
        + (", D's pass shared by both steps" if step["shares D's pass"] else "")
    )
    yield from found["notes"]


def _rows(milliseconds: dict[str, float], whole: float) -> list[tuple[str, str, str]]:
    return [
        (name, f"{ms:.2f}", f"{ms / whole:.1%}")
        for name, ms in milliseconds.items()
        if ms > SHOWN * whole
    ]


def _print(console: Terminal, title: str, rows: list[tuple[str, str, str]]) -> None:
    table = _table(title, "ms", "share")
    for name, *figures in rows:
        table.add_row(name, *figures)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"\n{title}", min_width=30, no_wrap=True)
    for column in columns:
        table.add_column(f"\n{column}", justify="right", no_wrap=True)
    return table


def _memory(found: dict[str, Any]) -> Table:
    """The tensors of an iteration at its highest moment; weights and optimizers come on top."""
    peak = max(found["peak"], 1)
    title = f"tensors of an iteration at their peak, {peak / 2**20:,.1f} MiB, by what made them"
    table = _table(title, "MiB", "share")
    for name, size in found["parts"].items():
        if size >= 0.005 * peak:
            table.add_row(name, f"{size / 2**20:,.1f}", f"{size / peak:.1%}")
    return table


def _operations(found: dict[str, Any], whole: float) -> Table:
    ceilings = found["ceilings"]
    table = _table("by operation, each timed alone", "calls", "ms", "GFLOP/s", "GB/s", "of ceiling")
    for one in found["operations"][:MOST_OPERATIONS]:
        seconds = max(one["seconds"], 1e-9)
        flops, moved = one["flops"] / seconds, one["moved"] / seconds
        reached = max(flops / ceilings["flops"], moved / ceilings["bytes"])
        table.add_row(
            one["name"], str(one["calls"]), f"{1000 * seconds:.2f}",
            f"{flops / 1e9:,.0f}" if flops else "", f"{moved / 1e9:.1f}", f"{reached:.0%}",
        )  # fmt: skip
    return table


def _floor(found: dict[str, Any]) -> Iterable[str]:
    ceilings, least = found["ceilings"], found["floor"]
    whole = found["iteration"]["ms"]
    yield (
        f"\nthis machine, measured: {ceilings['flops'] / 1e9:,.0f} GFLOP/s in matrix products"
        f" in {ceilings['products_in']}, "
        f"{ceilings['bytes'] / 1e9:,.1f} GB/s in copies, {1e6 * ceilings['launch_seconds']:.1f} us "
        "a call"
    )
    yield (
        f"the work: {least['flops'] / 1e9:,.1f} GFLOP in {least['calls']:,} calls; at these "
        f"ceilings at least {least['ms']:.2f} ms, {least['ms without overlap']:.2f} ms when every "
        f"tensor is read and written, {least['ms of launches']:.2f} ms for the calls alone"
    )
    yield f"reached: {least['reached']:.0%} of the floor's speed; the rest of the time goes to"
    for name, ms in least["rest"].items():
        yield f"  {name}: {ms:.2f} ms, {ms / whole:.0%}"


def _watched(found: dict[str, Any]) -> Iterable[str]:
    every, more = found["watched"]["every"], found["watched"]["ms more"]
    if every:
        share = more / every / found["iteration"]["ms"]
        yield f"a watched iteration, one in {every}, takes {more:.0f} ms more: {share:.1%} in all"


def _plain(found: dict[str, Any]) -> Iterable[str]:
    if plain := found.get("plain"):
        yield (
            f"compared with a bare loop of the same networks: {plain['ms']:.2f} ms against "
            f"{plain['plain_ms']:.2f} ms, a ratio of {plain['ratio']:.3f} "
            f"({plain['lowest']:.3f} to {plain['highest']:.3f} in {plain['rounds']} rounds)"
        )


def _trace(found: dict[str, Any]) -> Iterable[str]:
    if "trace" in found:
        yield f"trace: {found['trace']}, for chrome://tracing or ui.perfetto.dev"
