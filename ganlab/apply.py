"""Using a finished run: scores on a folder of images, and photographs enlarged."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ganlab.errors import RecipeError
from ganlab.evaluation import judge_images, means
from ganlab.images import list_images, read_image, split_alpha, write_png
from ganlab.metrics import WINDOW
from ganlab.resampling import resize, to_float, to_uint8
from ganlab.session import load_for_use
from ganlab.upscale import upscale


def evaluate_folder(run: str, data: Path, weights: str, device: str) -> dict[str, Any]:
    """Scores of every image of a folder, of the generator and of bicubic, and their means.

    :returns: {"scale", "images": {name: {"generator": {...}, "bicubic": {...}}}, "mean": {...}}.
    """
    if not data.is_dir():
        raise RecipeError(f"--data {data}: no such folder")
    loaded, generator, _ = load_for_use(run, weights, device)
    rows: dict[str, Any] = {}
    for path in list_images(data):
        name = str(path.relative_to(data))
        image = read_image(path, keep_grey=True)
        if min(image.shape[-2:]) < WINDOW + 3 * loaded.scale:
            raise RecipeError(f"{path}: too small to score at x{loaded.scale}; leave it out")
        for judged in judge_images({name: image}, generator, loaded):
            rows[name] = {"generator": judged.scores, "bicubic": judged.bicubic_scores}
    mean = {who: means([row[who] for row in rows.values()]) for who in ("generator", "bicubic")}
    return {"run": run, "data": str(data), "scale": loaded.scale, "images": rows, "mean": mean}


def show_scores(found: dict[str, Any]) -> None:
    """The table of `evaluate_folder` on stdout."""
    table = Table(box=None, pad_edge=False)
    names = list(found["mean"]["generator"])
    for title in ("image", "", *names):
        table.add_column(title, justify="left" if title in ("image", "") else "right", no_wrap=True)
    for image, row in {**found["images"], f"mean of {len(found['images'])}": found["mean"]}.items():
        table.add_row(image, "generator", *(_shown(n, row["generator"][n]) for n in names))
        table.add_row("", "bicubic", *(_shown(n, row["bicubic"][n]) for n in names))
    console = Console(highlight=False)
    width = console.width if console.is_terminal else 160
    console.print(table, width=width, no_wrap=True)
    console.print(
        f"x{found['scale']}; _y: BT.601 luma in 16-235, {found['scale']} pixels shaved; "
        "lr_psnr: of the SR degraded again; hf_ratio: share of the HR's fine detail",
        soft_wrap=True,
    )


def _shown(name: str, value: float) -> str:
    return f"{value:.4f}" if name.startswith(("ssim", "hf")) else f"{value:.2f}"


def upscale_files(
    run: str, images: Iterable[Path], output: Path, tile: int, weights: str, device: str
) -> Iterator[str]:
    """Enlarge image files into PNG files of a folder; yields a line for each.

    :raises RecipeError: when an output exists already; nothing is overwritten.
    """
    files = list(images)
    targets = [output / f"{file.stem}.png" for file in files]
    for file, target in zip(files, targets, strict=True):
        if not file.is_file():
            raise RecipeError(f"{file}: no such image file")
        if target.exists() or targets.count(target) > 1:
            raise RecipeError(f"{target} exists or would be written twice; choose another --output")
    loaded, generator, _ = load_for_use(run, weights, device)
    output.mkdir(parents=True, exist_ok=True)
    for file, target in zip(files, targets, strict=True):
        colour, alpha = split_alpha(file)
        lr = to_float(colour[None]).to(loaded.device, loaded.dtype)
        with torch.no_grad():
            sr = to_uint8(upscale(generator, lr, loaded.scale, tile))[0].cpu()
        if alpha is not None:
            size = (sr.shape[-2], sr.shape[-1])
            sr = torch.cat([sr, to_uint8(resize(to_float(alpha[None]), size))[0]])
        write_png(sr, target)
        yield f"{target}: {lr.shape[-1]}x{lr.shape[-2]} -> {sr.shape[-1]}x{sr.shape[-2]}"
