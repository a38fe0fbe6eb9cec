"""The images of a folder: each once, never opened, and what is left out is told."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from marks import posix
from PIL import Image

from ganlab import ImageError, list_images, read_image
from ganlab.cli import main
from ganlab.images.listing import images_of


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def link(place: Path, target: str) -> None:
    try:
        place.symlink_to(target)
    except OSError:
        pytest.skip("this system or user cannot make links")


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_images(root)]


@pytest.mark.parametrize("target", ["..", ".", "../..", "x"])
def test_a_link_to_a_folder_that_is_listed_adds_nothing(tmp_path, target):
    make(tmp_path, "a/b/1.png", "a/b/x/2.png")
    link(tmp_path / "a" / "b" / "again", target)
    link(tmp_path / "a" / "b" / "twice", target)
    found = images_of(tmp_path / "a")
    assert [path.relative_to(tmp_path).as_posix() for path in found.images] == [
        "a/b/1.png", "a/b/x/2.png",
    ]  # fmt: skip
    assert "reached before" in found.told()


def test_links_that_point_at_each_other_end(tmp_path):
    make(tmp_path, "data/1.png", "far/2.png")
    link(tmp_path / "data" / "far", "../far")
    link(tmp_path / "far" / "data", "../data")
    assert names(tmp_path / "data") == ["1.png", "far/2.png"]


def test_of_two_links_to_one_folder_the_first_name_counts(tmp_path):
    make(tmp_path, "far/sub/1.png", "data/0.png")
    link(tmp_path / "data" / "b", "../far")
    link(tmp_path / "data" / "a", "../far/sub")
    link(tmp_path / "data" / "c", "../far")
    assert names(tmp_path / "data") == ["0.png", "a/1.png"]
    assert images_of(tmp_path / "data").left_out == {"reached before": ["b/sub", "c"]}


def test_a_link_to_a_file_counts_unless_the_file_is_listed(tmp_path):
    make(tmp_path, "far/1.png", "far/blob", "data/0.png")
    targets = {"a": "0.png", "b": "../far/1.png", "c": "../far/blob", "d": "../far/blob",
               "e": "e.png", "f": "nil"}  # fmt: skip
    for place, target in targets.items():
        link(tmp_path / "data" / f"{place}.png", target)
    assert names(tmp_path / "data") == ["0.png", "b.png", "c.png"]
    assert images_of(tmp_path / "data").left_out == {
        "reached before": ["a.png", "d.png"],
        "link that leads nowhere": ["e.png", "f.png"],
    }


def test_the_folder_itself_may_be_a_link(tmp_path):
    make(tmp_path, "far/1.png")
    link(tmp_path / "data", "far")
    assert names(tmp_path / "data") == ["1.png"]


@posix
def test_what_is_no_file_is_passed_over_and_never_opened(tmp_path):
    make(tmp_path, "1.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    link(tmp_path / "device.png", "/dev/zero")
    here = socket.socket(socket.AF_UNIX)
    try:
        here.bind(os.path.relpath(tmp_path / "s.png"))
    except OSError:  # the path is too long for a socket
        os.mkfifo(tmp_path / "s.png")
    assert names(tmp_path) == ["1.png"]
    assert sorted(images_of(tmp_path).left_out["no regular file"]) == [
        "device.png", "pipe.png", "s.png",
    ]  # fmt: skip
    here.close()
    for name in ("pipe.png", "device.png"):
        with pytest.raises(ImageError, match=rf"{name}: is a pipe, a socket or a device"):
            read_image(tmp_path / name)


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_is_listed(tmp_path, monkeypatch):
    make(tmp_path, "1.png", "closed/2.png")
    scan = os.scandir

    def closed(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert names(tmp_path) == ["1.png"]
    assert (
        images_of(tmp_path)
        .told()
        .endswith("1 image; left out: 1 unreadable: Permission denied (closed)")
    )


def test_what_is_left_out_is_told_by_count_and_example(tmp_path):
    make(tmp_path, "a.png", "b.JFIF", "c.gif", "d.gif", "e.jp2", "noext", ".DS_Store",
         "SHA256SUMS", "sub/f.HEIC")  # fmt: skip
    assert images_of(tmp_path).told() == (
        f"{tmp_path}: 2 images; left out: 2 .gif (c.gif), 1 .heic ({Path('sub/f.HEIC')}), "
        "1 .jp2 (e.jp2), 1 hidden (.DS_Store), 1 without suffix (noext)"
    )


def test_a_folder_of_other_files_says_which(tmp_path):
    make(tmp_path, "a.heic", "b.heic")
    with pytest.raises(ImageError, match=r"no image in it.*left out: 2 \.heic \(a\.heic\)"):
        list_images(tmp_path)


def test_check_and_run_tell_the_images_of_each_folder(tmp_path):
    for folder, number in (("photos", 3), ("held", 1)):
        (tmp_path / folder).mkdir()
        for i in range(number):
            pixels = np.random.default_rng(i + number).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    make(tmp_path, "photos/raw.cr2")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "iterations = 1\nbatch_size = 2\nd_steps = 0\n[plugins]\nbicubic = {scale = 2}\n"
        'image_folder = { path = "photos", evaluation_path = "held", crop = 16 }\n'
        "espcn = {}\npixel_loss = {}\nadam = {}\n"
    )
    told = [f"image_folder: {tmp_path / 'photos'}: 3 images; left out: 1 .cr2 (raw.cr2)",
            f"image_folder: {tmp_path / 'held'}: 1 image"]  # fmt: skip
    for command in (["check"], ["run", "--runs", str(tmp_path / "runs")]):
        result = CliRunner().invoke(main, [*command, str(recipe)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        for sentence in told:
            assert f"note: {sentence}\n" in result.output
