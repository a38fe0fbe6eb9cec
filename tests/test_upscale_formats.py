"""Enlarged pictures as PNG, JPEG and WebP: what each can hold, and what is told."""

import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from skimage import data

from ganlab import api
from ganlab.cli import main
from ganlab.commands import progress
from ganlab.commands.progress import Bar, shown_bar
from ganlab.errors import RecipeError
from ganlab.images import lossy
from ganlab.images.colour import made_profile
from ganlab.terminal import Terminal


@pytest.fixture(scope="module")
def trained(doubling: Path) -> Path:
    return doubling


@pytest.fixture
def photograph() -> Image.Image:
    return Image.fromarray(data.chelsea()[60:156, 100:220])


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def test_the_three_formats_hold_the_same_picture(
    trained: Path, photograph: Image.Image, tmp_path: Path
) -> None:
    photograph.save(tmp_path / "a.png")
    for kind in ("png", "jpeg", "webp", "png16"):
        result = call(trained, tmp_path / "a.png", "-o", tmp_path / kind, "--format", kind)
        assert result.exit_code == 0, result.output
        assert "96x" not in result.stdout and "120x96 -> 240x192" in result.stdout
    small = call(trained, tmp_path / "a.png", "-o", tmp_path / "small", "--format", "jpeg",
                 "--quality", 20)  # fmt: skip
    assert small.exit_code == 0, small.output
    found = {}
    for name, kind in (("png/a.png", "PNG"), ("jpeg/a.jpg", "JPEG"), ("webp/a.webp", "WEBP"),
                       ("png16/a.png", "PNG"), ("small/a.jpg", "JPEG")):  # fmt: skip
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
            found[name] = np.asarray(image.convert("RGB")).astype(int)
    exact = found.pop("png/a.png")
    errors = {name: np.abs(image - exact).mean() for name, image in found.items()}
    assert errors["png16/a.png"] < 0.6
    assert errors["jpeg/a.jpg"] < 3 and errors["webp/a.webp"] < 10
    assert errors["small/a.jpg"] > 2 * errors["jpeg/a.jpg"]


def test_keep_leaves_jpeg_and_webp_what_they_are(
    trained: Path, photograph: Image.Image, tmp_path: Path
) -> None:
    names = ("a.JPEG", "b.webp", "c.png", "d.bmp", "e.tif")
    (tmp_path / "in").mkdir()
    for name in names:
        photograph.save(tmp_path / "in" / name)
    Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)).save(
        tmp_path / "in" / "f.png"
    )
    assert call(trained, tmp_path / "in", "-o", tmp_path / "out", "--format", "keep").exit_code == 0
    found = {}
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            found[path.name] = (image.format, image.mode)
    assert found == {
        "a.JPEG": ("JPEG", "RGB"),
        "b.webp": ("WEBP", "RGB"),
        "c.png": ("PNG", "RGB"),
        "d.png": ("PNG", "RGB"),
        "e.png": ("PNG", "RGB"),
        "f.png": ("PNG", "I;16"),
    }


def test_what_a_format_cannot_hold_is_told(
    trained: Path, photograph: Image.Image, tmp_path: Path
) -> None:
    clear = photograph.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "a.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    result = call(trained, *files, "-o", tmp_path / "jpeg", "--format", "jpeg")
    assert "a.jpg: 120x96 -> 240x192 (white behind its transparent parts)" in result.stdout
    assert "b.jpg: 20x20 -> 40x40 (16 bits a channel read as 8)" in result.stdout
    with Image.open(tmp_path / "jpeg" / "b.jpg") as image:
        assert image.mode == "L"
    assert call(trained, *files, "-o", tmp_path / "webp", "--format", "webp").exit_code == 0
    with Image.open(tmp_path / "webp" / "a.webp") as image:
        alpha = np.asarray(image.getchannel("A"))
    assert alpha[:4].mean() < 8 and alpha[-4:].mean() > 247


def test_a_colour_profile_goes_into_each_format_that_can_hold_it(
    trained: Path, photograph: Image.Image, tmp_path: Path
) -> None:
    p3 = made_profile("P3", (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060), (2.2,))
    photograph.save(tmp_path / "a.png", icc_profile=p3)
    for kind, name in (("jpeg", "a.jpg"), ("webp", "a.webp"), ("png", "a.png")):
        made = call(trained, tmp_path / "a.png", "-o", tmp_path / kind, "--format", kind)
        assert made.exit_code == 0, made.output
        with Image.open(tmp_path / kind / name) as image:
            assert image.info["icc_profile"] == p3


def test_a_side_that_is_too_long_for_a_format_stops_none_of_the_others(
    trained: Path, photograph: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lossy._LARGEST, "WEBP", 200)
    photograph.save(tmp_path / "a.png")
    photograph.crop((0, 0, 100, 90)).save(tmp_path / "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    result = call(trained, *files, "-o", tmp_path / "out", "--format", "webp")
    assert result.exit_code == 1
    assert "a.webp: 240 x 192 pixels; WEBP holds at most 200 a side; write PNG." in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.webp"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--format", "png16", "--bits", "8"], "png16 has 16 bits"),
        (["--format", "jpeg", "--bits", "16"], "--bits 16 is for PNG"),
        (["--format", "keep", "--bits", "16"], "--bits 16 is for PNG"),
        (["--quality", "90"], "--quality is for JPEG and WebP"),
        (["--format", "tiff"], "'tiff' is not one of 'png', 'jpeg'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    trained: Path, tmp_path: Path, options: list[str], fault: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = call(trained, tmp_path / "a.png", "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert fault in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_function_has_the_same_formats(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    made = api.upscale(trained, tmp_path / "a.png", tmp_path / "out", format="jpeg", quality=80)
    assert made == [tmp_path / "out" / "a.jpg"]
    with Image.open(made[0]) as image:
        assert (image.format, image.size) == ("JPEG", (16, 16))
    with pytest.raises(RecipeError, match="--quality 0: give a number from 1 to 100"):
        api.upscale(trained, tmp_path / "a.png", tmp_path / "out", format="jpeg", quality=0)


def test_the_bar_shows_how_much_is_done_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_bar() as bar:  # stderr is no terminal
        bar.begin("enlarging", 12, "pictures")
        bar.at(3.5)
        bar.say("a.png: done")
    assert capsys.readouterr() == ("a.png: done\n", "")
    shown = StringIO()
    terminal = Terminal(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "Terminal", lambda **_: terminal)
    with shown_bar() as bar:
        bar.begin("[red]a\x1b[31m.mp4", 250, "frames", with_speed=True)
        for done in (1, 2, 12):
            bar.at(done)
            assert bar.progress
            bar.progress.refresh()
    text = shown.getvalue()
    assert "[red]a\\x1b[31m.mp4" in text  # neither rich nor the terminal obeys it
    assert re.search(r"12 of 250 frames, \S+ frames/s", text)  # on one line
    assert text.endswith("\x1b[2K")
    Bar().at(1)  # shows nothing, and needs no terminal


def test_an_animation_is_told_and_not_enlarged_as_its_first_picture(
    trained: Path, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 90, 200)]
    for name in ("a.webp", "b.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    result = call(trained, tmp_path / "a.webp", tmp_path / "b.gif", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.webp: holds 3 frames or pages" in result.stderr
    assert "b.gif: cannot be read as an image (it is a GIF)" in result.stderr
    assert "make a video of it: ffmpeg -i IN.gif OUT.mp4" in result.stderr
    assert not list((tmp_path / "out").iterdir())
