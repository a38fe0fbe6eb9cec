"""Use a finished run: score a folder of images, or enlarge photographs."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pluggy import HookImpl
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ganlab.errors import RecipeError
from ganlab.evaluation.scores import TOGETHER, evaluate_images, grey_plane, means
from ganlab.images.files import (
    list_images,
    loses_16_bits,
    read_image,
    split_alpha,
    write_png,
)
from ganlab.images.metrics import WINDOW
from ganlab.images.resampling import resize, to_float, to_uint8, to_uint16
from ganlab.images.upscaling import of_one_size, upscale
from ganlab.plugin import EvaluatedImage
from ganlab.run import Run, merged
from ganlab.session import load_for_use

AHEAD = 2  # images that are read or written in threads during the computation
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Photograph = tuple[Path, Tensor, Tensor | None, str]  # output file, colour, alpha, note


def evaluate_folder(run: str, data: Path, weights: str, device: str) -> dict[str, Any]:
    """Score every image of a folder, enlarged by the generator and by bicubic, and take the means.

    "set" has the figures that plugins of the recipe compute from all the images together. It is
    empty without such plugins.

    :returns: {"scale", "images": {name: {"generator": {...}, "bicubic": {...}}},
        "mean": {"generator": {...}, "bicubic": {...}}, "set": the same}.
    """
    if not data.is_dir():
        raise RecipeError(f"--data {data}: no such folder")
    loaded, generator, _ = load_for_use(run, weights, device)
    of_sets = [impl for impl in loaded.hook.evaluate.get_hookimpls() if "images" in impl.argnames]

    def read(path: Path) -> tuple[str, Tensor]:
        image = read_image(path, keep_grey=True)
        if min(image.shape[-2:]) < WINDOW + 3 * loaded.scale:
            raise RecipeError(f"{path}: too small to score at x{loaded.scale}; leave it out")
        return str(path.relative_to(data)), image

    rows: dict[str, Any] = {}
    kept: list[EvaluatedImage] = []
    for image in evaluate_images(beside(read, list_images(data)), generator, loaded):
        rows[image.name] = {"generator": image.scores, "bicubic": image.bicubic_scores}
        kept += [image] if of_sets else []  # keeps a whole folder of images in memory
    mean = {who: means([row[who] for row in rows.values()]) for who in ("generator", "bicubic")}
    by_bicubic = [replace(item, sr=item.bicubic) for item in kept]
    figures = {
        "generator": _figures(loaded, generator, of_sets, kept),
        "bicubic": _figures(loaded, generator, of_sets, by_bicubic),
    }
    found = {"images": rows, "mean": mean, "set": figures}
    return {"run": run, "data": str(data), "scale": loaded.scale, **found}


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
    console.print(
        f"x{found['scale']}; _y: BT.601 luma in 16-235, {found['scale']} pixels shaved; "
        "lr_psnr: PSNR of the SR, degraded again, against the LR; "
        "hf_ratio: fine detail of the SR as a share of the HR's",
        soft_wrap=True,
    )


def show_tables(tables: list[dict[str, Any]]) -> Console:
    """Print tables of scores, {image: {who: {score: value}}} each, broken to fit the width."""
    # a file or a pipe has no width of its own
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
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
    if "psnr" in name:
        return f"{value:.2f}"
    return f"{value:.4f}" if "ssim" in name or name == "hf_ratio" else f"{value:.4g}"


def upscale_files(
    run: str,
    images: Iterable[Path],
    output: Path,
    tile: int,
    weights: str,
    device: str,
    bits: int | None = None,
) -> Iterator[str]:
    """Enlarge image files and write them to a folder as PNG files; yields a line of text for each.

    A grey image stays grey; the generator is shown its plane three times, and the mean of its
    answer is the result.

    :param bits: 8 or 16 for each value of the files; by default 16 for a grey image of 16 bits,
        else 8. Only grey images without alpha can be written with 16.
    :raises RecipeError: when an output exists already (nothing is overwritten), or cannot be
        written with 16 bits.
    """
    files = list(images)
    targets = [output / f"{file.stem}.png" for file in files]
    for file, target in zip(files, targets, strict=True):
        if not file.is_file():
            raise RecipeError(f"{file}: no such image file")
        if target.exists() or targets.count(target) > 1:
            raise RecipeError(
                f"{target} exists, or two images would be written to it; choose another --output"
            )
    loaded, generator, _ = load_for_use(run, weights, device)
    output.mkdir(parents=True, exist_ok=True)
    photographs = beside(partial(_read, bits=bits), zip(files, targets, strict=True))
    together = TOGETHER[loaded.device.type] // loaded.scale**2
    enlarged = (
        one
        for group in of_one_size(photographs, _kind, together)
        for one in _enlarged(group, generator, loaded, tile, bits)
    )
    yield from beside(_write, enlarged)


def _read(job: tuple[Path, Path], bits: int | None) -> Photograph:
    file, target = job
    colour, alpha = split_alpha(file, keep_grey=True, keep_16_bits=bits != 8)
    if bits == 16 and (len(colour) == 3 or alpha is not None):
        what = "an alpha channel" if len(colour) == 1 else "colours"
        raise RecipeError(
            f"{file}: has {what}; only grey images without alpha can be written with 16 bits; "
            "leave out --bits 16"
        )
    note = " (its colours have 16 bits; read and written with 8)" if loses_16_bits(file) else ""
    return target, colour, alpha, note


def _kind(photograph: Photograph) -> tuple[int, ...]:
    """What photographs must share to be enlarged together: depth, channels, height, width."""
    colour = photograph[1]
    return colour.dtype.itemsize, *colour.shape


def _enlarged(
    group: list[Photograph], generator: nn.Module, run: Run, tile: int, bits: int | None
) -> Iterator[tuple[Path, Tensor, Tensor, str]]:
    """Enlarge photographs of one kind together; yields output file, LR, SR and note of each."""
    colours = torch.stack([colour for _, colour, _, _ in group])
    is_grey, deep = colours.shape[1] == 1, 16 in (bits, 8 * colours.dtype.itemsize)
    lr = to_float(colours).to(run.device, run.dtype).expand(-1, 3, -1, -1)
    with torch.no_grad():
        made = upscale(generator, lr, run.scale, tile)
        if deep:
            pictures = to_uint16(made.cpu().clamp(0, 1).mean(1, keepdim=True))
        else:
            pictures = to_uint8(made).cpu()
            pictures = grey_plane(pictures) if is_grey else pictures
    for (target, colour, alpha, note), sr in zip(group, pictures, strict=True):
        if alpha is not None:
            size = (sr.shape[-2], sr.shape[-1])
            sr = torch.cat([sr, to_uint8(resize(to_float(alpha[None]), size))[0]])
        yield target, colour, sr, note


def _write(job: tuple[Path, Tensor, Tensor, str]) -> str:
    target, lr, sr, note = job
    write_png(sr, target)
    return f"{target}: {lr.shape[-1]}x{lr.shape[-2]} -> {sr.shape[-1]}x{sr.shape[-2]}{note}"


def beside(function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """Apply a function to items in threads, up to `AHEAD` items ahead; yields answers in order.

    An error of the function or of the items is raised in order too: after the earlier answers.
    """
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[Answer]] = deque()
        for begun in _begun(pool, function, items):
            waiting.append(begun)
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begun(
    pool: ThreadPoolExecutor, function: Callable[[Item], Answer], items: Iterable[Item]
) -> Iterator[Future[Answer]]:
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:
        failed: Future[Answer] = Future()
        failed.set_exception(error)
        yield failed
