"""A plugin of somebody else's: one file, one recipe line, no change to ganlab."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ganlab.runs.reading import Log

EXAMPLE = Path(__file__).parents[1] / "docs" / "example_plugin"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example distribution built as a wheel and unpacked as an installer does.

    It lands in a folder of the test's own, put on PYTHONPATH, where entry points are found too:
    the environment that runs the tests is left as it is.
    """
    work = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, work / "source")
    build = (
        "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel;"
        "print(build_wheel(sys.argv[2]))"
    )
    command = [sys.executable, "-c", build, str(source), str(work)]
    wheel = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    shutil.unpack_archive(work / wheel, work / "site", "zip")
    return work / "site"


def test_an_installed_distribution_adds_a_plugin(
    tiny: Path, installed: Path, ganlab: Command
) -> None:
    tiny.write_text(tiny.read_text() + "gradient_difference = { weight = 0.5 }\n")
    refused = ganlab("run", tiny.name, cwd=tiny.parent)
    assert refused.returncode == 2
    assert "no plugin named 'gradient_difference'" in refused.stderr

    path = str(installed)
    shown = ganlab("plugins", "gradient_difference", cwd=tiny.parent, PYTHONPATH=path)
    assert "Mathieu et al. 2015" in shown.stdout
    assert "ganlab-gradient-difference 0.1.0" in shown.stdout
    done = ganlab("run", tiny.name, cwd=tiny.parent, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    lines = [*Log(tiny.parent / "runs" / "tiny-1" / "stats.jsonl")]
    assert lines[0]["G/gradient_difference"] > 0
    manifest = (tiny.parent / "runs" / "tiny-1" / "manifest.json").read_text()
    assert "ganlab-gradient-difference" in manifest


def test_a_single_file_beside_the_recipe_is_a_plugin(tiny: Path, ganlab: Command) -> None:
    shutil.copyfile(EXAMPLE / "ganlab_gradient_difference.py", tiny.parent / "my_loss.py")
    tiny.write_text(tiny.read_text() + 'smooth = { use = "./my_loss.py", weight = 0.5 }\n')
    done = ganlab("run", tiny.name, cwd=tiny.parent)
    assert done.returncode == 0, done.stderr
    run = tiny.parent / "runs" / "tiny-1"
    assert next(iter(Log(run / "stats.jsonl")))["G/smooth"] > 0
    assert "runs code from" in done.stderr
    assert "sha256" in done.stderr
    assert (run / "smooth.py").read_bytes() == (tiny.parent / "my_loss.py").read_bytes()
