"""`ganlab upscale --compare`: a page of what the generator makes beside bicubic enlargement."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ganlab.commands.many import listed
from ganlab.commands.progress import Bar
from ganlab.commands.score import forms_of
from ganlab.commands.upscale_jobs import Job
from ganlab.commands.upscale_video import rounded
from ganlab.errors import GanlabError, RecipeError
from ganlab.images.contrast import busiest
from ganlab.images.files import png_of, read_image
from ganlab.images.metrics import psnr
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
    """The page to write: its file, and the originals by all names that they may stand for."""

    path: Path
    originals: dict[str, Path]
    folder: Path | None
    """Of the originals."""


def page_in(output: Path, originals: Path | None, wanted: bool) -> Page | None:
    """The page beside the enlarged pictures, if it is wanted.

    :raises RecipeError: when it cannot be written, or there are originals for no page.
    :raises ImageError: when the folder of originals has no image.
    """
    if not wanted:
        if originals:
            raise RecipeError("--original is for the page of --compare: give that too")
        return None
    found: dict[str, Path] = {}
    for file in listed(originals) if originals else ():
        for form in forms_of(Path(file.name)):
            found.setdefault(form, file)
    path = output / "compare.html"
    check_writable(path)
    return Page(path, found, originals)


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
            name, lr = _shown(job)
            original = _original(page, job, lr, run.scale)
            if page.folder and original is None and not job.is_video:
                missing.append(job.file.name)
            with passing_matrices():
                found.append(_enlarged(name, lr, original, enlarge, run, tile))
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
    """The name and the picture of a file, uint8 [1 or 3, H, W]."""
    if not job.is_video:
        return job.file.name, read_image(job.file, keep_grey=True)
    video = probe(job.file)
    seconds = float(video.frames / video.rate / 2)
    with closing(frames(video, seconds)) as read:
        return f"{job.file.name} at {seconds:.1f} s", as_tensor(next(read), video)


def _original(page: Page, job: Job, lr: Tensor, scale: int) -> Tensor | None:
    """The original of a picture, cropped to a multiple of the scale; None without a fitting one."""
    names = forms_of(Path(job.file.name))
    file = next((page.originals[name] for name in names if name in page.originals), None)
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
