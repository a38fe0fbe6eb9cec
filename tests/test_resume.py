"""A killed run continues bit for bit."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import Child, wait_until
from click.testing import CliRunner
from marks import posix
from safetensors.torch import load_file

from ganlab import assembly
from ganlab.cli import main
from ganlab.speed import graphs
from ganlab.testing.recorder import CpuRecorder

Command = Callable[..., subprocess.CompletedProcess[str]]

# Batch norm in G (running statistics), EMA, moments of Adam, a moving schedule, a learning rate
# that changes, and a plugin of the user's own with state: everything that a resume can lose.
RECIPE = """\
iterations = 40
batch_size = 2
g_steps = 2
evaluate_every = 10
checkpoint_every = 10
report_every = 7
watch_every = 4
on_verdict = "carry on"

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
srresnet = { width = 8, num_blocks = 1 }
patch_discriminator = { width = 8, num_layers = 1 }
bce = {}
pixel_loss = { kind = "mse" }
label_smoothing = {}
instance_noise = { sigma = { from = 0.1, to = 0.0, over = 30 } }
pretraining = { iterations = 5 }
learning_rate_schedule = { kind = "cosine", over = 40 }
ema = { decay = 0.9 }
gradient_clipping = { generator = 0.05, discriminator = 0.05 }
freeze = { discriminator_layers = 1, until = 25 }
learning_rate_group = { discriminator = ["2"], factor = 0.5 }
counter = { use = "./counter.py" }
"""

# It also is the one that pulls the plug: SIGKILL, no goodbye.
COUNTER = """\
import os
import os
import signal
import socket
import time
from typing import ClassVar

import torch
from pydantic import PrivateAttr

from ganlab import Plugin, hookimpl


class Counter(Plugin):
    \"\"\"Adds a loss that depends on a running state and on a random draw.\"\"\"

    capturable: ClassVar[bool] = False  # the running state is another tensor each time

    _sum: torch.Tensor = PrivateAttr(default_factory=lambda: torch.zeros(()))

    @hookimpl
    def generator_loss(self, fake):
        noise = torch.rand((), generator=self.rng, device=self.rng.device)
        return {"G/counter": (fake.mean() - self._sum - noise).square()}

    @hookimpl
    def iteration_end(self, run, losses):
        self._sum = 0.9 * self._sum + 0.1 * losses["G/counter"]
        if str(run.iteration) == os.environ.get("PULL_THE_PLUG_AT"):
            if "IN_THE_MIDDLE" not in os.environ:
                due = f"{run.iteration // 10 * 10:07d}.sha256"
                while not (run.folder.checkpoints / due).exists():
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    @hookimpl
    def evaluate(self, run):
        if str(run.iteration) == os.environ.get("PULL_THE_PLUG_IN_EVALUATION"):
            os.kill(os.getpid(), int(os.environ["WITH"]))
            time.sleep(100)
        return {}

    def state_dict(self):
        return {"sum": self._sum}

    def load_state_dict(self, state):
        self._sum = state["sum"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ganlab.images.files import write_png

    folder = tmp_path_factory.mktemp("resume")
    generator = torch.Generator().manual_seed(0)
    for part in ("photos", "held_out"):
        (folder / part).mkdir()
        for name in "ab":
            image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=generator)
            write_png(image, folder / part / f"{name}.png")
    (folder / "game.toml").write_text(RECIPE)
    (folder / "counter.py").write_text(COUNTER)
    return folder


