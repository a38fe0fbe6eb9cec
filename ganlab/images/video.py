"""Videos by the programs ffmpeg and ffprobe: what one is, its frames as tensors, and a new one.

Frames travel through pipes as rows of RGB bytes, so a video of any length needs the memory of some
frames. No shell is involved, and the programs may open no other file than the one that is named.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from torch import Tensor

from ganlab.errors import GanlabError, clipped, printable
from ganlab.system import own_group

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".wmv", ".flv", ".ogv", ".3gp"}
)
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Of the new video: that of the old one where H.264 is usual in it, else .mkv, which takes all."""
HOW_TO_GET = (
    "install it: `apt install ffmpeg` (Debian, Ubuntu), `brew install ffmpeg` (macOS), "
    "`winget install ffmpeg` (Windows)"
)
QUALITY = 16  # x264's CRF: no loss that is seen

# nothing but files, and no playlist: a stranger's file could name others
_INPUT = (
    *("-protocol_whitelist", "file"),
    *("-format_whitelist", "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg"),
)
_PRECISE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_MATRICES = {
    "bt709": "bt709",
    "fcc": "fcc",
    "bt470bg": "bt470",
    "smpte170m": "smpte170m",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
}
"""ffprobe's name of the matrix between RGB and YCbCr -> that of ffmpeg's filter `scale`."""
_CURVES = {"bt470m": "gamma22", "bt470bg": "gamma28"}
"""ffprobe's name of a transfer curve -> that of ffmpeg's option, where they differ."""
_SPEAKER = re.compile(r"^\[[^]]* @ 0x[0-9a-f]+\]")  # the part of ffmpeg that says a line
_LAST = 2**12  # bytes of what ffmpeg says


class VideoError(GanlabError):
    """A video cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Video:
    """What a reader and a writer must know about a video."""

    file: Path
    stream: int
    """The number of the pictures' stream."""
    width: int
    height: int
    """In pixels as they are shown: turned as the video says."""
    rate: Fraction
    """Frames a second."""
    begin: float
    """Seconds from the begin of the file, which may be that of the sound, to the first frame."""
    frames: int
    """How many there will be, roughly; 0: unknown."""
    matrix: str
    colour: tuple[str, ...]
    """Options of ffmpeg that name the colours, which stay as they are."""
    pixel: str
    """The shape of a pixel, width:height."""
    others: tuple[tuple[int, str], ...]
    """Sound, subtitles and fonts: number and kind of each stream."""
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Other:
    """A stream beside the pictures."""

    number: int
    kind: str
    """audio, subtitle or attachment."""
    codec: str
    """"copy" where the new container takes it as it is, else an encoder; "": left out."""


def is_video(file: Path) -> bool:
    """Whether a file is one by its suffix."""
    return file.suffix.lower() in SUFFIXES


def container_of(file: Path) -> str:
    """The suffix of the new video."""
    return file.suffix if file.suffix.lower() in CONTAINERS else ".mkv"


def require_ffmpeg() -> None:
    """Check that ffmpeg is there, with the encoder that is needed.

    :raises VideoError: which says how to get it.
    """
    for name in ("ffmpeg", "ffprobe"):
        if not shutil.which(name):
            raise VideoError(f"videos need the program {name}, which is not here; {HOW_TO_GET}")
    if "libx264" not in _said(["ffmpeg", "-v", "error", "-encoders"]).stdout:
        raise VideoError(f"this ffmpeg was built without the encoder libx264; {HOW_TO_GET}")


def probe(file: Path) -> Video:
    """Read what a video is.

    :raises VideoError: when it is none, or is damaged so far that it cannot be opened.
    """
    if not file.is_file():
        raise VideoError(f"{file}: is no regular file; give a video file.")
    said = _said(["ffprobe", "-v", "error", *_INPUT, "-show_streams", "-show_format",
                  "-of", "json", _name(file)])  # fmt: skip
    try:
        found = json.loads(said.stdout)
        streams = found["streams"]
        pictures = next(s for s in streams if s["codec_type"] == "video" and not _is_cover(s))
        return _video(file, pictures, streams, found.get("format", {}))
    except (ValueError, KeyError, TypeError, ZeroDivisionError, StopIteration):
        reason = _words(said.stderr) or "it has no moving pictures"
        raise VideoError(f"{file}: cannot be read as a video ({reason}).") from None


