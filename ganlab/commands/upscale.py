"""Enlarge photographs with a finished run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from ganlab.commands.generator import load_for_use
from ganlab.commands.many import beside, listed, or_fault, sound, together
from ganlab.errors import GanlabError, OutOfMemory, RecipeError
from ganlab.evaluation.scores import TOGETHER, grey_plane
from ganlab.failures.telling import explained
from ganlab.files import remove_stale
from ganlab.images.files import ImageError, Picture, read_picture
from ganlab.images.png import Strip, pack, strips, write_strips
from ganlab.images.resampling import passing_matrices, to_float, to_uint8, to_uint16
from ganlab.images.upscaling import MULTIPLE, bands, bicubic_generator, of_one_size
from ganlab.run import Run
from ganlab.system import as_one_name

SMALLEST_TILE = 64  # that the command takes
STRIPS_AHEAD = 8  # of an enlarged image, which are compressed in threads


@dataclass(frozen=True, slots=True)
class Job:
    """An image file to enlarge, and the file to write."""

    file: Path
    target: Path
    done: bool = False
    """Whether the target is there already."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """An image to enlarge."""

    target: Path
    picture: Picture


def upscale_files(
    run: Path | str,
    jobs: Sequence[Job],
    output: Path,
    tile: int,
    weights: str,
    device: str,
    bits: int | None = None,
    overwrite: bool = False,
) -> Iterator[str]:
    """Enlarge image files and write each as a PNG file; yields a line of text for each.

    A file keeps the colour profile of its image; CMYK becomes sRGB. A grey image stays grey; the
    generator is shown its plane three times, and the mean of its answer is the result. A file that
    is there already is passed over, so an interrupted batch goes on where it was. An image that
    cannot be read stops none of the others.

    :param jobs: from `jobs_of`.
    :param output: the folder that it was given, for a message.
    :param bits: 8 or 16 for each value of the files; by default as many as the image has.
    :param overwrite: make files again that are there already.
    :raises GanlabError: after all others, when images could not be read; it names each.
    :raises ImageError: at once, when a file cannot be written.
    :raises OutOfMemory: with the advice to take smaller tiles.
    """
    loaded, generator, _ = load_for_use(run, weights, device)
    tile -= tile % MULTIPLE  # so that bands of colour and alpha have the same rows
    faults: list[GanlabError] = []
    todo = [job for job in sound(map(or_fault(_placed), jobs), faults) if overwrite or not job.done]
    for folder in {job.target.parent for job in jobs}:
        remove_stale(folder)
    if kept := len(jobs) - len(todo) - len(faults):
        yield (
            f"{output}: {kept:,} of {len(jobs):,} files are there already and are passed over; "
            "--overwrite makes them again, and --output keeps those of several runs apart"
        )
    photographs = sound(beside(or_fault(partial(_read, bits=bits)), todo), faults)
    at_once = TOGETHER[loaded.device.type] // loaded.scale**2
    parts = (
        part
        for group in of_one_size(photographs, _kind, at_once)
        for part in _enlarged(group, generator, loaded, tile, bits)
    )
    try:
        yield from _written(parts, loaded.scale)
    except Exception as error:
        told = explained(error)
        if isinstance(told, OutOfMemory) and tile > SMALLEST_TILE:
            raise OutOfMemory(
                f"{told}\ntiles of {tile} pixels: a smaller --tile needs less"
            ) from None
        raise
    if faults:
        title = f"{len(faults):,} of {len(jobs):,} images were not enlarged:"
        raise GanlabError(together(title, faults))


def jobs_of(images: Iterable[Path], output: Path) -> list[Job]:
    """The image files and the PNG files to write, all in one folder.

    :param images: files, or folders of images, whose subfolders are kept.
    :raises RecipeError: when an image would replace another one or itself.
    """
    jobs: dict[str, Job] = {}
    for path in images:
        for file, target in _targets(path, output):
            other = jobs.setdefault(as_one_name(str(target)), Job(file, target)).file
            if other != file and not other.samefile(file):
                raise RecipeError(
                    f"{other} and {file} would both be written to {target}; enlarge one of them "
                    "into another --output"
                )
            if as_one_name(os.path.realpath(target)) == as_one_name(os.path.realpath(file)):
                raise RecipeError(f"{file} would replace itself; choose another --output")
    return list(jobs.values())


def _targets(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """An image file, or each image of a folder, with the file to write."""
    if not path.is_dir():
        if not path.exists():
            raise RecipeError(f"{path}: no such image file")
        yield path, output / f"{path.stem}.png"
        return
    root, made = path.resolve(), output.resolve()
    if made == root:
        raise RecipeError(f"--output {output} is the folder of the images; choose another one")
    inside = made.is_relative_to(root)  # then what an earlier call wrote is no input
    for file in listed(path):
        if not (inside and file.resolve().is_relative_to(made)):
            yield file, output / file.relative_to(path).with_suffix(".png")


def _placed(job: Job) -> Job:
    """The job, when there is a folder for its file and the file's name is possible there.

    :raises ImageError: when the file cannot be there.
    """
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            job.target.lstat()
    except OSError as fault:
        raise ImageError(
            f"{job.target}: cannot be written ({fault.strerror or fault}); choose another --output "
            "or a shorter name."
        ) from None
    return replace(job, done=job.target.is_file())


def _read(job: Job, bits: int | None) -> Photograph:
    picture = read_picture(job.file, keep_16_bits=bits != 8, keep_profile=True)
    return Photograph(job.target, picture)


def _kind(photograph: Photograph) -> tuple[int, ...]:
    """What photographs must share to be enlarged together: depth, channels, height, width."""
    return photograph.picture.colour.dtype.itemsize, *photograph.picture.colour.shape


def _enlarged(
    group: list[Photograph], generator: nn.Module, run: Run, tile: int, bits: int | None
) -> Iterator[tuple[Photograph, Strip]]:
    """Enlarge photographs of one kind together; yields the strips of each, from top to bottom.

    Of one photograph a band is held at a time. Several are held whole, as they have few pixels.
    """
    colours = [photograph.picture.colour for photograph in group]
    is_deep = 16 in (bits, 8 * colours[0].dtype.itemsize)
    with passing_matrices():
        made: Iterable[Tensor] = bands(_rounded(generator, run, is_deep), colours, run.scale, tile)
        if len(group) > 1:
            made = list(made)
        for number, photograph in enumerate(group):
            for strip in strips(_with_alpha(made, number, photograph, run.scale, tile, is_deep)):
                yield photograph, strip


def _rounded(generator: nn.Module, run: Run, is_deep: bool) -> Callable[[Tensor], Tensor]:
    """The generator as a function from integers to integers of 8 or 16 bits, on the CPU."""

    def enlarge(tiles: Tensor) -> Tensor:
        made = generator(to_float(tiles).to(run.device, run.dtype).expand(-1, 3, -1, -1))
        is_grey = tiles.shape[1] == 1
        if is_deep:
            exact = made.cpu().clamp(0, 1)
            return to_uint16(exact.mean(1, keepdim=True) if is_grey else exact)
        levels = to_uint8(made).cpu()
        return grey_plane(levels) if is_grey else levels

    return enlarge


def _with_alpha(
    colours: Iterable[Tensor],
    number: int,
    photograph: Photograph,
    scale: int,
    tile: int,
    is_deep: bool,
) -> Iterator[Tensor]:
    """The bands [C, rows, W] of one photograph of a group; alpha is enlarged by bicubic."""
    if photograph.picture.alpha is None:
        yield from (band[number] for band in colours)
        return
    enlarge = bicubic_generator(scale, is_deep)
    alphas = bands(enlarge, [photograph.picture.alpha], scale, tile)
    for colour, alpha in zip(colours, alphas, strict=True):
        yield torch.cat([colour[number], alpha[0]])


def _written(parts: Iterable[tuple[Photograph, Strip]], scale: int) -> Iterator[str]:
    """Write the files; strips are compressed in threads. Yields a line of text for each."""
    packed = beside(lambda part: (part[0], pack(part[1])), parts, STRIPS_AHEAD)
    for photograph, first in packed:
        picture = photograph.picture
        height, width = picture.colour.shape[-2:]
        rest = (strip for _, strip in packed)
        write_strips(photograph.target, scale * height, chain([first], rest), picture.profile)
        size = f"{width}x{height} -> {scale * width}x{scale * height}"
        yield f"{photograph.target}: {size}" + (f" ({picture.remark})" if picture.remark else "")