def here(folder: Path, *arguments: object) -> str:
    """A command in this process, which saves ten seconds of imports; returns its stderr."""
    with contextlib.chdir(folder):
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The run that nothing interrupted."""
    here(folder, "run", "game.toml", "--name", "whole")
    return folder / "runs" / "whole"


def assert_same_run(one: Path, other: Path) -> None:
    """Byte-equal stats lines, pictures and weights; equal checkpoints, tensor by tensor."""
    lines = [f"{name}.jsonl" for name in ("stats", "scores", "verdicts")]
    for name in (*lines, "generator.safetensors", "best.safetensors", "samples/0000040.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [torch.load(p / "checkpoints/0000040.pt", weights_only=True) for p in (one, other)]
    assert_same(*states, "checkpoint")


def assert_same(one: object, other: object, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


@posix
def test_a_run_killed_by_sigkill_continues_bit_for_bit(
    folder: Path, whole: Path, ganlab: Command
) -> None:
    killed = ganlab("run", "game.toml", "--name", "killed", cwd=folder, PULL_THE_PLUG_AT="23")
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "runs" / "killed" / "checkpoints" / "0000040.pt").exists()
    done = ganlab("resume", "runs/killed", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming at iteration 20" in done.stderr
    assert_same_run(whole, folder / "runs" / "killed")


@posix
def test_a_run_killed_while_it_writes_a_checkpoint_continues_bit_for_bit(
    folder: Path, whole: Path, ganlab: Command
) -> None:
    killed = ganlab(
        "run", "game.toml", "--name", "middle", cwd=folder, PULL_THE_PLUG_AT="20", IN_THE_MIDDLE="1"
    )
    assert killed.returncode == -signal.SIGKILL
    done = ganlab("resume", "runs/middle", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming at iteration" in done.stderr
    assert_same_run(whole, folder / "runs" / "middle")


@posix
@pytest.mark.parametrize(
    ("number", "at", "evaluates"),
    [(signal.SIGKILL, 20, 20), (signal.SIGTERM, 30, 10), (signal.SIGTERM, 40, 10)],
)
def test_a_run_stopped_in_an_evaluation_loses_nothing_and_does_it_first(
    folder: Path, whole: Path, ganlab: Command, number: int, at: int, evaluates: int
) -> None:
    name = f"evaluating-{at}"
    settings = ["evaluate_every=20"] if evaluates == 20 else []
    options = {"PULL_THE_PLUG_IN_EVALUATION": str(at), "WITH": str(int(number))}
    ended = ganlab("run", "game.toml", *sets(*settings), "--name", name, cwd=folder, **options)
    assert ended.returncode == (75 if number == signal.SIGTERM else -number), ended.stderr
    assert f"resuming at iteration {at}" in here(folder, "resume", name)
    if settings:
        here(folder, "run", "game.toml", *sets(*settings), "--name", f"{name}-whole")
        whole = folder / "runs" / f"{name}-whole"
    assert_same_run(whole, folder / "runs" / name)
    assert picture_files(whole) == picture_files(folder / "runs" / name)


def picture_files(run: Path) -> dict[str, bytes]:
    files = [*run.glob("samples/*"), *run.glob("pictures/*")]
    return {file.name: file.read_bytes() for file in files}


def test_the_resolved_recipe_of_a_run_gives_the_same_run(folder: Path, whole: Path) -> None:
    here(folder, "run", whole / "recipe.toml", "--name", "again")
    again = folder / "runs" / "again"
    assert (again / "counter.py").read_text() == COUNTER
    assert_same_run(whole, again)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    folder: Path, whole: Path, ganlab: Command
) -> None:
    ganlab("run", "game.toml", "--name", "damaged", cwd=folder, PULL_THE_PLUG_AT="37")
    newest = folder / "runs" / "damaged" / "checkpoints" / "0000030.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    errors = here(folder, "resume", "damaged")
    assert "0000030.pt: damaged" in errors
    assert "resuming at iteration 20" in errors
    assert_same_run(whole, folder / "runs" / "damaged")


def test_a_run_stopped_off_schedule_and_resumed_is_the_same_run(folder: Path, whole: Path) -> None:
    here(folder, "run", "game.toml", "--name", "stopped", "--max-iterations", 23)
    here(folder, "resume", "stopped")
    assert_same_run(whole, folder / "runs" / "stopped")


def test_an_empty_digest_and_a_garbled_line_do_not_stop_a_resume(folder: Path, whole: Path) -> None:
    here(folder, "run", "game.toml", "--name", "crashed", "--max-iterations", 33)
    run = folder / "runs" / "crashed"
    (run / "checkpoints" / "0000033.sha256").write_text("")
    lines = (run / "stats.jsonl").read_text().splitlines(keepends=True)
    (run / "stats.jsonl").write_text("".join(lines[:-1]) + "\0\0\0\n")
    errors = here(folder, "resume", "crashed")
    assert "resuming at iteration 30" in errors
    assert_same_run(whole, run)


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_and_its_exit_code(
    folder: Path, whole: Path, number: signal.Signals, code: int
) -> None:
    name = f"signalled-{code}"
    child = Child("run", "game.toml", "--name", name, cwd=folder)
    stats = folder / "runs" / name / "stats.jsonl"
    wait_until(lambda: stats.is_file() and stats.read_text().count("\n") > 6, child)
    child.send_signal(number)
    assert child.wait() == code, child.stderr
    assert f"next: ganlab resume runs/{name}" in child.stderr
    here(folder, "resume", name)
    assert_same_run(whole, folder / "runs" / name)


def test_a_run_that_is_done_is_not_resumed(folder: Path, whole: Path) -> None:
    refused = CliRunner().invoke(main, ["resume", str(whole)])
    assert refused.exit_code == 2
    assert "done" in refused.stderr


def test_two_processes_never_share_a_run_folder(folder: Path, whole: Path, ganlab: Command) -> None:
    from ganlab.runs.folder import RunFolder

    with RunFolder(whole).lock():
        held = ganlab("resume", whole, cwd=folder)
    assert f"is in use by process {os.getpid()} on {socket.gethostname()} since" in held.stderr
    free = ganlab("resume", whole, cwd=folder)
    assert "this run is done" in free.stderr


def test_the_weights_written_for_use_are_those_of_the_checkpoint(whole: Path) -> None:
    state = torch.load(whole / "checkpoints/0000040.pt", weights_only=True)
    weights = load_file(whole / "generator.safetensors")
    average = state["plugins"]["ema"]
    kept = next(v for v in average.values() if isinstance(v, dict))
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[k], kept[k]) for k in weights)


def test_a_run_stopped_shortly_before_a_comparison_with_its_graphs_is_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, at = graphs.compared, []

    def noted(run, *arguments):
        at.append(run.iteration)
        return compared(run, *arguments)

    monkeypatch.setattr(graphs, "compared", noted)
    monkeypatch.setattr(assembly, "choose_execution", lambda run: graphs.Graphs(CpuRecorder()))
    # a comparison is planned in every 20th iteration, counted from 1
    settings = ["deterministic=true", "counter=false", "watch_every=1", "evaluate_every=20"]
    options = ["game.toml", *sets(*settings)]
    here(folder, "run", *options, "--name", "compared")
    assert {19, 39} <= set(at)
    here(folder, "run", *options, "--name", "not-compared", "--max-iterations", 18)
    at.clear()
    here(folder, "resume", "not-compared")
    # captured again in the 4th iteration, and when the freeze ends, and compared soon after
    assert 19 not in at and {22, 39} <= set(at)
    assert_same_run(*(folder / "runs" / name for name in ("compared", "not-compared")))


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.mark.cuda
@pytest.mark.parametrize("without", ["counter", "nothing"], ids=["captured", "as it is"])
def test_a_deterministic_run_on_cuda_continues_bit_for_bit(folder: Path, without: str) -> None:
    options = ["game.toml", "--device", "cuda", "--set", "deterministic=true"]
    options += [] if without == "nothing" else ["--set", f"{without}=false"]
    name = f"without-{without}"
    here(folder, "run", *options, "--name", f"{name}-straight")
    here(folder, "run", *options, "--name", f"{name}-stopped", "--max-iterations", "23")
    here(folder, "resume", f"runs/{name}-stopped", "--device", "cuda")
    assert_same_run(*(folder / "runs" / f"{name}-{way}" for way in ("straight", "stopped")))