def frames(
    video: Video, begin: float = 0.0, faults: list[str] | None = None
) -> Generator[bytes, None, None]:
    """The frames of a video at a constant rate, as bytes of RGB, row by row.

    :param begin: seconds that are left out.
    :param faults: a list that gets what ffmpeg says about damage, at the end.
    :raises VideoError: when ffmpeg fails, or there is no frame.
    """
    chain = (
        f"setpts=PTS-STARTPTS,fps={video.rate},scale={video.width}:{video.height}:{_PRECISE}"
        f":in_color_matrix={_MATRICES[video.matrix]},format=rgb24"
    )
    command = ["-ss", f"{begin:.3f}"] if begin else []
    command += [*_INPUT, "-i", _name(video.file), "-map", f"0:{video.stream}", "-vf", chain]
    size, number = 3 * video.width * video.height, 0
    command += ["-f", "rawvideo", "-"]
    with _running(command, video.file, stdout=subprocess.PIPE, faults=faults) as reader:
        pipe = _pipe(reader.stdout)
        while len(content := pipe.read(size)) == size:
            number += 1
            yield content
    if not number:
        where = f" from {begin:.1f} s on" if begin else ""
        raise VideoError(f"{video.file}: has no frame that can be decoded{where}.")


def as_tensor(frame: bytes, video: Video) -> Tensor:
    """A frame as uint8 [3, H, W]."""
    rows = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    return rows.view(video.height, video.width, 3).permute(2, 0, 1)


@contextmanager
def writing(
    video: Video, target: Path, scale: int, kept: Sequence[Other]
) -> Iterator[Callable[[Tensor], None]]:
    """Context that writes an enlarged video, with sound and subtitles of the old one.

    The context's value is a function that takes the next rows, uint8 [3, rows, scale * W].

    :param kept: from `others`.
    :raises VideoError: when ffmpeg fails.
    """
    container = CONTAINERS[target.suffix.lower()]
    width, height = scale * video.width, scale * video.height
    chain = (
        f"scale=in_range=pc:out_range=tv:out_color_matrix={_MATRICES[video.matrix]}:{_PRECISE},"
        f"crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0,setsar={video.pixel.replace(':', '/')},"
        "format=yuv420p"
    )
    command = ["-itsoffset", f"{video.begin:.6f}"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}",
                "-framerate", str(video.rate), "-i", "pipe:0", *_INPUT, "-i", _name(video.file),
                "-map", "0:0"]  # fmt: skip
    for other in kept:
        command += ["-map", f"1:{other.number}"] if other.codec else []
    command += ["-map_metadata", "1", "-map_chapters", "1", "-vf", chain]
    command += ["-c:v", "libx264", "-crf", str(QUALITY), *video.colour]
    for place, codec in enumerate([other.codec for other in kept if other.codec], 1):
        command += [f"-c:{place}", codec]
    command += ["-f", container, _name(target)]
    with _running(command, video.file, stdin=subprocess.PIPE) as writer:
        pipe = _pipe(writer.stdin)

        def write(rows: Tensor) -> None:
            try:
                pipe.write(rows.permute(1, 2, 0).contiguous().numpy().data.cast("B"))
            except OSError as fault:  # Windows has another number for a broken pipe
                raise BrokenPipeError from fault

        yield write
        pipe.close()


def others(video: Video, target: Path) -> list[Other]:
    """Sound, subtitles and fonts, and how each gets into the new file.

    Only ffmpeg knows; so it is asked to begin such a file with each of them.
    """
    container = CONTAINERS[target.suffix.lower()]
    instead = {"audio": "aac", "subtitle": "srt" if container == "matroska" else "mov_text"}
    found = []
    for number, kind in video.others:
        codecs = ["copy", *filter(None, [instead.get(kind)])]
        takes = (codec for codec in codecs if _takes(video.file, number, codec, container))
        found.append(Other(number, kind, next(takes, "")))
    return found


def _takes(file: Path, stream: int, codec: str, container: str) -> bool:
    command = ["ffmpeg", "-v", "error", "-nostdin", *_INPUT, "-i", _name(file),
               "-map", f"0:{stream}", "-c", codec, "-t", "0",
               "-f", container, "-y", os.devnull]  # fmt: skip
    return not _said(command).returncode


def _video(
    file: Path, stream: dict[str, Any], streams: list[dict[str, Any]], about: dict[str, Any]
) -> Video:
    turned = any(side.get("rotation", 0) % 180 == 90 for side in stream.get("side_data_list", ()))
    width, height = int(stream["width"]), int(stream["height"])
    pixel = str(stream.get("sample_aspect_ratio", "1:1")).split(":")
    pixel = ["1", "1"] if "0" in pixel or len(pixel) != 2 else pixel
    if turned:
        width, height, pixel = height, width, pixel[::-1]
    rate, is_regular = _rate(stream)
    seconds = float(stream.get("duration") or about.get("duration") or 0)
    number = int(stream.get("nb_frames", 0)) if is_regular else 0
    matrix = stream.get("color_space")
    if matrix not in _MATRICES:  # what players take where a video does not say it
        matrix = "bt709" if min(width, height) >= 720 else "smpte170m"
    others = [s for s in streams if s["index"] != stream["index"] and not _is_cover(s)]
    more = sum(s["codec_type"] == "video" for s in others)
    remarks = [*_remarks(stream), *([] if is_regular else [
        f"variable frame rate, made constant: {float(rate):.4g} frames a second"
    ]), *([f"{more} more streams of pictures are left out"] if more else [])]  # fmt: skip
    return Video(
        file,
        int(stream["index"]),
        width,
        height,
        rate,
        max(0.0, float(stream.get("start_time", 0)) - float(about.get("start_time", 0))),
        number or round(seconds * rate),
        matrix,
        _colour(stream, matrix),
        ":".join(pixel),
        tuple(
            (int(s["index"]), str(s["codec_type"]))
            for s in others
            if s["codec_type"] in ("audio", "subtitle", "attachment")
        ),
        tuple(remarks),
    )


