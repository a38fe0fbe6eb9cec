"""`ganlab runs --html`: a page over the runs of a folder."""

import base64
import json
import shutil
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner
from pages import Page, check_policy, links
from PIL import Image

from ganlab.cli import main
from ganlab.images.files import ImageError
from ganlab.images.png_bytes import png_cut, png_within
from ganlab.report.index import SIDE
from ganlab.report.wording import shown_alone


def written(parent: Path, *options: str) -> Page:
    result = CliRunner().invoke(main, ["runs", "--html", "--runs", str(parent), *options])
    assert result.exit_code == 0, result.output
    assert f"page: {parent / 'index.html'}" in result.stdout
    return Page((parent / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(compared: Path) -> Page:
    return written(compared / "runs")


@pytest.fixture
def two_runs(compared: Path, tmp_path: Path) -> Path:
    """A folder with two runs of its own."""
    for name in ("plain-1", "plain-2"):
        shutil.copytree(compared / "runs" / name, tmp_path / name)
    return tmp_path


def test_the_page_runs_its_own_script_alone(page: Page) -> None:
    check_policy(page)


def test_each_link_leads_to_the_page_of_a_run_whatever_its_name(page: Page, compared: Path) -> None:
    runs = compared / "runs"
    assert {runs / unquote(link) for link in links(page)} == set(runs.glob("*/report.html"))
    assert not [link for link in links(page) if ":" in link or "<" in link]
    assert "<img src=x onerror=alert(1)>-1" in page.text


def test_a_name_that_looks_like_a_scheme_is_a_folder(two_runs: Path) -> None:
    (two_runs / "plain-1").rename(two_runs / "javascript:alert(1)")
    assert "javascript%3Aalert%281%29/report.html" in links(written(two_runs))


def test_a_row_has_the_scores_of_a_run_and_of_bicubic_below(two_runs: Path) -> None:
    status = json.loads((two_runs / "plain-1" / "status.json").read_text())
    page = written(two_runs)
    psnr, bicubic = (shown_alone(status[key]["psnr_y"]) for key in ("scores", "bicubic"))
    assert f"{psnr}{bicubic}" in page.text
    values = [a["data-value"] for t, a in page.tags if a.get("data-label") == "psnr_y"]
    assert str(status["scores"]["psnr_y"]) in values
    assert "psnr_rgb" not in page.text


def test_how_a_run_ended_stands_below_its_name(two_runs: Path) -> None:
    path = two_runs / "plain-1" / "status.json"
    status = json.loads(path.read_text())
    told = {"state": "diverged", "message": "at 8", "verdicts": ["D is <dead>."], "scores": {}}
    path.write_text(json.dumps(status | told))
    page = written(two_runs)
    assert "plain-1diverged: at 8D is <dead>." in page.text
    assert [a["data-value"] for t, a in page.tags if a.get("data-label") == "psnr_y"].count("") == 1


def test_a_run_began_when_its_manifest_says_also_in_a_copy(two_runs: Path) -> None:
    times = {"plain-1": "2024-05-02T10:00:00+00:00", "plain-2": "2023-01-01T09:00:00+00:00"}
    for name, time in times.items():  # the files are of today
        path = two_runs / name / "manifest.json"
        manifest = json.loads(path.read_text())
        assert datetime.fromisoformat(manifest["begun"]).tzinfo == UTC
        path.write_text(json.dumps(manifest | {"begun": time}))
    page = written(two_runs)
    shown = [a["data-value"] for t, a in page.tags if a.get("data-label") == "begun"]
    assert shown == [str(datetime.fromisoformat(time).timestamp()) for time in times.values()]


def test_a_run_of_an_older_ganlab_comes_last_without_a_time(two_runs: Path) -> None:
    path = two_runs / "plain-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in manifest.items() if k != "begun"}))
    shown = [a["data-value"] for t, a in written(two_runs).tags if a.get("data-label") == "begun"]
    assert shown[0] and not shown[1]


@pytest.mark.parametrize("begun", ["soon", 5, "2024-05-02T10:00:00", "0001-01-01T00:00:00+00:00"])
def test_what_is_no_time_ends_no_page(two_runs: Path, begun: object) -> None:
    path = two_runs / "plain-2" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"begun": begun}))
    shown = [a["data-value"] for t, a in written(two_runs).tags if a.get("data-label") == "begun"]
    assert shown[0] and not shown[1]


def test_the_small_pictures_are_bicubic_the_generator_and_the_original(two_runs: Path) -> None:
    sources = [a["src"] or "" for t, a in written(two_runs).tags if t == "img"]
    assert len(sources) == 2 * 3
    found = {base64.b64decode(source.partition(",")[2]) for source in sources}
    kept = [two_runs / "plain-1" / "pictures" / f"00-{k}.png" for k in ("bicubic", "sr", "hr")]
    decoded = [np.array(Image.open(BytesIO(content))) for content in found]
    for file in kept:  # they are smaller than the room
        assert any(np.array_equal(np.array(Image.open(file)), each) for each in decoded), file


def test_a_small_picture_is_the_middle_of_a_crop_pixel_for_pixel() -> None:
    pixels = np.arange(10 * 7, dtype=np.uint8).reshape(10, 7)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    middle = Image.open(BytesIO(png_cut(file.getvalue(), 4)))
    assert np.array_equal(np.array(middle), pixels[3:7, 1:5])
    whole = Image.open(BytesIO(png_cut(file.getvalue(), 8)))
    assert np.array_equal(np.array(whole), pixels[1:9])


def test_a_run_without_crops_shows_its_newest_sample_or_nothing(two_runs: Path) -> None:
    for name in ("plain-1", "plain-2"):
        shutil.rmtree(two_runs / name / "pictures")
    Image.new("RGB", (300, 300), "red").save(two_runs / "plain-1" / "samples" / "0000099.png")
    for file in (two_runs / "plain-2" / "samples").iterdir():
        file.write_text("no picture")
    (source,) = (a["src"] or "" for t, a in written(two_runs).tags if t == "img")
    image = Image.open(BytesIO(base64.b64decode(source.partition(",")[2])))
    assert image.size == (SIDE, SIDE)
    assert image.getpixel((5, 5)) == (255, 0, 0)


def test_the_page_speaks_of_bicubic_only_where_it_shows_it(two_runs: Path) -> None:
    assert "bicubic" in written(two_runs).text
    for name in ("plain-1", "plain-2"):  # as in a toy problem
        shutil.rmtree(two_runs / name / "pictures")
        path = two_runs / name / "status.json"
        status = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in status.items() if k != "bicubic"}))
    assert "bicubic" not in written(two_runs).text


def test_a_sample_with_too_many_pixels_is_not_decoded() -> None:
    file = BytesIO()
    Image.new("1", (100, 100)).save(file, format="PNG")
    with pytest.raises(ImageError, match="more than 9,999 pixels"):
        png_within(file.getvalue(), (50, 50), 9_999)


def test_a_page_that_is_not_ours_is_not_overwritten(two_runs: Path) -> None:
    (two_runs / "index.html").write_text("mine")
    result = CliRunner().invoke(main, ["runs", "--html", "--runs", str(two_runs)])
    assert result.exit_code == 2
    assert "is not a page from ganlab" in result.output
    assert (two_runs / "index.html").read_text() == "mine"


def test_a_folder_without_runs_gets_no_page(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["runs", "--html", "--runs", str(tmp_path)])
    assert "no runs under" in result.output
    assert not list(tmp_path.iterdir())
