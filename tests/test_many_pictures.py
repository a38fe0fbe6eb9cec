"""A batch of pictures: a broken one stops none of the others, and a second call goes on."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from marks import posix
from torch import Tensor

from ganlab import GanlabError, write_png
from ganlab.cli import main
from ganlab.commands import many, upscale
from ganlab.system import as_one_name


@pytest.fixture(scope="module")
def trained(doubling: Path) -> Path:
    return doubling


def draw(path: Path, side: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(torch.randint(0, 256, (3, side, side), dtype=torch.uint8), path)
    return path


@pytest.fixture
def five(tmp_path: Path) -> list[Path]:
    """Five pictures, of which the second and the fourth are broken."""
    files = [draw(tmp_path / "in" / f"{name}.png") for name in "abcde"]
    files[1].write_bytes(files[1].read_bytes()[:300])
    files[3].write_text("not a picture")
    return files


def call(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)], catch_exceptions=False)


def made(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_broken_pictures_stop_none_of_the_others_and_are_named_at_the_end(trained, five, tmp_path):
    result = call("upscale", trained, *five, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert made(tmp_path / "out") == ["a.png", "c.png", "e.png"]
    assert "2 of 5 images were not enlarged:" in result.stderr
    for name in ("b.png", "d.png"):
        assert f"\n  {tmp_path / 'in' / name}: cannot be read as an image" in result.stderr


def test_a_second_call_goes_on_and_overwrites_only_on_request(trained, five, tmp_path):
    out = tmp_path / "out"
    call("upscale", trained, *five[:3], "-o", out)
    (out / "a.png").write_text("old")
    draw(five[1])
    draw(five[3])
    result = call("upscale", trained, *five, "-o", out)
    assert result.exit_code == 0, result.output
    assert "2 of 5 files are there already and are passed over; --overwrite" in result.output
    assert made(out) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert (out / "a.png").read_bytes() == b"old"
    assert call("upscale", trained, *five, "-o", out, "--overwrite").exit_code == 0
    assert (out / "a.png").read_bytes() != b"old"


def test_a_folder_keeps_its_subfolders_and_is_not_read_again_from_the_output(trained, tmp_path):
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "in" / "b.heic").touch()
    for _ in range(2):
        result = call("upscale", trained, tmp_path / "in", "-o", tmp_path / "in" / "out")
        assert result.exit_code == 0, result.output
        assert "left out: 1 .heic (b.heic)" in result.stderr
    assert made(tmp_path / "in" / "out") == ["a.png", "sub/a.png"]


@pytest.mark.parametrize(
    ("images", "output", "fault"),
    [
        (["in/a.png", "in/a.bmp"], "out", r"a\.png and .*a\.bmp would both be written to .*a\.png"),
        (["in/a.png"], "in", r"a\.png would replace itself; choose another --output"),
        (["in"], "in", "is the folder of the images; choose another one"),
        (["in", "more/a.png"], "out", "would both be written"),
        (["in/nil.png"], "out", r"nil\.png: no such image file"),
    ],
)
def test_a_call_that_would_lose_a_picture_is_refused_before_any_work(
    trained, tmp_path, monkeypatch, images, output, fault
):
    for name in ("in/a.png", "in/a.bmp", "more/a.png"):
        draw(tmp_path / name)
    if images == ["in", "more/a.png"]:
        (tmp_path / "in" / "a.bmp").unlink()
    monkeypatch.setattr(upscale, "load_for_use", None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    result = call("upscale", trained, *(tmp_path / name for name in images), "-o",
                  tmp_path / output, "--overwrite")  # fmt: skip
    assert result.exit_code == 2
    assert re.search(fault, result.stderr)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_one_picture_given_twice_is_enlarged_once(trained, tmp_path):
    draw(tmp_path / "in" / "a.png")
    result = call("upscale", trained, tmp_path / "in", tmp_path / "in" / "a.png", "-o",
                  tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.count("20x20 -> 40x40") == 1


@posix
@pytest.mark.parametrize(
    "name", ["\u5199" * 82 + ".png", "x" * 251 + ".png", os.fsdecode(b"M\xfc.png"), "a\nb.png"]
)
def test_names_of_any_length_and_bytes_are_written(trained, tmp_path, name):
    if sys.platform == "darwin" and not name.isprintable():
        pytest.skip("macOS has only names in UTF-8")
    draw(tmp_path / "in" / "a.png").rename(tmp_path / "in" / name)
    result = call("upscale", trained, tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_name_that_the_output_cannot_have_is_told_and_the_others_are_made(
    trained, tmp_path, monkeypatch
):
    files = [draw(tmp_path / "in" / name) for name in ("a.png", "long.png", "z.png")]
    look = Path.lstat

    def short_names_only(path: Path) -> os.stat_result:
        if path.name == "long.png" and path.parent.name == "out":
            raise OSError(36, "File name too long")
        return look(path)

    monkeypatch.setattr(Path, "lstat", short_names_only)
    result = call("upscale", trained, *files, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "long.png: cannot be written (File name too long)" in result.stderr
    assert made(tmp_path / "out") == ["a.png", "z.png"]


def test_an_output_that_is_a_file_is_told_in_one_line(trained, tmp_path):
    (tmp_path / "out").touch()
    result = call("upscale", trained, draw(tmp_path / "a.png"), "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "cannot be written (" in result.stderr and "choose another --output" in result.stderr


def test_names_that_windows_and_macos_take_for_one_are_one(monkeypatch):
    monkeypatch.setattr("ganlab.system.sys.platform", "darwin")
    assert as_one_name("Out/\u00c9.PNG") == as_one_name("out/e\u0301.png")


@pytest.mark.parametrize("command", ["eval", "score"])
def test_all_broken_pictures_of_a_folder_are_named_in_one_message(trained, five, tmp_path, command):
    for file in five[:1] + five[2:3] + five[4:]:
        draw(file, 40)
    folder = tmp_path / "in"
    given = {
        "eval": [trained, "--data", folder, "--device", "cpu"],
        "score": [folder, folder, "--scale", "2"],
    }[command]
    result = call(command, *given)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert "2 images cannot be used:" in result.stderr.replace("pictures", "images")
    assert f"\n  {folder / 'b.png'}: cannot" in result.stderr
    assert f"\n  {folder / 'd.png'}: cannot" in result.stderr


def test_nothing_is_scored_after_a_fault_but_all_faults_are_found():
    def checked(number: int) -> int:
        if number % 3 == 2:
            raise GanlabError(f"fault {number}")
        return number

    given: list[Tensor | int] = []
    with pytest.raises(GanlabError, match="3 numbers cannot be used:\n  fault 2\n  fault 5\n  fa"):
        for item in many.all_sound(map(many.or_fault(checked), range(10)), "numbers"):
            given.append(item)
    assert given == [0, 1]
