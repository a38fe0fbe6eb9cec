"""Enlarge a video frame by frame: ffmpeg reads the old one and writes the new one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby

from torch import Tensor, nn

from ganlab.commands.progress import Bar
from ganlab.commands.upscale_jobs import Job
from ganlab.evaluation.scores import TOGETHER, grey_plane
from ganlab.files import whole_by_name
from ganlab.images.resampling import to_float, to_uint8, to_uint16
from ganlab.images.upscaling import bands, of_one_size
from ganlab.images.video import Other, Video, VideoError, as_tensor, frames, others, probe, writing
from ganlab.run import Run

Times = tuple[bytes, int]
"""A frame, and how often it comes in a row."""


def enlarge_video(job: Job, generator: nn.Module, run: Run, tile: int, bar: Bar) -> str:
    """Enlarge a video; returns a line of text. Nothing is left of one that fails.

    Held in memory are the frames of a group, and one row of tiles of the result. A frame that
    equals the one before is not enlarged again.

    :raises VideoError: when it cannot be read or written.
    """
    video = probe(job.file)
    bar.begin(job.target.name, video.frames, "frames", with_speed=True)
    at_once = TOGETHER[run.device.type] // run.scale**2
    enlarge, number = rounded(generator, run, False), 0
    kept, faults = others(video, job.target), list[str]()
    try:
        with (
            whole_by_name(job.target) as part,
            closing(frames(video, faults=faults)) as read,
            writing(video, part, run.scale, kept) as write,
        ):
            size = (video.height, video.width)
            for group in of_one_size(_repeated(read), lambda _: size, at_once):
                for band in _enlarged(group, video, enlarge, run.scale, tile):
                    write(band)
                number += sum(times for _, times in group)
                bar.at(number)
    except OSError as fault:
        raise VideoError(f"{job.target}: cannot be written ({fault.strerror or fault}).") from None
    return f"{job.target}: {_told(video, job, kept, faults, number, run.scale)}"


def rounded(generator: nn.Module, run: Run, is_deep: bool) -> Callable[[Tensor], Tensor]:
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


def _repeated(contents: Iterable[bytes]) -> Iterator[Times]:
    """The frames that differ from the one before."""
    for content, same in groupby(contents):
        yield content, sum(1 for _ in same)


def _enlarged(
    group: list[Times], video: Video, enlarge: Callable[[Tensor], Tensor], scale: int, tile: int
) -> Iterator[Tensor]:
    """The rows of enlarged frames, [3, rows, W] each, in the order of the new video."""
    made: Iterable[Tensor] = bands(
        enlarge, [as_tensor(content, video) for content, _ in group], scale, tile
    )
    if len(group) > 1 or group[0][1] > 1:
        made = list(made)
    for number, (_, times) in enumerate(group):
        for _ in range(times):
            yield from (band[number] for band in made)


def _told(
    video: Video, job: Job, kept: list[Other], faults: list[str], number: int, scale: int
) -> str:
    """What was made, and what a user must know about it."""
    width, height = (scale * side for side in (video.width, video.height))
    remarks = [*video.remarks]
    if width % 2 or height % 2:
        remarks.append("H.264 needs even sides: the last column or row is cut off")
        width, height = width - width % 2, height - height % 2
    if number < 0.9 * video.frames:
        remarks.append(f"it ends early: {number:,} of {video.frames:,} frames could be read")
    remarks += [f"ffmpeg says: {fault}" for fault in faults]
    for other in kept:
        if other.codec != "copy":
            how = f"became {other.codec}" if other.codec else "is left out"
            remarks.append(f"{other.kind} {how}: {job.target.suffix} does not take it as it is")
    size = f"{video.width}x{video.height} -> {width}x{height}, {number:,} frames"
    return size + (f" ({'; '.join(remarks)})" if remarks else "")
