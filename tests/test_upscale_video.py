"""Videos: frames through ffmpeg and back, with sound, and no half file whatever happens."""

import json
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from marks import posix
from skimage import data
from torch import Tensor

from ganlab.cli import main
from ganlab.commands import upscale, upscale_video
from ganlab.images import video
from ganlab.images.files import read_image, write_png
from ganlab.images.metrics import psnr
from ganlab.images.resampling import resize

HERE = shutil.which("ffmpeg") and shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(not HERE, reason="needs the program ffmpeg")
SECOND = "testsrc=size=48x32:rate=25:duration=1"
SINE = ["-f", "lavfi", "-i", "sine=frequency=440:duration=1"]


@pytest.fixture(scope="module")
def trained(doubling: Path) -> Path:
    return doubling


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def made(file: Path, *arguments: object, source: str = SECOND) -> Path:
    """A video of moving test pictures."""
    ffmpeg("-f", "lavfi", "-i", source, *arguments, file)
    return file


def plain(file: Path, *arguments: object, source: str = SECOND) -> Path:
    return made(file, *arguments, "-c:v", "libx264", "-pix_fmt", "yuv420p", source=source)


def streams(file: Path) -> dict[str, dict[str, Any]]:
    """What ffprobe says of the streams of a file, by kind."""
    command = ["ffprobe", "-v", "error", "-show_streams", "-count_frames", "-of", "json", str(file)]
    said = subprocess.run(command, capture_output=True, check=True)
    return {stream["codec_type"]: stream for stream in json.loads(said.stdout)["streams"]}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def twice(images: Tensor) -> Tensor:
    """A generator x2."""
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def use(monkeypatch: pytest.MonkeyPatch, generator: Callable[[Tensor], Tensor]) -> None:
    """Use another generator than that of the run."""
    load = upscale.load_for_use
    monkeypatch.setattr(upscale, "load_for_use", lambda *a: (load(*a)[0], generator, None))


@needs_ffmpeg
def test_a_video_keeps_its_frames_its_length_its_sound_and_its_subtitles(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    file = plain(tmp_path / "a.mp4", *SINE, "-i", tmp_path / "words.srt", "-c:s", "mov_text",
                 "-map", "0", "-map", "1", "-map", "2", "-c:a", "aac")  # fmt: skip
    result = call(trained, file, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "a.mp4: 48x32 -> 96x64, 25 frames\n" in result.stdout
    before, after = streams(file), streams(tmp_path / "out" / "a.mp4")
    assert after.keys() == before.keys() == {"video", "audio", "subtitle"}
    assert (after["video"]["width"], after["video"]["height"]) == (96, 64)
    for kind, key in (("video", "nb_read_frames"), ("video", "r_frame_rate"),
                      ("video", "duration"), ("audio", "duration")):  # fmt: skip
        assert after[kind][key] == before[kind][key]
    for kind in ("audio", "subtitle"):
        assert after[kind]["codec_name"] == before[kind]["codec_name"]
    sound = ["-map", "0:a", "-c", "copy", "-f", "md5", "-"]
    digests = [
        subprocess.check_output(["ffmpeg", "-v", "error", "-i", str(each), *sound])
        for each in (file, tmp_path / "out" / "a.mp4")
    ]
    assert digests[0] == digests[1]


@needs_ffmpeg
def test_a_frame_of_the_new_video_is_the_enlarged_still_picture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, lambda images: resize(images, (2 * images.shape[2], 2 * images.shape[3])))
    photograph = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)
    write_png(photograph[:, 60:188, 100:292], tmp_path / "photo.png")
    pan = "crop=96:96:x=8*n:y=8,fps=10"
    ffmpeg("-loop", 1, "-framerate", 10, "-i", tmp_path / "photo.png", "-t", 1, "-vf", pan,
           "-c:v", "libx264", "-crf", 12, "-pix_fmt", "yuv420p", tmp_path / "pan.mp4")  # fmt: skip
    assert call(trained, tmp_path / "pan.mp4", "-o", tmp_path / "out").exit_code == 0

    def still(file: Path, name: str) -> Path:
        ffmpeg("-i", file, "-vf", "select=eq(n\\,6),scale=flags=accurate_rnd+full_chroma_int",
               "-frames:v", 1, tmp_path / name)  # fmt: skip
        return tmp_path / name

    small = call(trained, still(tmp_path / "pan.mp4", "small.png"), "-o", tmp_path / "still")
    assert small.exit_code == 0, small.output
    large = read_image(still(tmp_path / "out" / "pan.mp4", "large.png"))
    expected = read_image(tmp_path / "still" / "small.png")
    assert float(psnr(large[None], expected[None], 2)) > 38
    assert float(psnr(large[None], expected[None].roll(2, 3), 2)) < 30  # a neighbouring frame


