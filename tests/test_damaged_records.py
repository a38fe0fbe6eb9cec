"""Damaged records: named by file and line, left out, and never a traceback."""

import base64
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin

from ganlab.cli import main
from ganlab.errors import GanlabError
from ganlab.images.files import write_png
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.report import report_run
from ganlab.report.model import Arm
from ganlab.report.tables import compare
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import Journal
from ganlab.runs.reading import LOGS, OBJECTS
from ganlab.runs.records import read_run
from ganlab.session import start
from ganlab.words import summary

RECIPE = """\
iterations = 6
batch_size = 2
evaluate_every = 2
checkpoint_every = 2
report_every = 1
watch_every = 2

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = {}
"""
LONG = int(os.environ.get("GANLAB_STRIKES", 60))
RECORDS = [*LOGS, "status.json", "manifest.json", "data.json", "pictures/index.json"]


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped at iteration 4 of 6; its verdict is written by hand."""
    folder = tmp_path_factory.mktemp("damaged")
    for part in ("photos", "held_out"):
        (folder / part).mkdir()
        for name in "ab":
            image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
            write_png(image, folder / part / f"{name}.png")
    (folder / "game.toml").write_text(RECIPE)
    made, code = start(load_recipe(folder / "game.toml"), "cpu", Limits(4), folder, "game")
    assert code == 0
    verdict = {"iteration": 4, "name": "odd", "since": 2, "sentence": "G is odd", "action": "stop"}
    made.verdicts.write_text(json.dumps(verdict) + "\n")
    return made.path


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "game")


def readings(run: Path, page: Path) -> Iterator[Callable[[], object]]:
    """What commands do with a run folder that may be damaged."""
    yield lambda: report_run(run, page)
    yield lambda: compare("both", [Arm(name, (read_run(run),)) for name in "ab"])
    yield lambda: summary(RunFolder(run))
    yield lambda: Journal(RunFolder(run), 6, 2, 1).begin(4)


def survives(run: Path, name: str, content: bytes, page: Path) -> None:
    """Every reading of the changed record ends well, or with a message for the user."""
    file = run / name
    before = file.read_bytes() if file.exists() else None
    for read in readings(run, page):
        file.write_bytes(content)
        try:
            read()
        except GanlabError as error:
            assert "\n" not in str(error)
    if before is not None:
        file.write_bytes(before)


def wrong_values(value: Any) -> Iterator[Any]:
    """A record with one value after another replaced by one of a wrong kind, or left out."""
    for wrong in (None, True, -1, 1e308, 10**400, "\x1b[31m<b>", [], {}, float("nan")):
        yield wrong
        if isinstance(value, dict):
            yield value | {"odd \x1b <key>": wrong}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: each} for each in wrong_values(inner))
    if isinstance(value, list):
        for at, inner in enumerate(value[:2]):
            yield from ([*value[:at], each, *value[at + 1 :]] for each in wrong_values(inner))


def damaged(content: bytes, log: bool) -> Iterator[bytes]:
    """The content of a record with each kind of damage."""
    for extra in (b"\xff", b"[]\n", b"[" * 10**5, b'{"a":' * 10**5, b"\xef\xbb\xbf", b"\0" * 99,
                  b"1" * 5000 + b"\n", b'"\\ud800"\n', b"\n\n", b"null\n"):  # fmt: skip
        yield from (extra, extra + content, content + extra, extra + content[1:])
    head, _, tail = content.partition(b"\n") if log else (content, b"", b"")
    for value in wrong_values(json.loads(head or b"{}")):
        yield json.dumps(value).encode() + b"\n" + tail


def test_every_value_of_a_record_is_checked_when_it_is_read(template: Path) -> None:
    told_elsewhere = {"recipe", "recipe_text", "changes"}  # by runs/record.py, with its own checks
    for name in ("status.json", "manifest.json"):
        written = set(json.loads((template / name).read_text()))
        assert written - told_elsewhere <= set(OBJECTS[name])


@pytest.mark.parametrize("name", RECORDS)
def test_no_damage_to_a_record_ends_in_a_traceback(run: Path, tmp_path: Path, name: str) -> None:
    content = (run / name).read_bytes()
    kinds = [*damaged(content, name in LOGS)]
    for changed in random.Random(name).sample(kinds, 8):
        survives(run, name, changed, tmp_path / "page.html")


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDS)
def test_no_flipped_bit_and_no_cut_ends_in_a_traceback(
    run: Path, tmp_path: Path, name: str
) -> None:
    content, drawn = (run / name).read_bytes(), random.Random(name)
    kinds = [*damaged(content, name in LOGS)]
    for changed in drawn.sample(kinds, min(len(kinds), LONG)):
        survives(run, name, changed, tmp_path / "page.html")
    for at in drawn.sample(range(len(content)), min(len(content), LONG)):
        flipped = content[at] ^ 1 << at % 8
        survives(run, name, content[:at] + bytes([flipped]) + content[at + 1 :], tmp_path / "p")
        survives(run, name, content[:at], tmp_path / "p")


def test_a_damaged_line_is_named_left_out_and_told_on_the_page(run: Path, tmp_path: Path) -> None:
    lines = (run / "stats.jsonl").read_bytes().splitlines(keepends=True)
    (run / "stats.jsonl").write_bytes(b"".join([lines[0], b"\xff", *lines[1:]]))
    result = ganlab("report", run, "-o", tmp_path / "page.html")
    assert result.exit_code == 0
    assert f"{run}: stats.jsonl:2: damaged; left out" in result.stderr
    assert "stats.jsonl:2: damaged; left out" in (tmp_path / "page.html").read_text()
    iterations = [*read_run(run).series["G/pixel_loss"].iterations]
    assert iterations == [1, 3, 4]


def test_a_changed_digit_is_told_although_the_line_can_be_read(run: Path, tmp_path: Path) -> None:
    text = (run / "scores.jsonl").read_text()
    digit = re.search(r'"psnr_y": (\d)', text)
    assert digit
    at = digit.start(1)
    (run / "scores.jsonl").write_text(text[:at] + str(9 - int(text[at])) + text[at + 1 :])
    told = "scores.jsonl: not as the run wrote it"
    assert told in ganlab("report", run, "-o", tmp_path / "page.html").stderr
    resumed = ganlab("resume", run)
    assert (resumed.exit_code, f"{run}/{told}" in resumed.stderr) == (0, True)
    assert (run / "scores.jsonl.damaged").exists()


@pytest.mark.parametrize("name", ["stats.jsonl", "scores.jsonl"])
def test_a_log_that_is_gone_is_told_at_resume(run: Path, name: str) -> None:
    (run / name).unlink()
    resumed = ganlab("resume", run)
    assert (resumed.exit_code, f"{run}/{name}: missing" in resumed.stderr) == (0, True)


def test_what_a_crash_left_behind_a_checkpoint_is_dropped_without_a_word(
    run: Path, template: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(template, tmp_path / "whole")
    for name in LOGS:
        with (run / name).open("ab") as file:
            file.write(b'{"iteration": 5, "G/x": 1.0}\n' + b"\0" * 100 + b'\n{"iterat')
    for each in (run, whole):
        resumed = ganlab("resume", each)
        assert resumed.exit_code == 0
        assert ".jsonl" not in resumed.stderr
    for name in ("stats.jsonl", "scores.jsonl", "verdicts.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_every_log_is_on_the_disk_before_a_checkpoint_counts(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    journal = Journal(RunFolder(run), 6, 2, 1)
    journal.begin(4)
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    journal.sync()
    assert synced == [(run / name).stat().st_ino for name in LOGS]


def test_a_damaged_status_is_told_and_counts_as_unknown(run: Path) -> None:
    (run / "status.json").write_text('{"state": ["done"]}')
    result = ganlab("runs", "--runs", run.parent)
    assert f"{run}/status.json: damaged: state has a wrong value" in result.stderr
    assert "unknown" in result.stdout


def embedded(page: Path) -> list[bytes]:
    found = re.findall(r"data:image/png;base64,([\w+/=]+)", page.read_text())
    return [base64.b64decode(each) for each in found]


def test_of_a_picture_only_its_pixels_reach_a_page(run: Path, tmp_path: Path) -> None:
    file = run / "pictures" / "00-sr.png"
    with Image.open(file) as image:
        about = PngImagePlugin.PngInfo()
        about.add_text("note", "SECRET")
        image.save(file, pnginfo=about)
        pixels = image.tobytes()
    file.write_bytes(file.read_bytes() + b"SECRET")
    report_run(run, tmp_path / "page.html")
    found = embedded(tmp_path / "page.html")
    assert found
    assert not [each for each in found if b"SECRET" in each]
    assert pixels in [Image.open(BytesIO(each)).tobytes() for each in found]


def as_text(file: Path) -> None:
    file.write_text("SECRET")


def as_jpeg(file: Path) -> None:
    with Image.open(file) as image:
        image.convert("RGB").save(file, format="JPEG", comment=b"SECRET")


def as_larger(file: Path) -> None:
    with Image.open(file) as image:
        image.resize((image.width, image.height + 1)).save(file, format="PNG")


def as_animation(file: Path) -> None:
    with Image.open(file) as image:
        other = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(file, format="PNG", save_all=True, append_images=[other])


def as_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def as_padded(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 2**21)


@pytest.mark.parametrize("change", [as_text, as_jpeg, as_larger, as_animation, as_cut, as_padded])
def test_a_file_that_is_not_the_picture_is_left_out_of_the_page(
    run: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(run / "pictures" / "00-sr.png")
    result = ganlab("report", run, "-o", tmp_path / "page.html")
    assert result.exit_code == 0
    assert f"{run}/pictures/00-sr.png: left out of the page" in result.stderr
    secret = base64.b64encode(b"SECRET").decode()[:6]
    assert not re.search(f"SECRET|{secret}", (tmp_path / "page.html").read_text())


def as_absent(file: Path) -> None:
    file.unlink()


def as_empty(file: Path) -> None:
    file.write_bytes(b"")


def as_older(file: Path) -> None:
    content = file.read_bytes()
    assert content.count(b'\\"iteration\\": 4') == 1
    file.write_bytes(content.replace(b'\\"iteration\\": 4', b'\\"iteration\\": 1'))


@pytest.mark.parametrize("change", [as_absent, as_empty, as_older])
def test_a_best_generator_that_is_lost_is_told_at_resume(
    run: Path, change: Callable[[Path], None]
) -> None:
    change(run / "best.safetensors")
    resumed = ganlab("resume", run)
    assert resumed.exit_code == 0
    told = f"{run}/best.safetensors: the best generator, of iteration 2, is lost"
    assert told in resumed.stderr


def test_a_best_generator_that_is_there_is_not_told(run: Path) -> None:
    assert "is lost" not in ganlab("resume", run).stderr
