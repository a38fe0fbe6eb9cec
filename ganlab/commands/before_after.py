"""`ganlab upscale --compare`: a page of what the generator makes beside bicubic enlargement."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from torch import Tensor, nn

from ganlab.commands.many import listed
from ganlab.commands.progress import Bar
from ganlab.commands.score import forms_of, keys_of
from ganlab.commands.upscale_jobs import Job
from ganlab.commands.upscale_video import rounded
from ganlab.errors import GanlabError, RecipeError
from ganlab.images.contrast import busiest
from ganlab.images.files import read_image
from ganlab.images.metrics import psnr
from ganlab.images.png_bytes import png_of
from ganlab.images.resampling import passing_matrices
from ganlab.images.upscaling import bicubic, upscale
from ganlab.images.video import as_tensor, frames, probe
from ganlab.report import check_writable, write_before_after
from ganlab.report.before_after import Enlarged
from ganlab.run import Run

SIDE = 512  # pixels of the largest part that is shown
MOST_PICTURES = 24  # a part of photographs takes about half a megabyte, three times
MARGIN = 16  # LR pixels around a part that the generator sees too, as in tiles


@dataclass(frozen=True, slots=True)
class Page:
    """The page to write, and the originals to show."""

    path: Path
    originals: Mapping[str, Path] | None
    """By all names that they may stand for; None: none are to be shown."""


def page_in(output: Path, originals: Path | None, wanted: bool) -> Page | None:
    """The page beside the enlarged pictures, if it is wanted.

    :raises RecipeError: when it cannot be written, when there are originals for no page, or when
        two of them have one name.
    :raises ImageError: when the folder of originals has no image.
    """
    if not wanted:
        if originals:
            raise RecipeError("--original is for the page of --compare: give that too")
        return None
    found: dict[str, Path] | None = None
    if originals is not None:
        names = [file.relative_to(originals) for file in listed(originals)]
        found = {key: originals / name for key, name in keys_of(names, originals).items()}
    path = output / "compare.html"
    check_writable(path)
    return Page(path, found)


def compare_pictures(
    page: Page, jobs: Sequence[Job], generator: nn.Module, run: Run, tile: int, bar: Bar
) -> str:
    """Write the page; returns a line of text. What cannot be read is left out of it.

    The generator enlarges the part that is shown, with a margin: so the page needs few pixels of
    large pictures. Colours are shown as sRGB, with white behind transparent parts. Of a video the
    frame in the middle is shown.
    """
    bar.begin("comparing", min(len(jobs), MOST_PICTURES), "pictures")
    found, missing = [], []
    enlarge = rounded(generator, run, False)
    for number, job in enumerate(jobs[:MOST_PICTURES]):
        try:
            name = job.target.relative_to(page.path.parent).with_suffix(job.file.suffix)
            moment, lr = _shown(job)
            original = None
            if page.originals is not None and not job.is_video:
                original = _original(page.originals, name, lr, run.scale)
                missing += [name.as_posix()] if original is None else []
            with passing_matrices():
                title = name.as_posix() + moment
                found.append(_enlarged(title, lr, original, enlarge, run, tile))
        except GanlabError as fault:
            print(f"note: not on the page: {fault}", file=sys.stderr)
        bar.at(number + 1)
    who = run.folder.path.name if run.folder else "the generator"
    lead = f"Enlarged x{run.scale} by bicubic interpolation and by the generator of {who}."
    notes = []
    if len(jobs) > MOST_PICTURES:
        notes.append(f"The first {MOST_PICTURES} of {len(jobs):,} files.")
    if missing:
        notes.append(f"Without an original of that name and size: {', '.join(missing)}.")
    write_before_after(page.path, "Before and after", lead, notes, found, SIDE)
    return f"{page.path}: {len(found)} of {len(jobs):,} files side by side"


def _shown(job: Job) -> tuple[str, Tensor]:
    """The moment in a video, "" for an image; and the picture, uint8 [1 or 3, H, W]."""
    if not job.is_video:
        return "", read_image(job.file, keep_grey=True)
    video = probe(job.file)
    middle = video.frames // 2
    # half a frame earlier, so that rounding leaves out none too many
    begin = max(0.0, float((middle - Fraction(1, 2)) / video.rate))
    with closing(frames(video, begin)) as read:
        return f" at {float(middle / video.rate):.1f} s", as_tensor(next(read), video)


def _original(originals: Mapping[str, Path], name: Path, lr: Tensor, scale: int) -> Tensor | None:
    """The original of a picture, cropped to a multiple of the scale; None without a fitting one."""
    file = next((originals[form] for form in forms_of(name) if form in originals), None)
    if file is None:
        return None
    hr = read_image(file, keep_grey=len(lr) == 1)
    height, width = (scale * side for side in lr.shape[-2:])
    fits = all(
        0 <= side - needed < scale
        for side, needed in zip(hr.shape[-2:], (height, width), strict=True)
    )
    return hr[:, :height, :width] if fits and len(hr) == len(lr) else None


def _enlarged(
    name: str,
    lr: Tensor,
    original: Tensor | None,
    enlarge: Callable[[Tensor], Tensor],
    run: Run,
    tile: int,
) -> Enlarged:
    """The part of a picture with the most contrast, enlarged."""
    scale = run.scale
    height, width = (min(side, max(1, SIDE // scale)) for side in lr.shape[-2:])
    top, left = busiest(lr, height, width, max(1, min(height, width) // 4))
    above, before = max(0, top - MARGIN), max(0, left - MARGIN)
    seen = lr[:, above : top + height + MARGIN, before : left + width + MARGIN]

    def cut(made: Tensor) -> Tensor:
        y, x = scale * (top - above), scale * (left - before)
        return made[0, :, y : y + scale * height, x : x + scale * width]

    made = [
        ("bicubic", cut(bicubic(seen[None], scale))),
        ("generator", cut(upscale(enlarge, [seen], scale, tile))),
    ]
    if original is None:
        versions = [(title, png_of(image), "") for title, image in made]
    else:
        y, x = scale * top, scale * left
        hr = original[:, y : y + scale * height, x : x + scale * width]
        scores = [float(psnr(image[None], hr[None], 0)) for _, image in made]
        versions = [
            (title, png_of(image), f"psnr_y {score:.2f}")
            for (title, image), score in zip(made, scores, strict=True)
        ]
        versions.append(("original", png_of(hr), ""))
    return Enlarged(name, scale * width, scale * height, versions)
