"""Enlarge photographs and videos with a finished run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ganlab.commands.before_after import Page, compare_pictures
from ganlab.commands.generator import load_for_use
from ganlab.commands.many import beside, or_fault, sound, together
from ganlab.commands.progress import Bar
from ganlab.commands.upscale_jobs import PNG, Encoding, Job, placed
from ganlab.commands.upscale_video import enlarge_video, rounded
from ganlab.errors import GanlabError, OutOfMemory
from ganlab.evaluation.scores import TOGETHER
from ganlab.failures.telling import explained
from ganlab.files import remove_stale
from ganlab.images.files import Picture, on_white, read_picture
from ganlab.images.lossy import QUALITY, format_of, require_room, write_lossy
from ganlab.images.png import Packed, Strip, pack, strips, write_strips
from ganlab.images.resampling import passing_matrices
from ganlab.images.upscaling import MULTIPLE, bands, bicubic_generator, of_one_size
from ganlab.images.video import require_ffmpeg
from ganlab.run import Run

NO_BAR = Bar()
SMALLEST_TILE = 64  # that the command takes
STRIPS_AHEAD = 8  # of an enlarged image, which are compressed in threads


@dataclass(frozen=True, slots=True)
class Photograph:
    """An image to enlarge."""

    target: Path
    picture: Picture
    to_16_bits: bool
    """Whether 16 bits are written for a picture of 8 bits too."""


def upscale_files(
    run: Path | str,
    jobs: Sequence[Job],
    output: Path,
    tile: int,
    weights: str,
    device: str,
    encoding: Encoding = PNG,
    overwrite: bool = False,
    page: Page | None = None,
    bar: Bar = NO_BAR,
) -> Iterator[str]:
    """Enlarge image and video files; yields a line of text for each file that is written.

    A file keeps the colour profile of its image; CMYK becomes sRGB. A grey image stays grey; the
    generator is shown its plane three times, and the mean of its answer is the result. A file that
    is there already is passed over, so an interrupted batch goes on where it was. An image or video
    that cannot be read stops none of the others.

    :param jobs: from `jobs_of`, with the same encoding.
    :param output: the folder that it was given, for a message.
    :param overwrite: make files again that are there already.
    :param page: also write this page, with the files that are there already too.
    :raises GanlabError: after all others, when files could not be enlarged; it names each.
    :raises VideoError: at once, when there are videos and no ffmpeg.
    :raises ImageError: at once, when an image file cannot be written.
    :raises OutOfMemory: with the advice to take smaller tiles.
    """
    if any(job.is_video for job in jobs):
        require_ffmpeg()
    loaded, generator, _ = load_for_use(run, weights, device)
    tile -= tile % MULTIPLE  # so that bands of colour and alpha have the same rows
    faults: list[GanlabError] = []
    todo = [job for job in sound(map(or_fault(placed), jobs), faults) if overwrite or not job.done]
    for folder in {job.target.parent for job in jobs}:
        remove_stale(folder)
    if kept := len(jobs) - len(todo) - len(faults):
        yield (
            f"{output}: {kept:,} of {len(jobs):,} files are there already and are passed over; "
            "--overwrite makes them again, and --output keeps those of several runs apart"
        )
    try:
        yield from _pictures(todo, generator, loaded, tile, encoding, faults, bar)
        yield from _videos(todo, generator, loaded, tile, faults, bar)
        made = [job for job in jobs if job.target.is_file()]
        if page and made:
            yield compare_pictures(page, made, generator, loaded, tile, bar)
    except Exception as error:
        told = explained(error)
        if isinstance(told, OutOfMemory) and tile > SMALLEST_TILE:
            advice = f"tiles of {tile} pixels: a smaller --tile needs less"
            raise OutOfMemory(f"{told}\n{advice}") from None
        raise
    if faults:
        what = "files" if any(job.is_video for job in jobs) else "images"
        title = f"{len(faults):,} of {len(jobs):,} {what} were not enlarged:"
        raise GanlabError(together(title, faults))


def _pictures(
    jobs: Sequence[Job],
    generator: nn.Module,
    run: Run,
    tile: int,
    encoding: Encoding,
    faults: list[GanlabError],
    bar: Bar,
) -> Iterator[str]:
    """Enlarge images; yields a line of text for each. Those that cannot be read become faults."""
    todo = [job for job in jobs if not job.is_video]
    if not todo:
        return
    bar.begin("enlarging", len(todo), "pictures")
    read = or_fault(partial(_read, encoding=encoding, scale=run.scale))
    photographs = sound(beside(read, todo), faults)
    at_once = TOGETHER[run.device.type] // run.scale**2
    parts = (
        part
        for group in of_one_size(photographs, _kind, at_once)
        for part in _enlarged(group, generator, run, tile)
    )
    yield from _written(parts, run.scale, encoding.quality or QUALITY, bar)


def _videos(
    jobs: Sequence[Job],
    generator: nn.Module,
    run: Run,
    tile: int,
    faults: list[GanlabError],
    bar: Bar,
) -> Iterator[str]:
    """Enlarge videos; yields a line of text for each."""
    enlarge = partial(enlarge_video, generator=generator, run=run, tile=tile, bar=bar)
    todo = [job for job in jobs if job.is_video]
    yield from sound(map(or_fault(enlarge), todo), faults)


def _read(job: Job, encoding: Encoding, scale: int) -> Photograph:
    """Read an image so that the file to write can hold it."""
    bits, kind = encoding.bits_of(job.target), format_of(job.target)
    picture = read_picture(job.file, keep_16_bits=bits != 8, keep_profile=True)
    if kind == "WEBP" and picture.profile and len(picture.colour) == 1:
        picture = read_picture(job.file)  # WebP has no grey, so no profile of grey either
    height, width = picture.colour.shape[-2:]
    require_room(job.target, scale * height, scale * width)
    return Photograph(job.target, on_white(picture) if kind == "JPEG" else picture, bits == 16)


def _kind(photograph: Photograph) -> tuple[int, ...]:
    """What photographs must share to be enlarged together: depths, channels, height, width."""
    colour = photograph.picture.colour
    return photograph.to_16_bits, colour.dtype.itemsize, *colour.shape


def _enlarged(
    group: list[Photograph], generator: nn.Module, run: Run, tile: int
) -> Iterator[tuple[Photograph, Strip]]:
    """Enlarge photographs of one kind together; yields the strips of each, from top to bottom.

    Of one photograph a band is held at a time. Several are held whole, as they have few pixels.
    """
    colours = [photograph.picture.colour for photograph in group]
    is_deep = group[0].to_16_bits or colours[0].dtype == torch.uint16
    with passing_matrices():
        made: Iterable[Tensor] = bands(rounded(generator, run, is_deep), colours, run.scale, tile)
        if len(group) > 1:
            made = list(made)
        for number, photograph in enumerate(group):
            for strip in strips(_with_alpha(made, number, photograph, run.scale, tile, is_deep)):
                yield photograph, strip


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


def _written(
    parts: Iterable[tuple[Photograph, Strip]], scale: int, quality: int, bar: Bar
) -> Iterator[str]:
    """Write the files; strips of PNG are compressed in threads. Yields a line of text for each."""
    made = beside(_packed, parts, STRIPS_AHEAD)
    for number, (photograph, first) in enumerate(made):
        picture, target = photograph.picture, photograph.target
        height, width = (scale * side for side in picture.colour.shape[-2:])
        taken = _told(chain([first], (strip for _, strip in made)), height, number, bar)
        if format_of(target) == "PNG":
            write_strips(target, height, cast(Iterator[Packed], taken), picture.profile)
        else:
            lossy = cast(Iterator[Strip], taken)
            write_lossy(target, (height, width), lossy, quality, picture.profile)
        bar.at(number + 1)
        size = f"{width // scale}x{height // scale} -> {width}x{height}"
        yield f"{target}: {size}" + (f" ({picture.remark})" if picture.remark else "")


def _packed(part: tuple[Photograph, Strip]) -> tuple[Photograph, Strip | Packed]:
    photograph, strip = part
    return photograph, pack(strip) if format_of(photograph.target) == "PNG" else strip


def _told(
    strips: Iterable[Strip | Packed], height: int, number: int, bar: Bar
) -> Iterator[Strip | Packed]:
    """Strips of picture `number`, of so many rows; the bar shows how much of it is taken."""
    rows = 0
    for strip in strips:
        rows += strip.shape[1] if isinstance(strip, Packed) else strip.rows.shape[1]
        bar.at(number + min(rows / height, 1))
        yield strip
