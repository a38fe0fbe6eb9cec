"""Use a finished run: score a folder of images, or enlarge photographs."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pluggy import HookImpl
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ganlab.errors import OutOfMemory, RecipeError
from ganlab.evaluation.scores import TOGETHER, evaluate_images, grey_plane, means
from ganlab.failures.out_of_memory import explained
from ganlab.files import remove_stale
from ganlab.images.files import loses_16_bits, read_image, split_alpha
from ganlab.images.listing import images_of
from ganlab.images.metrics import WINDOW
from ganlab.images.png import Strip, pack, strips, write_strips
from ganlab.images.resampling import passing_matrices, to_float, to_uint8, to_uint16
from ganlab.images.upscaling import MULTIPLE, bands, bicubic_generator, of_one_size
from ganlab.plugin import EvaluatedImage
from ganlab.run import Run, merged
from ganlab.session import load_for_use

SMALLEST_TILE = 64  # that the command takes
AHEAD = 2  # images that are read in threads during the computation
STRIPS_AHEAD = 8  # of an enlarged image, which are compressed in threads
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Photograph:
    """An image file to enlarge."""

    target: Path
    colour: Tensor
    """uint8 or uint16, [3 or 1, h, w]."""
    alpha: Tensor | None
    note: str


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
    for image in evaluate_images(beside(read, listed(data)), generator, loaded):
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
    :raises OutOfMemory: with the advice to take smaller tiles.
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
    remove_stale(output)
    tile -= tile % MULTIPLE  # so that bands of colour and alpha have the same rows
    photographs = beside(partial(_read, bits=bits), zip(files, targets, strict=True))
    together = TOGETHER[loaded.device.type] // loaded.scale**2
    parts = (
        part
        for group in of_one_size(photographs, _kind, together)
        for part in _enlarged(group, generator, loaded, tile, bits)
    )
    try:
        yield from _written(parts, loaded.scale)
    except Exception as error:
        told = explained(error)
        if told and tile > SMALLEST_TILE:
            raise OutOfMemory(
                f"{told}\ntiles of {tile} pixels: a smaller --tile needs less"
            ) from None
        raise


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
    return Photograph(target, colour, alpha, note)


def _kind(photograph: Photograph) -> tuple[int, ...]:
    """What photographs must share to be enlarged together: depth, channels, height, width."""
    return photograph.colour.dtype.itemsize, *photograph.colour.shape


def _enlarged(
    group: list[Photograph], generator: nn.Module, run: Run, tile: int, bits: int | None
) -> Iterator[tuple[Photograph, Strip]]:
    """Enlarge photographs of one kind together; yields the strips of each, from top to bottom.

    Of one photograph a band is held at a time. Several are held whole, as they have few pixels.
    """
    colours = [photograph.colour for photograph in group]
    is_deep = 16 in (bits, 8 * colours[0].dtype.itemsize)
    with passing_matrices():
        made: Iterable[Tensor] = bands(_rounded(generator, run, is_deep), colours, run.scale, tile)
        if len(group) > 1:
            made = list(made)
        for number, photograph in enumerate(group):
            for strip in strips(_with_alpha(made, number, photograph, run.scale, tile)):
                yield photograph, strip


def _rounded(generator: nn.Module, run: Run, is_deep: bool) -> Callable[[Tensor], Tensor]:
    """The generator as a function from integers to integers of 8 or 16 bits, on the CPU."""

    def enlarge(tiles: Tensor) -> Tensor:
        made = generator(to_float(tiles).to(run.device, run.dtype).expand(-1, 3, -1, -1))
        if is_deep:
            return to_uint16(made.cpu().clamp(0, 1).mean(1, keepdim=True))
        levels = to_uint8(made).cpu()
        return grey_plane(levels) if tiles.shape[1] == 1 else levels

    return enlarge


def _with_alpha(
    colours: Iterable[Tensor], number: int, photograph: Photograph, scale: int, tile: int
) -> Iterator[Tensor]:
    """The bands [C, rows, W] of one photograph of a group; alpha is enlarged by bicubic."""
    if photograph.alpha is None:
        yield from (band[number] for band in colours)
        return
    alphas = bands(bicubic_generator(scale), [photograph.alpha], scale, tile)
    for colour, alpha in zip(colours, alphas, strict=True):
        yield torch.cat([colour[number], alpha[0]])


def _written(parts: Iterable[tuple[Photograph, Strip]], scale: int) -> Iterator[str]:
    """Write the files; strips are compressed in threads. Yields a line of text for each."""
    packed = beside(lambda part: (part[0], pack(part[1])), parts, STRIPS_AHEAD)
    for photograph, first in packed:
        height, width = photograph.colour.shape[-2:]
        rest = (strip for _, strip in packed)
        write_strips(photograph.target, scale * height, chain([first], rest))
        size = f"{width}x{height} -> {scale * width}x{scale * height}"
        yield f"{photograph.target}: {size}{photograph.note}"


def listed(folder: Path) -> list[Path]:
    """The images of a folder; on stderr their number, and what is left out and why."""
    found = images_of(folder)
    print(f"note: {found.told()}", file=sys.stderr)
    return found.images


def beside(
    function: Callable[[Item], Answer], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Answer]:
    """Apply a function to items in threads, up to `ahead` items ahead; yields answers in order.

    An error of the function or of the items is raised in order too: after the earlier answers.
    """
    with ThreadPoolExecutor(min(ahead, os.cpu_count() or ahead)) as pool:
        waiting: deque[Future[Answer]] = deque()
        for begun in _begun(pool, function, items):
            waiting.append(begun)
            if len(waiting) > ahead:
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