@needs_ffmpeg
@pytest.mark.parametrize(
    ("size", "tags", "matrix"),
    [
        ((64, 48), [], "smpte170m"),
        (
            (64, 48),  # as on a DVD, with a curve that ffprobe and ffmpeg name differently
            ["-colorspace", "bt470bg", "-color_primaries", "bt470bg", "-color_trc", "gamma28"],
            "bt470bg",
        ),
        pytest.param((1280, 720), [], "bt709", marks=pytest.mark.long),
    ],
)
def test_colours_are_the_same_numbers_and_are_named(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    tags: list[str],
    matrix: str,
) -> None:
    use(monkeypatch, twice)
    width, height = size
    source = f"color=0xc08040:size={width}x{height}:rate=1:duration=1"
    file = plain(tmp_path / "a.mp4", *tags, source=source)
    assert call(trained, file, "-o", tmp_path / "out").exit_code == 0
    was, new = (streams(path)["video"] for path in (file, tmp_path / "out" / "a.mp4"))
    assert (new["color_space"], new["color_range"]) == (matrix, "tv")
    for key in ("color_primaries", "color_transfer"):
        assert new.get(key) == was.get(key)

    def planes(video: Path) -> Tensor:
        """Y, Cb and Cr in the middle."""
        command = ["ffmpeg", "-v", "error", "-i", str(video), "-pix_fmt", "yuv444p"]
        raw = subprocess.check_output([*command, "-f", "rawvideo", "-"])
        values = torch.frombuffer(bytearray(raw), dtype=torch.uint8).int().view(3, -1)
        return values[:, values.shape[1] // 2]

    old, made = planes(file), planes(tmp_path / "out" / "a.mp4")
    assert (old - made).abs().max() <= 1


@pytest.mark.long
@needs_ffmpeg
def test_a_full_range_of_values_becomes_the_usual_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, twice)
    file = made(tmp_path / "a.mp4", "-vf", "scale=out_range=pc", "-c:v", "libx264",
                "-pix_fmt", "yuvj420p", source="color=0xf0a040:size=16x16:rate=1:duration=1",
                )  # fmt: skip
    assert streams(file)["video"]["color_range"] == "pc"
    assert call(trained, file, "-o", tmp_path / "out").exit_code == 0
    new = tmp_path / "out" / "a.mp4"
    assert streams(new)["video"]["color_range"] == "tv"
    raw = subprocess.check_output(
        ["ffmpeg", "-v", "error", "-i", str(new), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    )
    assert [round(value / 4) for value in raw[:3]] == [0xF0 // 4, 0xA0 // 4, 0x40 // 4]


@needs_ffmpeg
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-pix_fmt", "yuv420p10le"], "10 bits a channel read and written as 8"),
        (
            ["-vf", "select=not(mod(n\\,3))+lt(n\\,9)", "-vsync", "vfr"],
            "variable frame rate, made constant: 25 frames a second",
        ),
        (
            ["-flags", "+ildct+ilme", "-x264-params", "tff=1"],
            "interlaced: make it progressive first (ffmpeg -i IN -vf bwdif OUT)",
        ),
    ],
)
def test_what_a_video_loses_is_a_remark(tmp_path: Path, options: list[str], told: str) -> None:
    file = made(tmp_path / "a.mp4", "-c:v", "libx264", *options)
    assert video.probe(file).remarks == (told,)


