"""`ganlab data verify`: every image is read whole, and compared with its digest."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from marks import posix
from PIL import Image

from ganlab.cli import main


def draw(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.bmp", "sub/c.png", "sub/d.jpg")):
        draw(tmp_path / "data" / name, number)
    return tmp_path / "data"


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "verify", *map(str, arguments)])


def test_a_sound_folder_is_read_whole(folder):
    result = verify(folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == "4 images read whole, no fault\n"


def test_all_faults_are_in_one_list(folder):
    for name in ("a.png", "sub/d.jpg"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "b.bmp").write_text("text")
    (folder / "b.heic").touch()
    result = verify(folder)
    assert result.exit_code == 1
    *faults, last = result.stdout.splitlines()
    assert [fault.partition(": cannot be read as an image (")[0] for fault in faults] == [
        str(folder / name) for name in ("a.png", "b.bmp", "sub/d.jpg")
    ]
    assert last == "4 images, 3 with a fault"
    assert "left out: 1 .heic (b.heic)" in result.stderr


def test_digests_find_what_changed_is_missing_or_new(folder):
    written = verify(folder, "--write").stdout
    assert written.splitlines()[-1] == f"digests written to {folder / 'SHA256SUMS'}"
    assert verify(folder).stdout == "4 images read whole and as the digests say\n"
    data = bytearray((folder / "b.bmp").read_bytes())
    data[-5] ^= 1  # BMP has no check sum: a viewer sees nothing wrong
    (folder / "b.bmp").write_bytes(data)
    (folder / "a.png").unlink()
    draw(folder / "new.png", 9)
    result = verify(folder, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["faults"] == {
        "b.bmp": "has changed since its digest was written",
        "a.png": "is missing",
        "new.png": "is new: the digests do not list it",
    }
    assert verify(folder, "--write").exit_code == 0
    assert verify(folder).exit_code == 0


@posix
def test_names_of_any_bytes_come_back_from_the_file_and_sha256sum_reads_it(folder):
    for number, name in enumerate(
        (b"new\nline.png", b"back\\slash.png", b"M\xfc.png", b" x  y.png")
    ):
        try:
            draw(folder / "x.png", number + 9).rename(folder / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system has only names in UTF-8")
    assert verify(folder, "--write").exit_code == 0
    assert verify(folder).stdout == "8 images read whole and as the digests say\n"
    if shutil.which("sha256sum"):
        told = subprocess.run(
            ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True
        )
        assert told.returncode == 0, told.stderr
        assert told.stdout.count(b": OK\n") == 8


def test_a_list_that_sha256sum_wrote_is_read(folder, tmp_path):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    names = ["./a.png", "b.bmp", "sub/c.png", "sub/d.jpg"]
    told = subprocess.run(["sha256sum", "--binary", *names], cwd=folder, capture_output=True)
    (tmp_path / "list").write_bytes(b"# a comment\n\n" + told.stdout)
    result = verify(folder, "--manifest", tmp_path / "list")
    assert result.exit_code == 0, result.output


def test_equal_pixels_are_told_and_are_no_fault(folder):
    with Image.open(folder / "a.png") as image:
        image.save(folder / "z.tif")
    result = verify(folder)
    assert result.exit_code == 0
    assert f"note: {folder / 'z.tif'}: its pixels are those of a.png" in result.stdout


@pytest.mark.parametrize("text", ["0" * 64, "0" * 63 + "  a.png", "\0" * 9, "x" * 2**17, "é"])
def test_a_damaged_list_is_told_with_its_line(folder, text):
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  a.png\n{text}\n", encoding="utf-8")
    result = verify(folder)
    assert result.exit_code == 1
    assert "SHA256SUMS, line 2: not a sha256 and a name" in result.stderr


def test_a_missing_list_or_folder_is_told(folder, tmp_path):
    result = verify(folder, "--manifest", tmp_path / "nil")
    assert result.exit_code == 1 and "nil: cannot be read (No such file" in result.stderr
    result = verify(tmp_path / "nil")
    assert result.exit_code == 1 and "nil: no such folder" in result.stderr
    result = verify(folder, "--write", "--manifest", tmp_path / "nil" / "x")
    assert result.exit_code == 1 and "cannot be written" in result.stderr