def _rate(stream: dict[str, Any]) -> tuple[Fraction, bool]:
    """Frames a second, and whether all frames last equally long.

    ffprobe tells the mean rate and the lowest rate that meets the time of each frame. The latter is
    taken unless it is much higher: a video of few, uneven frames would be blown up.
    """
    mean, exact = (_ratio(stream.get(key)) for key in ("avg_frame_rate", "r_frame_rate"))
    mean = mean or exact
    if not mean:
        raise ValueError("no frame rate")
    if _is_interlaced(stream):  # the exact one is that of the half pictures
        return mean, True
    if abs(exact - mean) <= mean / 200:
        return exact, True
    return (exact if mean < exact <= 2 * mean else mean.limit_denominator(1001)), False


def _ratio(text: Any) -> Fraction:
    with suppress(ValueError, ZeroDivisionError):
        return Fraction(str(text))
    return Fraction(0)


def _remarks(stream: dict[str, Any]) -> Iterator[str]:
    """What a user must know about the pictures of a video."""
    kind = str(stream.get("pix_fmt", ""))
    bits = str(stream.get("bits_per_raw_sample", ""))
    deep = next((n for n in ("10", "12", "16") if f"p{n}" in kind or bits == n), "")
    if deep:
        yield f"{deep} bits a channel read and written as 8"
    if stream.get("color_transfer") in ("smpte2084", "arib-std-b67"):
        yield "high dynamic range, of which 8 bits show steps"
    named = {key.lower(): value for key, value in stream.get("tags", {}).items()}
    is_clear = kind.startswith(("yuva", "gbrap", "rgba", "argb", "bgra", "abgr", "ya"))
    if is_clear or named.get("alpha_mode") == "1":  # WebM has its alpha beside the pictures
        yield "its transparency is left out"
    if _is_interlaced(stream):
        yield "interlaced: make it progressive first (ffmpeg -i IN -vf bwdif OUT)"


def _is_interlaced(stream: dict[str, Any]) -> bool:
    return stream.get("field_order") in ("tt", "bb", "tb", "bt")


def _is_cover(stream: dict[str, Any]) -> bool:
    return bool(stream.get("disposition", {}).get("attached_pic"))


def _colour(stream: dict[str, Any], matrix: str) -> tuple[str, ...]:
    options = ["-colorspace", matrix, "-color_range", "tv"]
    for option, key, known in (
        ("-color_primaries", "color_primaries", {}),
        ("-color_trc", "color_transfer", _CURVES),
    ):
        if (value := str(stream.get(key, "unknown"))).replace("-", "").isalnum():
            options += [] if value in ("unknown", "reserved") else [option, known.get(value, value)]
    return tuple(options)


@contextmanager
def _running(
    arguments: Sequence[str],
    file: Path,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    faults: list[str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Context of ffmpeg at work on a file; at an error of the context it is ended.

    :raises VideoError: when ffmpeg fails, or reads no more.
    """
    with TemporaryFile() as said:
        process = subprocess.Popen(
            ["ffmpeg", "-v", "error", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=said,
            **own_group(),
        )
        is_cut = False
        try:
            try:
                yield process
            except BrokenPipeError:
                is_cut = True
            process.wait()
        finally:
            _end(process)
        said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST))
        reason = _words(said.read().decode(errors="replace"))
    if process.returncode or is_cut:
        raise VideoError(f"{file}: ffmpeg failed: {reason or f'exit code {process.returncode}'}")
    if faults is not None and reason:
        faults.append(reason)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was not written yet is lost
            if pipe:
                pipe.close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream
    return stream


def _said(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        **own_group(),
    )


def _name(file: Path) -> str:
    """A file's name for ffmpeg, that is neither an option nor an address."""
    return f"file:{file}"


def _words(text: str) -> str:
    lines = [_SPEAKER.sub("", line).strip() for line in text.splitlines() if line.strip()]
    return clipped(printable("; ".join(lines[-3:])))
