"""Runs outlive full disks, crashes, power cuts, kills, signals and flipped bits.

A struck run is resumed, and must equal one that nothing struck, file by file. The numbers are
small here. docs/explanation/reliability.md has the long proofs, and the commands that repeat them.
"""

import itertools
import json
import os
import random
import re
import sys
import time
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("needs forks, and Linux's /proc", allow_module_level=True)

import ordeals
from children import Child
from faults import Disk, after_exit, after_power_cut, replayed

from ganlab import session
from ganlab.errors import RecipeError
from ganlab.runs.folder import RunFolder

LONG = int(os.environ.get("GANLAB_STRIKES", 60))


def put_to(name: str, number: int, folder: Path) -> dict:
    """Put runs to an ordeal in a process of its own, and return its figures."""
    seed = os.environ.get("GANLAB_STRIKES_SEED", "0")
    own = {f"GANLAB_{name}": str(folder / name.lower()) for name in ("CACHE", "STATE")}
    child = Child(name, number, seed, cwd=folder, function=ordeals.from_a_test, **own)
    assert child.wait(3600) == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("exit", 2),
        ("no space left", 2),
        ("input/output error", 2),
        ("power cuts", 2),
        ("kills", 3),
        ("signals", 2),
        ("enlargements", 1),
        ("flips of checkpoints", 60),
        ("flips of records", 20),
    ],
)
def test_a_struck_run_goes_on_as_if_nothing_had_happened(
    name: str, number: int, tmp_path: Path
) -> None:
    found = put_to(name, number, tmp_path)
    assert found["faults"] == []
    assert sum((found.get("strikes") or found["outcomes"]).values()) >= number


@pytest.mark.parametrize("number", [5, pytest.param(20, marks=pytest.mark.long)])
def test_of_many_that_start_or_resume_one_run_at_once_one_does(number: int, tmp_path: Path) -> None:
    found = put_to("many at once", number, tmp_path)
    codes, told = found["started"]
    assert codes == {"0": 1, "2": number - 1}
    assert told.count("runs are never overwritten") == number - 1
    codes, told = found["resumed"]
    assert codes.pop("0") == 1
    assert sum(codes.values()) == number - 1
    assert told.count("is in use by") + told.count("this run is done") == number - 1
    assert "Traceback" not in told
    assert found["unequal"] == [[], []]


@pytest.mark.long
@pytest.mark.parametrize("name", [*ordeals.ORDEALS, "kills", "signals"])
def test_a_run_that_is_struck_many_times_goes_on_as_if_nothing_had_happened(
    name: str, tmp_path: Path
) -> None:
    found = put_to(name, LONG, tmp_path)
    assert found["faults"] == []


@pytest.mark.long
def test_a_run_of_minutes_takes_no_more_and_more_memory_or_files(tmp_path: Path) -> None:
    seconds = int(os.environ.get("GANLAB_SOAK_SECONDS", 40))
    found = put_to("soak", seconds, tmp_path)
    assert (found["code"], found["temporary"], found["checkpoints"]) == (0, [], 2)
    least, most = found["open_files"]
    assert most - least <= 8, "files that are being written"
    if seconds >= 600:  # in less time, the growth of a cache would be taken for a leak
        assert found["growth"] < 16, "MiB an hour"


