"""Score a folder of images with a finished run's generator."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pluggy import HookImpl
from rich.table import Table
from torch import Tensor, nn

from ganlab.commands.generator import load_for_use
from ganlab.commands.many import all_sound, beside, listed, or_fault, read_noting, tell
from ganlab.errors import RecipeError
from ganlab.evaluation.scores import evaluate_images
from ganlab.images.metrics import WINDOW
from ganlab.plugin import EvaluatedImage
from ganlab.published import how_to_get
from ganlab.run import Run, merged
from ganlab.runs.means import left_out, means_of_all, told
from ganlab.terminal import Terminal


def evaluate_folder(run: Path | str, data: Path, weights: str, device: str) -> dict[str, Any]:
    """Score every image of a folder, enlarged by the generator and by bicubic, and take the means.

    "set" has the figures that plugins of the recipe compute from all the images together. It is
    empty without such plugins.

    :returns: {"scale", "images": {name: {"generator": {...}, "bicubic": {...}}},
        "mean": {"generator": {...}, "bicubic": {...}}, "left_out": {score: images}, "set": as
        "mean"}.
    """
    if not data.is_dir():
        raise RecipeError(f"--data {data}: no such folder{how_to_get(data)}")
    loaded, generator, _ = load_for_use(run, weights, device, judging=True)
    of_sets = [impl for impl in loaded.hook.evaluate.get_hookimpls() if "images" in impl.argnames]

    remarks: dict[str, str] = {}

    def read(path: Path) -> tuple[str, Tensor]:
        image = read_noting(path, remarks)
        if min(image.shape[-2:]) < WINDOW + 3 * loaded.scale:
            raise RecipeError(f"{path}: too small to score at x{loaded.scale}; leave it out")
        return str(path.relative_to(data)), image

    rows: dict[str, Any] = {}
    kept: list[EvaluatedImage] = []
    images = all_sound(beside(or_fault(read), listed(data)), "images")
    for image in evaluate_images(images, generator, loaded):
        rows[image.name] = {"generator": image.scores, "bicubic": image.bicubic_scores}
        kept += [image] if of_sets else []  # keeps a whole folder of images in memory
    tell(remarks)
    by_who = {
        who: {image: row[who] for image, row in rows.items()} for who in ("generator", "bicubic")
    }
    without = left_out(*by_who.values())
    mean = {who: means_of_all(scores, without) for who, scores in by_who.items()}
    by_bicubic = [replace(item, sr=item.bicubic) for item in kept]
    figures = {
        "generator": _figures(loaded, generator, of_sets, kept),
        "bicubic": _figures(loaded, generator, of_sets, by_bicubic),
    }
    found = {"images": rows, "mean": mean, "left_out": without, "set": figures}
    return {"run": str(run), "data": str(data), "scale": loaded.scale, **found}


def _figures(
    run: Run, generator: nn.Module, plugins: list[HookImpl], images: list[EvaluatedImage]
) -> dict[str, float]:
    """Figures of the plugins that evaluate a set of images, with equal random numbers each time.

    Plugins that evaluate something else, such as the networks or fresh samples, need a run in
    training.
    """
    run.streams.moment("evaluation")
    known = {"run": run, "generator": generator, "images": images}
    terms: list[dict[str, float]] = []
    with torch.no_grad():
        for plugin in plugins:
            asked = {name: known[name] for name in plugin.argnames}
            terms.append(cast(dict[str, float], plugin.function(**asked)))
    return merged(run, terms)


def show_scores(found: dict[str, Any]) -> None:
    """Print the scores of `evaluate_folder` as tables on stdout."""
    count = len(found["images"])
    rows = {**found["images"], f"mean of {count}": found["mean"]}
    console = show_tables([rows, {f"set of {count}": found["set"]}])
    show_left_out(console, found["left_out"], count)
    console.print(
        f"x{found['scale']}; _y: BT.601 luma in 16-235, {found['scale']} pixels shaved; "
        "lr_psnr: PSNR of the SR, degraded again, against the LR; "
        "hf_ratio: fine detail of the SR as a share of the HR's",
        soft_wrap=True,
    )


def show_left_out(console: Terminal, without: dict[str, list[str]], count: int) -> None:
    """Print which images the means do not count."""
    if without:
        line = f"not finite, so left out of the means: {told(without, count)}"
        console.print(line, soft_wrap=True)


def show_tables(tables: list[dict[str, Any]]) -> Terminal:
    """Print tables of scores, {image: {who: {score: value}}} each, broken to fit the width."""
    # a file or a pipe has no width of its own
    console = Terminal(width=None if sys.stdout.isatty() else 160)
    room = console.width - max(len(title) for title in tables[0]) - len("  generator")
    for rows in tables:
        (first, *_) = next(iter(rows.values())).values()
        for names in _fitting(list(first), room):
            console.print(_table(rows, names), no_wrap=True)
    return console


def _fitting(names: list[str], room: int) -> Iterator[list[str]]:
    """Split columns into groups, one for each table, so that each table fits the width."""
    group: list[str] = []
    for name in names:
        if group and sum(max(len(n), 9) + 2 for n in [*group, name]) > room:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def _table(rows: dict[str, Any], names: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("image", "", *names):
        table.add_column(title, justify="left" if title in ("image", "") else "right", no_wrap=True)
    for image, row in rows.items():
        for number, (who, scores) in enumerate(row.items()):
            values = [_shown(name, scores[name]) for name in names]
            table.add_row("" if number else image, who, *values)
    return table


def _shown(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if "psnr" in name:
        return f"{value:.2f}"
    return f"{value:.4f}" if "ssim" in name or name == "hf_ratio" else f"{value:.4g}"
