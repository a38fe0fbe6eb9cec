"""One training by two processes: it is the run of one process on the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def trained(recipe: Path, runs: Path, processes: int, *more: str) -> subprocess.CompletedProcess:
    """A run of this many processes on the CPU."""
    program = [sys.executable, "-m"]
    if processes > 1:
        program += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return subprocess.run(
        [*program, "ganlab", "run", recipe, "--runs", runs, "--device", "cpu", *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def lines(run: Path, name: str = "stats.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one process, and that of two."""
    parent = tmp_path_factory.mktemp("ranks")
    for processes in (1, 2):
        name = ("--name", f"of-{processes}", "--set", 'precision="float64"')
        done = trained(ROOT / "recipes" / "smoke.toml", parent, processes, *name)
        assert done.returncode == 0, done.stderr
    return parent


def test_two_processes_log_what_one_does(pair: Path) -> None:
    one, two = lines(pair / "of-1"), lines(pair / "of-2")
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_two_processes_score_what_one_does(pair: Path) -> None:
    (one,), (two,) = lines(pair / "of-1", "scores.jsonl"), lines(pair / "of-2", "scores.jsonl")
    assert list(one["images"]) == list(two["images"])
    assert one["bicubic"] == two["bicubic"]