def test_a_clock_that_jumps_by_days_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANLAB_STATE", str(tmp_path / "state"))
    ordeals.make_game(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = ("run", "game.toml", "--set", "iterations=3", "--name")
    assert ordeals.command(*run, "whole")[0] == 0
    monkeypatch.setattr("ganlab.runs.journal.PLAIN_SECONDS", 0)
    real, jumps = time.time, itertools.cycle([86_400, -86_400, 0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    code, told = ordeals.command(*run, "jumped", "--max-iterations", 2)
    assert code == 0
    (left,) = re.findall(r"^1/3 .* ETA (\S+)$", told, flags=re.MULTILINE)
    assert left.startswith("0:"), "minutes"
    # the newest checkpoint is the one of the highest iteration, whatever its date
    os.utime(tmp_path / "runs" / "jumped" / "checkpoints" / "0000002.pt", (0, 0))
    code, told = ordeals.command("resume", "jumped")
    assert code == 0
    assert "resuming at iteration 2" in told
    assert ordeals.differences(tmp_path / "runs" / "whole", tmp_path / "runs" / "jumped") == []
    lines = (tmp_path / "runs" / "jumped" / "timing.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[-1] < 3600


NAMES = [
    "..", ".", "", "/", "/tmp/x", "../x", "a/b", "a/../../x", "./x", "x/", "x/.", "~", "~root",
    "-", "--help", "C:", "C:x", "C:\\x", "..\\x", "\\\\host\\share", "con", "NUL.txt", "aux",
    "x.", "x ", " ", "a\nb", "a\0b", "\x1b[31mred", "[red]q", "[/]", "{name}", "%s", "$HOME",
    "`id`", "\u202ex", "\ud800", "e\u0301", "x" * 255, "x" * 256, "\u00e9" * 200, "*", "?",
    "recipe.toml", ".lock", ".git",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:9]))
def test_no_name_of_a_run_leads_out_of_its_folder(
    name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def assemble(recipe: object, device: object, folder: RunFolder, **more: object) -> None:
        made.append(folder.path)
        raise RecipeError("seen enough")

    monkeypatch.setattr(session, "assemble", assemble)
    monkeypatch.chdir(tiny.parent)
    before = sorted(tiny.parent.rglob("*"))
    code, told = ordeals.command("run", tiny, "--runs", "runs", f"--name={name}")
    assert code == 2
    assert "\x1b" not in told, "a terminal would obey it"
    assert [path.parent for path in made] in ([], [Path("runs")])
    assert sorted(tiny.parent.rglob("*")) == before


def test_what_was_not_synced_is_lost_in_a_power_cut_and_kept_at_an_exit(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.between():
        (tmp_path / "folder").mkdir()
        with (tmp_path / "folder" / "new").open("w") as file:
            file.write("some")
            file.flush()
            os.fsync(file.fileno())
            file.write("more")
        (tmp_path / "folder" / "new").replace(tmp_path / "folder" / "named")
        (tmp_path / "other").write_text("never synced")
        for folder in (tmp_path, tmp_path / "folder"):
            number = os.open(folder, os.O_RDONLY)
            os.fsync(number)
            os.close(number)
        with (tmp_path / "folder" / "named").open("a") as file:
            file.write("!")
        (tmp_path / "other").unlink()
        (tmp_path / "last").write_text("has the inode of other, perhaps")
    *_, files = replayed(disk.journal)
    written = {"folder": None, "folder/named": b"somemore!"}
    assert after_exit(files) == written | {"last": b"has the inode of other, perhaps"}
    kept = {"folder": None, "folder/named": b"some"}
    assert after_power_cut(files, "all") == kept | {"last": b""}
    synced = {"folder": None, "folder/named": b"some", "other": b""}
    assert after_power_cut(files, "synced") == synced
    rng = random.Random(0)
    either = {after_power_cut(files, "all", rng)["folder/named"] for _ in range(20)}
    assert either == {b"some", b"somemore!"}


def test_an_operation_is_counted_and_struck_before_it_happens(tmp_path: Path) -> None:
    def strike(number: int, kind: str) -> None:
        seen.append(kind)
        if number == 4:
            raise OSError(28, "No space left on device")

    seen: list[str] = []
    with Disk(tmp_path, strike).between():
        (tmp_path / "one").write_text("1")
        (tmp_path / "one").rename(tmp_path / "two")
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "two").unlink()
    assert seen == ["open", "write", "rename", "unlink"]
    assert (tmp_path / "two").read_text() == "1"
