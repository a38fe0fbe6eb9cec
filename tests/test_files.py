"""Files are written whole or not at all, and never through a link."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ganlab.files import append, remove_stale, whole, write_json, write_text
from ganlab.generator_weights import write_weights
from ganlab.images.files import ImageError, read_image, write_png
from ganlab.images.png import pack, strips, write_strips
from ganlab.images.store import ImageStore


def test_a_file_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with whole(tmp_path / "a") as file:
        file.write(b"ne")
        assert (tmp_path / "a").read_text() == "old"
        file.write(b"w")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_keeps_the_older_file_and_leaves_no_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a", "w") as file:
        file.write("new")
        _ = 1 / 0
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link = tmp_path / "a"
    link.symlink_to(precious)
    write_text(link, "new")
    assert (precious.read_text(), link.read_text(), link.is_symlink()) == ("precious", "new", False)


def test_the_temporary_name_fits_where_the_longest_name_does(tmp_path: Path) -> None:
    name = 255 * "n"
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_pictures_of_the_longest_legal_name_are_written(tmp_path: Path) -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for name in ("n" * 251 + ".png", "\u5199" * 83 + "ab.png"):  # 255 bytes
        assert len(name.encode()) == 255
        write_png(image, tmp_path / name)
        (tmp_path / name).unlink()
        write_strips(tmp_path / name, 4, map(pack, strips([image])))
        assert torch.equal(read_image(tmp_path / name), image)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_no_writer_follows_a_link_in_its_way(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    weights = ({"x": torch.zeros(1)}, {"ganlab": "{}"})
    for name in ("a.png", "b.safetensors", "b.tmp", "c", "c.part", "c.notes"):
        (tmp_path / name).symlink_to(precious)
    write_png(image, tmp_path / "a.png")
    write_weights(weights, tmp_path / "b.safetensors")
    with pytest.raises(ImageError, match="it is a link"):
        ImageStore.cached(tmp_path / "c", lambda first: [("x", image)])
    assert precious.read_text() == "precious"
    assert not (tmp_path / "b.safetensors").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="has neither pipes nor links of this kind")
def test_what_grows_in_place_is_a_regular_file_with_one_name(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "new").symlink_to(tmp_path / "absent")
    os.link(tmp_path / "precious", tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for name, fault in (("link", "link"), ("new", "link"), ("hard", "hard"), ("pipe", "regular")):
        with pytest.raises(OSError, match=f"it is .*{fault}"):
            append(tmp_path / name)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "absent").exists()
    for word in (b"a", b"b"):
        with append(tmp_path / "own") as file:
            file.write(word)
    assert (tmp_path / "own").read_bytes() == b"ab"


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": [math.nan, 1.5, (math.inf,)]})
    assert json.loads((tmp_path / "a").read_text()) == {"x": [None, 1.5, [None]]}


def test_what_a_gone_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with whole(tmp_path / "own"):
        (name,) = [path.name for path in tmp_path.iterdir()]
        _, host, _, token = name.split("-")
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        left = f".ganlab-{host}-{gone.pid}-{token}"
        other_machine = f".ganlab-{'0' * 8}-{gone.pid}-{token}"
        alive = f".ganlab-{host}-{os.getppid()}-{token}"
        for each in (left, other_machine, alive, ".tmp", "a.tmp"):
            (tmp_path / each).touch()
        assert [path.name for path in remove_stale(tmp_path)] == [left]
        kept = {name, other_machine, alive, ".tmp", "a.tmp"}
        assert {path.name for path in tmp_path.iterdir()} == kept
    (tmp_path / name).touch()  # of an earlier process with the same number
    assert [path.name for path in remove_stale(tmp_path)] == [name]