@needs_ffmpeg
def test_remarks_sides_of_odd_length_and_another_container_are_told(
    trained: Path, tmp_path: Path
) -> None:
    source = "testsrc=size=47x33:rate=25:duration=1"
    file = made(tmp_path / "a.webm", "-c:v", "libvpx", "-auto-alt-ref", 0,
                "-pix_fmt", "yuva420p", source=source)  # fmt: skip
    result = call(trained, file, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = "a.mkv: 47x33 -> 94x66, 25 frames (its transparency is left out)\n"
    assert told in result.stdout


@pytest.mark.long
@needs_ffmpeg
def test_pictures_that_begin_after_the_sound_still_do(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.mkv"
    ffmpeg(*SINE, "-itsoffset", 0.5, "-f", "lavfi", "-i", SECOND, "-c:v", "libx264", file)
    assert call(trained, file, "-o", tmp_path / "out").exit_code == 0
    new = streams(tmp_path / "out" / "a.mkv")
    assert new["video"]["nb_read_frames"] == "25"
    begins = [float(new[kind]["start_time"]) for kind in ("audio", "video")]
    assert begins == pytest.approx([0, 0.5], abs=0.03)


@needs_ffmpeg
def test_a_turned_video_and_its_pixels_are_shown_as_before(trained: Path, tmp_path: Path) -> None:
    plain(tmp_path / "flat.mp4", "-vf", "setsar=16/11")
    turned = tmp_path / "turned.mp4"
    ffmpeg("-i", tmp_path / "flat.mp4", "-c", "copy", "-metadata:s:v", "rotate=90", turned)
    found = video.probe(turned)
    if found.width > found.height:
        pytest.skip("this ffmpeg turns no video by its metadata")
    assert call(trained, turned, "-o", tmp_path / "out").exit_code == 0
    (large,) = [streams(tmp_path / "out" / "turned.mp4")["video"]]
    assert (large["width"], large["height"]) == (64, 96)
    assert large["sample_aspect_ratio"] == "11:16"
    assert "rotation" not in json.dumps(large)


@needs_ffmpeg
def test_broken_videos_stop_none_of_the_others_and_no_other_file_is_opened(
    trained: Path, tmp_path: Path
) -> None:
    good = plain(tmp_path / "-good.mp4", *SINE)
    (tmp_path / "broken.mp4").write_text("nothing")
    (tmp_path / "list.mkv").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    ffmpeg(*SINE, tmp_path / "sound.mp4")
    names = ("broken.mp4", "list.mkv", "sound.mp4", good.name)
    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "a.png")
    files = [tmp_path / name for name in (*names, "a.png")]
    result = call(trained, *files, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", good.name}
    assert "3 of 5 files were not enlarged:" in result.stderr
    assert "broken.mp4: cannot be read as a video (moov atom not found" in result.stderr
    assert "list.mkv: cannot be read as a video (Format not on whitelist" in result.stderr
    assert "sound.mp4: cannot be read as a video (it has no moving pictures)" in result.stderr
    again = call(trained, good, "-o", tmp_path / "out")
    assert "1 of 1 files are there already" in again.stdout


@needs_ffmpeg
def test_a_video_that_is_cut_off_is_enlarged_as_far_as_it_goes(
    trained: Path, tmp_path: Path
) -> None:
    whole = plain(tmp_path / "whole.mp4", "-movflags", "faststart",
                  source="testsrc=size=48x32:rate=25:duration=4")  # fmt: skip
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    result = call(trained, tmp_path / "cut.mp4", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "it ends early: " in result.stdout and " of 100 frames could be read" in result.stdout
    assert "ffmpeg says: " in result.stdout and "partial file" in result.stdout


@pytest.mark.parametrize("absent", ["ffmpeg", "ffprobe"])
def test_without_ffmpeg_one_line_says_how_to_get_it_before_any_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    monkeypatch.setattr(video.shutil, "which", lambda name: None if name == absent else name)
    monkeypatch.setattr(upscale, "load_for_use", None)
    (tmp_path / "a.mp4").touch()
    result = call(trained, tmp_path / "a.mp4", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"videos need the program {absent}, which is not here; install")
    assert result.stderr.count("\n") == 1 and "apt install ffmpeg" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """The reader and the writer, as they are started."""
    begun: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        process = start(*arguments, **options)
        begun.append(process) if "-vf" in process.args else None  # type: ignore[operator]
        return process

    monkeypatch.setattr(video.subprocess, "Popen", noted)
    return begun


@needs_ffmpeg
@pytest.mark.parametrize("which", [pytest.param("reader", marks=pytest.mark.long), "writer"])
def test_an_ffmpeg_that_dies_leaves_no_half_file(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: list["subprocess.Popen[bytes]"],
    which: str,
) -> None:
    seen: list[int] = []

    def killing(images: Tensor) -> Tensor:
        seen.append(len(images))
        if len(seen) == 3:
            (victim,) = [p for p in processes if (p.stdin is None) == (which == "reader")]
            victim.kill()
            victim.wait()
        return twice(images)

    use(monkeypatch, killing)
    monkeypatch.setitem(upscale_video.TOGETHER, "cpu", 1)
    large = plain(tmp_path / "a.mp4", source="testsrc=size=160x120:rate=25:duration=2")
    result = call(trained, large, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.mp4: ffmpeg failed: " in result.stderr
    assert len(seen) < 50
    assert [*(tmp_path / "out").iterdir()] == []
    assert all(process.poll() is not None for process in processes)


@needs_ffmpeg
def test_ctrl_c_leaves_no_half_file_and_no_process(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: list["subprocess.Popen[bytes]"],
) -> None:
    def interrupted(images: Tensor) -> Tensor:
        raise KeyboardInterrupt

    use(monkeypatch, interrupted)
    result = call(trained, plain(tmp_path / "a.mp4"), "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert [*(tmp_path / "out").iterdir()] == []
    assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)


@needs_ffmpeg
def test_few_frames_are_held_and_equal_neighbours_are_enlarged_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    held: list[int] = []
    take = video.frames

    def counted(*arguments: Any, **options: Any) -> Generator[bytes, None, None]:
        for frame in take(*arguments, **options):
            read.append(len(frame))
            yield frame

    def watching(images: Tensor) -> Tensor:
        held.append(len(read) - sum(shown))
        shown.append(len(images))
        return twice(images)

    shown: list[int] = []
    use(monkeypatch, watching)
    monkeypatch.setattr(upscale_video, "frames", counted)
    monkeypatch.setitem(upscale_video.TOGETHER, "cpu", 4 * 2 * 48 * 32)  # two frames
    moving = plain(tmp_path / "a.mp4", source="testsrc=size=48x32:rate=25:duration=2")
    assert call(trained, moving, "-o", tmp_path / "out").exit_code == 0
    assert (sum(shown), len(read)) == (50, 50)
    assert max(held) <= 4  # a group, and the frame that ends it
    shown.clear()
    still = plain(tmp_path / "b.mp4", source="color=red:size=48x32:rate=25:duration=2")
    assert call(trained, still, "-o", tmp_path / "out").exit_code == 0
    assert sum(shown) == 1
    assert streams(tmp_path / "out" / "b.mp4")["video"]["nb_read_frames"] == "50"


@needs_ffmpeg
def test_what_a_container_does_not_take_gets_another_codec(tmp_path: Path) -> None:
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    file = plain(tmp_path / "a.mkv", *SINE, "-i", tmp_path / "words.srt", "-map", "0", "-map", "1",
                 "-map", "2", "-c:a", "pcm_s16le", "-c:s", "srt")  # fmt: skip
    found = video.probe(file)
    codecs = {
        suffix: [other.codec for other in video.others(found, Path(f"x{suffix}"))]
        for suffix in (".mkv", ".mov")
    }
    assert codecs == {".mkv": ["copy", "copy"], ".mov": ["copy", "mov_text"]}


@posix
@needs_ffmpeg
def test_a_name_is_neither_an_option_nor_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain(tmp_path / "plain.mp4").parent)
    for name in ("-x.mp4", "concat:x.mp4"):
        shutil.copy(tmp_path / "plain.mp4", tmp_path / name)
        assert len([*video.frames(video.probe(Path(name)))]) == 25
