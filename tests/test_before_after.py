"""The page of `ganlab upscale --compare`: what it shows is what was made."""

import base64
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pages import Page, check_policy, links
from PIL import Image
from skimage import data
from torch import Tensor

from ganlab import api
from ganlab.cli import main
from ganlab.commands import before_after, upscale
from ganlab.images.files import read_image, write_png
from ganlab.images.metrics import psnr
from ganlab.images.resampling import resize, to_float, to_uint8
from ganlab.images.upscaling import bicubic

Versions = dict[str, Tensor]


@pytest.fixture
def photograph() -> Tensor:
    return torch.from_numpy(data.chelsea()[60:160, 100:220].copy()).permute(2, 0, 1)


@pytest.fixture(autouse=True)
def _doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that repeats each pixel, in the place of an untrained one."""
    load = upscale.load_for_use

    def twice(images: Tensor) -> Tensor:
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)

    monkeypatch.setattr(upscale, "load_for_use", lambda *a: (load(*a)[0], twice, None))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["upscale", *map(str, arguments)])


def shown(page: Path) -> dict[str, Versions]:
    """The pictures of a page: name -> title -> uint8 [3, H, W]."""
    found: dict[str, Versions] = {}
    cell = r'<img src="data:image/png;base64,([^"]+)"[^>]* alt="([^",]+), ([^"]+)"'
    for content, name, title in re.findall(cell, page.read_text()):
        with Image.open(BytesIO(base64.b64decode(content))) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        found.setdefault(name, {})[title] = pixels
    return found


def test_the_page_shows_bicubic_generator_and_original_as_they_are(
    doubling: Path, photograph: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "hr").mkdir()
    write_png(photograph, tmp_path / "hr" / "cat.png")
    small = to_uint8(resize(to_float(photograph[None]), (50, 60)))[0]
    write_png(small, tmp_path / "cat_x2.png")
    result = call(doubling, tmp_path / "cat_x2.png", "-o", tmp_path / "out", "--compare",
                  "--original", tmp_path / "hr")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "compare.html: 1 of 1 files side by side" in result.stdout
    text = (tmp_path / "out" / "compare.html").read_text()
    parsed = Page(text)
    check_policy(parsed)
    assert links(parsed) == []
    versions = shown(tmp_path / "out" / "compare.html")["cat_x2.png"]
    made = read_image(tmp_path / "out" / "cat_x2.png")
    assert list(versions) == ["bicubic", "generator", "original"]
    assert torch.equal(versions["generator"], made)
    assert torch.equal(versions["bicubic"], bicubic(small[None], 2)[0])
    assert torch.equal(versions["original"], photograph)
    for title in ("bicubic", "generator"):
        score = float(psnr(versions[title][None], photograph[None], 0))
        assert f'{title} <span class="quiet">psnr_y {score:.2f}</span>' in text
    assert '<details class="slider" hidden open>' in text


def test_of_a_large_picture_the_part_with_most_contrast_is_shown_as_in_the_file(
    doubling: Path, photograph: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_after, "SIDE", 64)
    flat = torch.full((3, 150, 170), 90, dtype=torch.uint8)
    flat[:, 104:136, 112:144] = photograph[:, 20:52, 20:52]
    write_png(flat, tmp_path / "a.png")
    assert call(doubling, tmp_path / "a.png", "-o", tmp_path / "out", "--compare").exit_code == 0
    versions = shown(tmp_path / "out" / "compare.html")["a.png"]
    assert list(versions) == ["bicubic", "generator"]
    large = read_image(tmp_path / "out" / "a.png")
    assert torch.equal(versions["generator"], large[:, 208:272, 224:288])
    expected = bicubic(flat[None], 2)[0, :, 208:272, 224:288]
    assert (versions["bicubic"].int() - expected.int()).abs().max() <= 1


def test_the_page_has_files_that_were_there_already_and_not_broken_ones(
    doubling: Path, photograph: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_after, "MOST_PICTURES", 2)
    (tmp_path / "in").mkdir()
    for name in "acd":
        write_png(photograph[:, :20, :20], tmp_path / "in" / f"{name}.png")
    assert call(doubling, tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    (tmp_path / "in" / "b.png").write_text("nothing")
    result = call(doubling, tmp_path / "in", "-o", tmp_path / "out", "--compare")
    assert result.exit_code == 1
    assert list(shown(tmp_path / "out" / "compare.html")) == ["a.png", "c.png"]
    assert "The first 2 of 3 files." in (tmp_path / "out" / "compare.html").read_text()


def test_originals_that_are_absent_or_do_not_fit_are_named(
    doubling: Path, photograph: Tensor, tmp_path: Path
) -> None:
    for folder in ("in", "hr"):
        (tmp_path / folder).mkdir()
    for name in "abc":
        write_png(photograph[:, :20, :20], tmp_path / "in" / f"{name}.png")
    write_png(photograph[:, :41, :40], tmp_path / "hr" / "a.png")  # an odd row is cut off
    write_png(photograph[:, :50, :40], tmp_path / "hr" / "b.png")
    (page,) = [
        api.upscale(doubling, tmp_path / "in", tmp_path / "out", compare=True,
                    original=tmp_path / "hr")[0].parent / "compare.html"
    ]  # fmt: skip
    found = shown(page)
    assert [len(found[f"{name}.png"]) for name in "abc"] == [3, 2, 2]
    assert "Without an original of that name and size: b.png, c.png." in page.read_text()


def test_pictures_of_one_name_are_told_apart_by_their_folders(
    doubling: Path, photograph: Tensor, tmp_path: Path
) -> None:
    for number, folder in enumerate("ab"):
        for root, side in (("in", 20), ("hr", 40)):
            (tmp_path / root / folder).mkdir(parents=True)
            crop = photograph[:, 40 * number : 40 * number + side, :side]
            write_png(crop, tmp_path / root / folder / "x.png")
    result = call(doubling, tmp_path / "in", "-o", tmp_path / "out", "--compare",
                  "--original", tmp_path / "hr")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = shown(tmp_path / "out" / "compare.html")
    assert list(found) == ["a/x.png", "b/x.png"]
    for number, versions in enumerate(found.values()):
        assert torch.equal(versions["original"], photograph[:, 40 * number :][:, :40, :40])


def test_where_no_picture_can_be_shown_there_is_no_page(doubling: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("nothing")
    result = call(doubling, tmp_path / "a.png", "-o", tmp_path / "out", "--compare")
    assert result.exit_code == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--original", "hr"], "--original is for the page of --compare"),
        (["--compare", "--original", "nil"], "nil: no such folder"),
        (["--compare"], "compare.html exists and is not a page from ganlab"),
        (["--compare", "--original", "two"], "a.jpg and a.png have one name; rename one"),
    ],
)
def test_a_page_that_cannot_be_made_is_refused_before_any_work(
    doubling: Path,
    photograph: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.html").write_text("mine")
    write_png(photograph, tmp_path / "a.png")
    (tmp_path / "two").mkdir()
    for name in ("a.jpg", "a.png"):
        (tmp_path / "two" / name).write_bytes((tmp_path / "a.png").read_bytes())
    result = call(doubling, tmp_path / "a.png", "-o", tmp_path / "out", *options)
    assert result.exit_code in (1, 2)
    assert fault in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.html"]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
def test_of_a_video_the_frame_in_the_middle_is_shown_also_if_it_is_the_only_one(
    doubling: Path, tmp_path: Path
) -> None:
    video = "color=red:size=32x32:rate=10:duration=1[a];color=blue:size=32x32:rate=10:duration=1[b]"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"{video};[a][b]concat[out0]",
         "-pix_fmt", "yuv420p", str(tmp_path / "a.mp4"),
         "-pix_fmt", "yuv420p", "-frames:v", "1", str(tmp_path / "b.mp4")], check=True,
    )  # fmt: skip
    files = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    result = call(doubling, *files, "-o", tmp_path / "out", "--compare")
    assert result.exit_code == 0, result.output
    found = shown(tmp_path / "out" / "compare.html")
    assert list(found) == ["a.mp4 at 1.0 s", "b.mp4 at 0.0 s"]
    for versions, colour in zip(found.values(), ((0, 0, 255), (255, 0, 0)), strict=True):
        mean = versions["generator"].float().mean(dim=(1, 2))
        assert (mean - torch.tensor(colour)).abs().max() < 50
