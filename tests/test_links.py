"""A received run folder: nothing is read or written through a link, a pipe or a device in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import TINY

from ganlab.cli import main
from ganlab.errors import printable
from ganlab.files import whole
from ganlab.images.files import write_png
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.runs.links import plain_runs
from ganlab.session import start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
SECRET = b"SECRET"


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 2 of 4 iterations."""
    folder = tmp_path_factory.mktemp("links")
    (folder / "tiny.toml").write_text(TINY)
    made, code = start(load_recipe(folder / "tiny.toml"), "cpu", Limits(2), folder)
    assert code == 0
    return made.path


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "places").mkdir()
    write_png(torch.zeros(3, 64, 64, dtype=torch.uint8), tmp_path / "image.png")
    return shutil.copytree(template, tmp_path / "runs" / "tiny-1")


def _secret(path: Path) -> Path:
    return next(p / "secret" for p in path.parents if (p / "secret").exists())


def as_link(path: Path) -> None:
    path.symlink_to(_secret(path))


def as_hard_link(path: Path) -> None:
    os.link(_secret(path), path)


def as_pipe(path: Path) -> None:
    os.mkfifo(path)  # inside a function, since Windows has none


def as_link_to_a_folder(path: Path) -> None:
    path.symlink_to("../../places")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("stats.jsonl", as_link),
        ("status.json", as_pipe),
        ("report.html", as_link),
        ("best.safetensors", as_link),
        (".lock", as_link),
        (".lock", as_hard_link),
        (".LOCK", as_hard_link),
        ("counter.py", as_link),
        ("manifest.json", Path.mkdir),
        ("checkpoints", as_link_to_a_folder),
        ("samples", as_link_to_a_folder),
        ("pictures", Path.touch),
        ("checkpoints/0000002.sha256", as_link),
        ("checkpoints/0000004.tmp", as_link),
        ("pictures/00-sr.png", as_link),
        ("pictures/index.json", as_pipe),
        ("samples/0000004.png", Path.mkdir),
        ("bad\x1b[31m\n.json", as_link),
    ],
    ids=lambda value: getattr(value, "__name__", ascii(value)),  # the same in each worker
)
def test_a_run_folder_with_other_things_than_files_is_refused_by_name(
    run: Path, name: str, make: Callable[[Path], object]
) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path)
    shown = printable(str(path))
    image = run.parents[1] / "image.png"
    for command in (
        ["report", run], ["resume", run], ["checkpoints", run], ["pack", run, "-o", "x.zip"],
        ["upscale", run, image, "-o", "out"], ["diff", run, run], ["compare", run, run],
        ["eval", run, "--data", run.parents[1]],
    ):  # fmt: skip
        result = ganlab(*command)
        assert result.exit_code == 2, (command, result.output)
        (line,) = result.stderr.splitlines()
        assert line.startswith((f"{shown} is a ", f"{shown} is not a ")), (command, line)
    assert (run.parents[1] / "secret").read_bytes() == SECRET
    assert not [*(run.parents[1] / "places").iterdir()]


def test_a_recipe_that_is_a_link_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "recipe.toml").rename(tmp_path / "t.toml")
    (run / "recipe.toml").symlink_to(tmp_path / "t.toml")
    result = ganlab("report", run)
    assert (result.exit_code, f"{run}/recipe.toml is a link" in result.stderr) == (2, True)


def test_a_run_may_itself_be_reached_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(run, target_is_directory=True)
    assert ganlab("checkpoints", tmp_path / "elsewhere").exit_code == 0


def test_a_folder_of_runs_is_listed_without_the_refused_ones(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, run.parent / "tiny-2")
    (run / "status.json").unlink()
    os.mkfifo(run / "status.json")
    assert plain_runs(run.parent) == [other]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"left out: {run}/status.json is a pipe")
    assert str(run) not in ganlab("runs", "--runs", run.parent).stdout


def test_a_resumed_run_removes_what_killed_processes_left(run: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = []
    for folder in (run, run / "checkpoints", run / "samples"):
        with whole(folder / "a"):
            (mine,) = folder.glob(".ganlab-*")
            dead, alive = (
                folder / mine.name.replace(str(os.getpid()), str(number))
                for number in (gone.pid, os.getppid())
            )
        for path in (dead, alive):
            path.touch()
            left.append(path)
        (folder / "a").unlink()
    assert ganlab("resume", run).exit_code == 0
    assert [path for path in left if path.exists()] == left[1::2]
