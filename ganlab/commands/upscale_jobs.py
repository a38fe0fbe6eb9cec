"""Which files `ganlab upscale` reads, and which it writes, in which format."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ganlab.commands.many import listed
from ganlab.errors import RecipeError
from ganlab.images import lossy
from ganlab.images.files import ImageError
from ganlab.images.video import container_of, is_video
from ganlab.system import as_one_name

Format = Literal["png", "jpeg", "webp", "png16", "keep"]
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp", "png16", "keep")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How enlarged pictures are written.

    :raises RecipeError: when its values do not go together.
    """

    format: Format = "png"
    """"keep": JPEG and WebP stay what they are, all others become PNG."""
    quality: int | None = None
    """Of JPEG and WebP, 1 to 100."""
    bits: Literal[8, 16] | None = None
    """Of each value in a PNG file; None: as many as the picture has."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise RecipeError(f"format {self.format!r}: choose of {', '.join(FORMATS)}")
        if self.format == "png16" and self.bits == 8:
            raise RecipeError("--format png16 has 16 bits: leave out --bits 8")
        if self.format in ("jpeg", "webp", "keep") and self.bits == 16:
            raise RecipeError(f"--bits 16 is for PNG, and --format {self.format} may write others")
        if self.quality is not None and self.format in ("png", "png16"):
            raise RecipeError("--quality is for JPEG and WebP: PNG loses nothing")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise RecipeError(f"--quality {self.quality}: give a number from 1 to 100")

    def suffix(self, file: Path) -> str:
        """That of the file to write for an image file."""
        if self.format == "keep" and lossy.format_of(file) != "PNG":
            return file.suffix
        return {"jpeg": ".jpg", "webp": ".webp"}.get(self.format, ".png")

    def bits_of(self, target: Path) -> int | None:
        """Bits of each value of a file; None: as many as the picture has."""
        if lossy.format_of(target) != "PNG":
            return 8
        return 16 if self.format == "png16" else self.bits


@dataclass(frozen=True, slots=True)
class Job:
    """An image or video to enlarge, and the file to write."""

    file: Path
    target: Path
    done: bool = False
    """Whether the target is there already."""

    @property
    def is_video(self) -> bool:
        return is_video(self.file)


PNG = Encoding()


def jobs_of(images: Iterable[Path], output: Path, encoding: Encoding = PNG) -> list[Job]:
    """The files to enlarge and the files to write, all in one folder.

    :param images: image and video files, or folders of images, whose subfolders are kept.
    :raises RecipeError: when a file would replace another one or itself.
    """
    jobs: dict[str, Job] = {}
    for path in images:
        for file, target in _targets(path, output, encoding):
            other = jobs.setdefault(as_one_name(str(target)), Job(file, target)).file
            if other != file and not other.samefile(file):
                raise RecipeError(
                    f"{other} and {file} would both be written to {target}; enlarge one of them "
                    "into another --output"
                )
            if as_one_name(os.path.realpath(target)) == as_one_name(os.path.realpath(file)):
                raise RecipeError(f"{file} would replace itself; choose another --output")
    return list(jobs.values())


def _targets(path: Path, output: Path, encoding: Encoding) -> Iterator[tuple[Path, Path]]:
    """A file, or each image of a folder, with the file to write."""
    if not path.is_dir():
        if not path.exists():
            kind = "video" if is_video(path) else "image"
            raise RecipeError(f"{path}: no such {kind} file")
        suffix = container_of(path) if is_video(path) else encoding.suffix(path)
        yield path, output / f"{path.stem}{suffix}"
        return
    root, made = path.resolve(), output.resolve()
    if made == root:
        raise RecipeError(f"--output {output} is the folder of the images; choose another one")
    inside = made.is_relative_to(root)  # then what an earlier call wrote is no input
    for file in listed(path):
        if not (inside and file.resolve().is_relative_to(made)):
            yield file, output / file.relative_to(path).with_suffix(encoding.suffix(file))


def placed(job: Job) -> Job:
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
