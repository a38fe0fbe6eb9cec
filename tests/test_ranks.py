"""One training by two processes: it is the run of one process on the whole batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ganlab import session
from ganlab.errors import RecipeError
from ganlab.limits import Limits
from ganlab.ranks.many import is_several
from ganlab.ranks.world import World
from ganlab.recipe.model import load_recipe

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


def test_gpus_starts_as_many_processes(tmp_path: Path) -> None:
    recipe, more = ROOT / "recipes" / "smoke.toml", ("--set", "iterations=11", "--name", "two")
    done = trained(recipe, tmp_path, 1, "--gpus", "2", *more)
    assert done.returncode == 0, done.stderr
    assert "2 processes train this run, each on 2 of the 4 samples" in done.stderr
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["processes"] == 2


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    done = trained(ROOT / "recipes" / "smoke.toml", tmp_path, 1, "--gpus", "3")
    assert done.returncode == 2
    assert "3 processes cannot share it equally" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.long
def test_batch_norm_is_refused_unless_it_was_asked_about(tmp_path: Path) -> None:
    more = [("iterations=3"), ("pretraining.iterations=1"), ("batch_size=4"), ("evaluate_every=3")]
    options = [word for text in more for word in ("--set", text)]
    seed = ROOT / "recipes" / "seed.toml"
    refused = trained(seed, tmp_path, 1, "--gpus", "2", *options)
    assert refused.returncode == 2
    assert "plugins.patch_discriminator: its discriminator has batch norm" in refused.stderr

    options += ["--set", 'precision="float64"', "--set", "sync_batch_norm=true"]
    for count in ("1", "2"):
        done = trained(seed, tmp_path, 1, "--gpus", count, "--name", count, *options)
        assert done.returncode == 0, done.stderr
    for a, b in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def begun(runs: Path) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """A run of two processes that has some checkpoints; the ids of its processes, by rank."""
    settings = ["iterations=60", "checkpoint_every=10", "evaluate_every=60", 'precision="float64"']
    options = [word for text in settings for word in ("--set", text)]
    command = ["ganlab", "run", ROOT / "recipes" / "smoke.toml", "--runs", runs, "--name", "cut"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--gpus", "2", "--device", "cpu", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(runs.glob("cut/checkpoints/*20.sha256")):
        time.sleep(0.02)
    ranks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            if (
                b"--name\0cut" in (folder / "cmdline").read_bytes()
                and str(runs).encode() in (folder / "cmdline").read_bytes()
            ):
                found = [v for v in variables if v.startswith(b"RANK=")]
                ranks |= {v.removeprefix(b"RANK=").decode(): int(folder.name) for v in found}
    return process, ranks


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_killed_rank_ends_the_run_which_goes_on_with_one_or_two(
    victim: str, tmp_path: Path
) -> None:
    process, ranks = begun(tmp_path)
    os.kill(ranks[victim], signal.SIGKILL)
    began = time.monotonic()
    said = process.communicate(timeout=120)[1]
    assert time.monotonic() - began < 30
    assert process.returncode == 1, said
    assert "resumed, the run goes on from its last checkpoint" in said
    copied = tmp_path / "with-one"
    shutil.copytree(tmp_path / "cut", copied)
    for run, more in ((copied, []), (tmp_path / "cut", ["--gpus", "2"])):
        command = [sys.executable, "-m", "ganlab", "resume", run, "--device", "cpu", *more]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    for a, b in zip(lines(copied), lines(tmp_path / "cut"), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)
    assert len(lines(copied)) == 61


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_signal_to_any_rank_saves_the_run(tmp_path: Path) -> None:
    process, ranks = begun(tmp_path)
    os.kill(ranks["1"], signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["state"] == "stopped"


DRIFT = '''
"""A plugin that lets the processes of a run come apart."""

from ganlab import Plugin, hookimpl


class Drift(Plugin):
    """Moves a weight by another amount on each process."""

    @hookimpl
    def iteration_end(self, run):
        if run.iteration == 11:
            next(run.G.parameters()).data.add_(1e-6 * self.world.rank)
'''


@pytest.mark.long
def test_processes_that_come_apart_are_stopped(tmp_path: Path) -> None:
    (tmp_path / "drift.py").write_text(DRIFT)
    smoke, plugin = ROOT / "recipes" / "smoke.toml", 'drift = { use = "./drift.py" }'
    recipe = tmp_path / "apart.toml"
    recipe.write_text(f'extends = "{smoke}"\nwatch_every = 4\n[plugins]\n{plugin}\n')
    done = trained(recipe, tmp_path, 1, "--gpus", "2", "--name", "apart")
    assert done.returncode == 1
    assert "have come apart: G: encoder.0.0.weight is not the same" in done.stderr
    assert "at iteration 12" in done.stderr
    assert [path.stem for path in (tmp_path / "apart" / "checkpoints").glob("*.pt")] == ["0000010"]


SPOIL = '''
"""A plugin that makes a number not finite on one process."""

from ganlab import Plugin, hookimpl


class Spoil(Plugin):
    """Spoils the weights of the last process in iteration 12, until the run went back."""

    @hookimpl
    def iteration_start(self, run):
        last = self.world.rank == self.world.size - 1
        if run.iteration == 12 and last and not run.progress.rolled_back:
            next(run.G.parameters()).data.fill_(float("nan"))
'''


@pytest.mark.long
def test_what_is_not_finite_on_one_process_takes_all_back(tmp_path: Path) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL)
    recipe = tmp_path / "spoilt.toml"
    recipe.write_text(
        f'extends = "{ROOT / "recipes" / "smoke.toml"}"\n'
        'precision = "float64"\ncheckpoint_every = 5\nevaluate_every = 5\n'
        'on_nonfinite = "roll back"\n[plugins]\nspoil = { use = "./spoil.py" }\n'
    )
    for count in ("1", "2"):
        done = trained(recipe, tmp_path, 1, "--gpus", count, "--name", count)
        assert done.returncode == 0, done.stderr
        assert "going back to the newest checkpoint" in done.stderr
    for a, b in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("told", [{}, {"RANK": "1"}, {"MASTER_PORT": "x", "WORLD_SIZE": "many"}])
def test_what_a_cluster_sets_for_other_reasons_makes_no_rank(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"WORLD_SIZE": "8", "MASTER_ADDR": "node1"} | told).items():
        monkeypatch.setenv(name, value)
    assert not is_several()


def test_other_commands_are_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    follower = World()
    follower.rank, follower.size = 1, 2
    monkeypatch.setattr(session, "join", lambda: follower)
    with pytest.raises(RecipeError, match="only `ganlab run` and `ganlab resume`"):
        session.start(load_recipe("smoke"), "cpu", Limits(), tmp_path)
    assert not list(tmp_path.iterdir())
