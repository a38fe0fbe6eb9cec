"""Runs on a cluster of Ray and in jobs of Slurm: lost, preempted, called off, and yet the same."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import Child, fresh, run as command, wait_until
from marks import posix
from test_compare import other, recipe, run, tables  # noqa: F401
from test_executors import assert_the_same_runs

from ganlab.system import is_running

pytestmark = [posix, pytest.mark.usefixtures("few_samples")]

STRUCK = '''\
import os
import signal
import time
from pathlib import Path

from ganlab import Plugin, hookimpl


class Struck(Plugin):
    """Sends signals to its own process, once, in the middle of the run of one seed."""

    observes = True

    folder: str

    @hookimpl
    def iteration_start(self, run):
        strikes = Path(self.folder) / "strikes"
        if run.iteration == 7 and run.recipe.seed == 0 and strikes.exists():
            names = strikes.read_text().split()
            strikes.unlink()
            time.sleep(5)  # a checkpoint is on its way
            for name in names:
                os.kill(os.getpid(), getattr(signal, name))
'''


@pytest.fixture
def struck(recipe: Path, other: Path) -> Path:  # noqa: F811
    """A recipe whose run with seed 0 is struck by the signals in the file `strikes`."""
    folder = recipe.parent
    (folder / "struck.py").write_text(STRUCK)
    text = other.read_text() + f'struck = {{ use = "./struck.py", folder = "{folder}" }}\n'
    other.write_text(text)
    return other


def compared(arms: list[Path], runs: str, *words: object, strikes: str = "") -> tuple[Any, str]:
    """The tables of a comparison of 3 seeds, and what it said."""
    folder = arms[0].parent
    if strikes:
        (folder / "strikes").write_text(strikes)
    arguments = ("compare", *arms, "--runs", runs, "--json", "--device", "cpu", *words)
    done = command(*arguments, cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert not (folder / "strikes").exists()
    return tables(json.loads(done.stdout)), done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of Ray on this machine, with two workers of one processor."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        found.add_node(num_cpus=1)
    found.wait_for_nodes()
    yield found.address
    found.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.long  # every worker imports torch
@pytest.mark.parametrize(
    "more", [(), ("--executor-option", "shared=false")], ids=["shared", "sent"]
)
def test_a_comparison_on_ray_with_a_killed_worker_is_that_of_one_process(
    cluster: str, recipe: Path, struck: Path, more: tuple[str, ...]  # noqa: F811
) -> None:  # fmt: skip
    arms, seeds = [recipe, struck], ("--seeds", "0..2")
    expected, _ = compared(arms, "here", *seeds, "--jobs", "1")
    on_ray = ("--executor", "ray", "--executor-option", f"address={cluster}", *more)
    found, told = compared(arms, "there", *seeds, *on_ray, strikes="SIGKILL")
    assert found == expected
    assert_the_same_runs(recipe.parent / "here", recipe.parent / "there")
    assert "other seed 0: its worker was lost (WorkerCrashedError: " in told
    assert "it goes on from its newest checkpoint, 1 of at most 2 times" in told
    assert "resuming at iteration" in (recipe.parent / "there/other-1/log.txt").read_text()
    assert {p.name for p in (recipe.parent / "there").iterdir()} == {
        *(f"{name}-{n}" for name in ("game", "other") for n in (1, 2, 3)),
        "compare-game-other.html",
    }
    again = compared(arms, "there", *seeds, *on_ray)[1]
    assert "6 runs; 6 exist, 0 to be continued, 0 to be made" in again


@pytest.mark.long  # every job imports torch
@pytest.mark.parametrize(
    ("strikes", "seeds"),
    [("SIGTERM SIGUSR1", "0..2"), ("SIGUSR1", "0"), ("SIGTERM", "0"), ("SIGKILL", "0")],
)  # Slurm preempts by the first two
def test_a_comparison_by_jobs_of_which_one_is_preempted_is_that_of_one_process(
    recipe: Path, struck: Path, strikes: str, seeds: str  # noqa: F811
) -> None:  # fmt: skip
    pytest.importorskip("submitit")
    arms = [recipe, struck]
    expected, _ = compared(arms, "here", "--seeds", seeds, "--jobs", "1")
    words = ("--executor", "slurm", "--executor-option", "cluster=local", "--jobs", "2")
    found, told = compared(arms, "there", "--seeds", seeds, *words, strikes=strikes)
    assert found == expected
    assert_the_same_runs(recipe.parent / "here", recipe.parent / "there")
    assert ("its worker was lost" in told) == (strikes == "SIGKILL")
    assert "resuming at iteration" in (recipe.parent / "there/other-1/log.txt").read_text()


@pytest.mark.long
@pytest.mark.parametrize("executor", ["local", "ray", "slurm"])
@pytest.mark.parametrize("on_interrupt", ["save", "finish"])
def test_an_interrupted_command_saves_its_runs_or_lets_them_finish(
    executor: str, on_interrupt: str, recipe: Path, other: Path, request: Any  # noqa: F811
) -> None:  # fmt: skip
    """Two runs at work and more in the queue; only those two end, and none after them begins."""
    options: list[object] = []
    if executor == "ray":
        address = request.getfixturevalue("cluster")
        options = ["--executor-option", f"address={address}"]
    elif executor == "slurm":
        pytest.importorskip("submitit")
        options = ["--executor-option", "cluster=local"]
    long = recipe.read_text().replace("iterations = 12", "iterations = 300")
    recipe.write_text(long.replace("evaluate_every = 4", "evaluate_every = 1000"))
    runs = recipe.parent / "runs"
    child = Child(
        *("compare", recipe, other, "--seeds", "0..3", "--jobs", "2", "--runs", runs),
        *("--executor", executor, *options, "--on-interrupt", on_interrupt, "--device", "cpu"),
        cwd=recipe.parent,
        OMP_NUM_THREADS="1",
    )
    wait_until(lambda: len(list(runs.glob("*/checkpoints/*.sha256"))) >= 2, child)
    if executor == "local":
        os.killpg(child.pid, signal.SIGINT)  # as a terminal sends it, to workers too
    else:
        child.send_signal(signal.SIGINT)
    assert child.wait(120) == 130
    assert "the same command continues where it stopped" in child.stderr
    assert "Traceback" not in child.stderr
    found = [json.loads(file.read_text()) for file in runs.glob("*/status.json")]
    assert 1 <= len(found) <= 2
    for status in found:
        ended = (status["state"], status["iteration"] == 300)
        assert ended == (("done", True) if on_interrupt == "finish" else ("stopped", False))


@pytest.mark.long
def test_jobs_that_outlive_their_command_are_taken_over_by_the_next(
    recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    pytest.importorskip("submitit")
    long = recipe.read_text().replace("iterations = 12", "iterations = 2000")
    recipe.write_text(long.replace("evaluate_every = 4", "evaluate_every = 1000"))
    runs = recipe.parent / "runs"
    words = ("compare", recipe, other, "--seeds", "0", "--runs", runs, "--device", "cpu")
    words = (*words, "--executor", "slurm", "--executor-option", "cluster=local")
    child = Child(*words, cwd=recipe.parent, OMP_NUM_THREADS="1")
    wait_until(lambda: len(list(runs.glob("*/checkpoints/*.sha256"))) >= 2, child)
    old = {f.parent: json.loads(f.read_text())["process"] for f in runs.glob("*/.holder.json")}
    assert old
    child.kill()
    child.wait()
    again = Child(*words, cwd=recipe.parent, OMP_NUM_THREADS="1")
    wait_until(lambda: not any(is_running(process) for process in old.values()), again)
    logs = [folder / "log.txt" for folder in old]
    wait_until(lambda: all("resuming at iteration" in log.read_text() for log in logs), again)
    again.send_signal(signal.SIGTERM)  # what is left says nothing more
    assert again.wait(120) == 75
    assert len(list(runs.glob("*/recipe.toml"))) <= 2
    states = [json.loads(file.read_text())["state"] for file in runs.glob("*/status.json")]
    assert {*states} == {"stopped"}
    assert not (runs / ".tasks").exists()


def test_without_its_package_an_executor_is_refused_in_one_line(
    recipe: Path, other: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    (tmp_path / "without").mkdir()
    for name in ("ray", "submitit"):  # a package that cannot be found
        (tmp_path / "without" / "sitecustomize.py").write_text(
            "import importlib.util as u\nfind = u.find_spec\n"
            f"u.find_spec = lambda n, p=None: None if n == '{name}' else find(n, p)\n"
        )
        executor = {"ray": "ray", "submitit": "slurm"}[name]
        words = ("compare", recipe, other, "--device", "cpu", "--executor", executor)
        done = fresh(*words, cwd=tmp_path, PYTHONPATH=str(tmp_path / "without"))
        assert done.returncode == 2
        expected = f"--executor {executor}: needs the package {name}: pip install"
        assert done.stderr == f"{expected} 'ganlab[{executor}]'\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ray", "--device", "auto"], "say --device cuda or --device cpu"),
        (["ray", "--device", "cuda:1"], "which one is free is decided there"),
        (["ray", "--executor-option", "gpu=1"], "ray: no option 'gpu'; did you mean 'gpus'?"),
        (["ray", "--executor-option", "gpus=1"], "gpus: has no effect with --device cpu"),
        (["slurm"], "there is no sbatch on this machine"),
        (["slurm", "--executor-option", "minutes=0"], "minutes = 0 is not allowed"),
    ],
)
def test_a_slip_is_refused_before_anything_is_started(
    words: list[str], complaint: str, recipe: Path, other: Path  # noqa: F811
) -> None:  # fmt: skip
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[words[0]])
    device = [] if "--device" in words else ["--device", "cpu"]
    code, _, stderr = run("compare", recipe, other, *device, "--executor", *words)
    assert code == 2 and complaint in stderr and len(stderr.splitlines()) == 1


@pytest.mark.long
def test_the_executor_that_the_page_shows_makes_the_same_runs(
    recipe: Path, struck: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    folder = recipe.parent
    page = (Path(__file__).parents[1] / "docs/how-to/many-machines.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (folder / "by_ssh.py").write_text(shown)
    record = folder / "by_ssh-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Name: by-ssh\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[ganlab.executors]\nssh = by_ssh:SSH\n")
    fake = folder / "bin" / "ssh"  # runs the command on this machine
    fake.parent.mkdir()
    python = Path(sys.executable).parent
    fake.write_text(f'#!/bin/sh\nPATH={python}:$PATH exec sh -c "exec $2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    expected, _ = compared([recipe, struck], "here", "--seeds", "0..1", "--jobs", "1")
    words = ("--executor", "ssh", "--executor-option", 'hosts=["one", "two"]')
    found, told = compared([recipe, struck], "there", "--seeds", "0..1", *words, strikes="SIGKILL")
    assert found == expected
    assert_the_same_runs(folder / "here", folder / "there")
    assert re.search("worker was lost \\((one|two): ssh ended with -9\\)", told)
