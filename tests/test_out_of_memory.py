"""A run that has not enough memory says where, how much, and what needs less; nothing is lost."""

import contextlib
import json
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import TINY

from ganlab.cli import main
from ganlab.errors import OutOfMemory
from ganlab.failures.out_of_memory import (
    _remedies,
    is_out_of_memory,
)
from ganlab.failures.place import Place
from ganlab.failures.telling import explained, telling
from ganlab.images.files import write_png
from ganlab.recipe.model import load_recipe

HUNGRY = '''\
from pathlib import Path

import torch
from ganlab import Plugin, hookimpl

FILE = Path("hungry")
MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 7.79 GiB of "
    "which 5.31 MiB is free. 2.00 GiB allowed; Of the allocated memory 6 GiB is allocated by torch"
)


def eat(plugin, place, iteration=2):
    now = -1 if plugin._run is None else plugin._run.iteration
    if FILE.exists() and FILE.read_text() == place and now == iteration:
        raise torch.OutOfMemoryError(MESSAGE)


def passed_on(plugin, role):
    return lambda *_: eat(plugin, f"{role} forward")


class Eats(torch.autograd.Function):
    @staticmethod
    def forward(context, value, plugin):
        context.plugin = plugin
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        eat(context.plugin, "backward")
        return gradient, None


class Greedy(torch.optim.SGD):
    def step(self, closure=None):
        eat(self.plugin, "optimizer")
        return super().step(closure)


class Hungry(Plugin):
    """Has too little memory at one moment, in the place that the file `hungry` names."""

    _run: object = None

    @hookimpl
    def check_recipe(self, run):
        eat(self, "assembly", -1)

    @hookimpl
    def run_start(self, run):
        self._run = run
        for role, network in run.networks.items():
            network.register_forward_hook(passed_on(self, role))

    @hookimpl(wrapper=True)
    def degrade(self, images):
        eat(self, "sampling")
        return (yield)

    @hookimpl
    def penalty(self, discriminator):
        eat(self, "penalty")
        return {}

    @hookimpl
    def generator_loss(self, fake):
        return {"G/hungry": 0 * Eats.apply(fake.mean(), self)}

    @hookimpl
    def make_optimizer(self, module, role):
        made = Greedy(module.parameters(), lr=1e-3)
        made.plugin = self
        return made

    @hookimpl
    def evaluate(self, run, generator):
        eat(self, "evaluation", 3)
        return {"none": 0.0}

    def state_dict(self):
        eat(self, "checkpoint", 3)
        return {}

    def load_state_dict(self, state):
        pass
'''
WHOSE = "(eat) of plugin hungry (hungry.py)"
ASSEMBLY = f"out of memory in the assembly of the run, before iteration 1, in check_recipe {WHOSE}"
AMOUNTS = "20.00 GiB asked for, 5.3 MiB free on cpu, this process may have 2.00 GiB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe whose plugin `hungry` runs out of memory, and a whole run of it."""
    folder = tmp_path_factory.mktemp("hungry")
    (folder / "hungry.py").write_text(HUNGRY)
    text = TINY.replace("iterations = 4", "iterations = 6\nreport_every = 50\nwatch_every = 0")
    text = text.replace("evaluate_every = 100\ncheckpoint_every = 2",
                        "evaluate_every = 3\ncheckpoint_every = 1")  # fmt: skip
    (folder / "hungry.toml").write_text(f'{text}hungry = {{ use = "./hungry.py" }}\n')
    with contextlib.chdir(folder):
        assert ganlab("run", "hungry.toml", "--name", "whole", "--device", "cpu").exit_code == 0
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, as the current one."""
    monkeypatch.chdir(folder)
    yield folder
    (folder / "hungry").unlink(missing_ok=True)
    shutil.rmtree(folder / "runs" / "run", ignore_errors=True)


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def train(where: str, *options: object) -> Result:
    Path("hungry").write_text(where)
    return ganlab("run", "hungry.toml", "--name", "run", "--device", "cpu", *options)


def message(result: Result) -> list[str]:
    """The lines of the message; there is nothing else of the failure."""
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr and isinstance(result.exception, SystemExit)
    return result.stderr[result.stderr.index("out of memory") :].splitlines()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("sampling", "iteration 3 (sampling), in degrade"),
        ("D forward", "iteration 3 (D step, forward pass), in passed_on.<locals>.<lambda>"),
        ("G forward", "iteration 3 (D step, forward pass), in passed_on.<locals>.<lambda>"),
        ("penalty", "iteration 3 (D step, forward pass), in penalty"),
        ("backward", "iteration 3 (G step, backward pass), in Eats.backward"),
        ("optimizer", "iteration 3 (D step, optimizer), in make_optimizer"),
        ("evaluation", "the evaluation after 3 iterations, in evaluate"),
        ("checkpoint", "writing a checkpoint after 3 iterations, in state_dict"),
    ],
)
def test_it_is_told_where_and_how_much_and_nothing_is_lost(
    here: Path, where: str, told: str
) -> None:
    first, *lines = message(train(where))
    assert first == f"out of memory in {told} {WHOSE}: {AMOUNTS}"
    assert lines[0] == "at hungry.py:16: raise torch.OutOfMemoryError(MESSAGE)"
    assert "  batch_size = 1  # half the batch, which --fit tries first" in lines
    assert "  accumulate = 2  # the same batch, taken in 2 parts" in lines
    assert any(line.startswith("  activation_checkpointing = true") for line in lines)
    assert "the largest batch that fits: ganlab bench runs/run/recipe.toml --fit" in lines
    kept = 3 if where == "evaluation" else 2  # the checkpoint comes before the evaluation
    goes_on = f"this run goes on from its checkpoint of iteration {kept}: ganlab resume runs/run "
    assert lines[-1].startswith(goes_on)

    run = here / "runs" / "run"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert status["message"].startswith(first)
    # the iteration that failed counts for nothing, and those before it are on the disk
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert stats[-1]["iteration"] == status["iteration"] >= 2

    Path("hungry").unlink()
    assert ganlab("resume", "runs/run", "--device", "cpu").exit_code == 0
    for name in ("stats.jsonl", "generator.safetensors"):
        assert (run / name).read_bytes() == (here / "runs" / "whole" / name).read_bytes()


def test_a_watched_step_can_be_left_out(here: Path) -> None:
    options = ["--set", "watch_every=3", "--set", "checkpoint_every=100"]
    first, *lines = message(train("backward", *options))
    assert "in iteration 3 (G step, the gradient of one loss, since this step is watched)" in first
    assert any(line.startswith("  watch_every = 0") for line in lines)
    # losses that no report or checkpoint had written yet
    stats = (here / "runs" / "run" / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in stats] == [1, 2]


def test_an_assembly_that_does_not_fit_leaves_no_run(here: Path) -> None:
    first, *lines = message(train("assembly"))
    assert first == f"{ASSEMBLY}: {AMOUNTS}"
    # a smaller batch would not help: no step has been taken
    assert lines == [
        "at hungry.py:16: raise torch.OutOfMemoryError(MESSAGE)",
        "networks and data do not fit, before any step: take smaller networks; on a GPU, data may "
        "also stay in the machine's memory",
    ]
    assert not (here / "runs" / "run").exists()


@pytest.mark.parametrize("command", ["check", "bench", "trace"])
def test_other_commands_tell_it_too(here: Path, command: str) -> None:
    Path("hungry").write_text("assembly")
    first, *_ = message(ganlab(command, "hungry.toml", "--device", "cpu"))
    assert first.startswith(ASSEMBLY)


def test_a_step_may_need_less_memory_when_the_run_goes_on(here: Path) -> None:
    *_, last = message(train("backward"))
    assert "(there, --set may change accumulate, activation_checkpointing and compile)" in last
    Path("hungry").unlink()
    less = ["--set", "activation_checkpointing=true", "--set", "compile=off"]
    result = ganlab("resume", "runs/run", "--device", "cpu", *less)
    assert result.exit_code == 0, result.stderr
    stats = [here / "runs" / name / "stats.jsonl" for name in ("run", "whole")]
    assert stats[0].read_bytes() == stats[1].read_bytes()


def test_a_batch_that_no_machine_holds_is_refused_before_anything_is_allocated(here: Path) -> None:
    result = train("nowhere", "--set", "batch_size=1_000_000_000_000", "--set", "accumulate=4")
    assert result.exit_code == 2
    found = re.fullmatch(
        r"--set batch_size=1_000_000_000_000: batch_size = 1000000000000: the images of one batch "
        r"alone take ([\d,.]+) GiB, and ([\d,.]+) GiB are free on cpu; .*--fit.*",
        result.stderr.splitlines()[-1],
    )
    needed, free = (
        (float(number.replace(",", "")) for number in found.groups()) if found else (0, 0)
    )
    assert abs(needed - 1e12 * 3 * (16 * 16 + 4 * 4) * 4 / 2**30) < 1 < free < needed
    assert not (here / "runs" / "run").exists()


@pytest.mark.parametrize(
    ("batch", "accumulate", "told"),
    [
        (16, 1, {"batch_size": 8, "accumulate": 2}),
        (9, 1, {"batch_size": 4, "accumulate": 3}),
        (12, 4, {"batch_size": 4, "accumulate": 12}),
        (6, 3, {"batch_size": 3, "accumulate": 6}),
        (4, 4, {}),
    ],
)
def test_what_is_proposed_is_a_recipe(
    tiny: Path, batch: int, accumulate: int, told: dict[str, int]
) -> None:
    given = [f"batch_size={batch}", f"accumulate={accumulate}"]
    place = Place(recipe=load_recipe(tiny, given))
    remedies = {n: v for n, v, _ in _remedies(place) if n in ("batch_size", "accumulate")}
    assert remedies == {name: str(value) for name, value in told.items()}
    for name, value in remedies.items():
        load_recipe(tiny, [*given, f"{name}={value}"])


def test_what_failed_is_freed_before_the_run_writes_how_it_ended() -> None:
    class Held(torch.nn.Module): ...

    kept: list[weakref.ref[Held]] = []

    def fail() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    told = r"^out of memory: 2.0 MiB asked for, .* free on cpu$"
    with pytest.raises(OutOfMemory, match=told), telling():
        fail()
    assert kept[0]() is None


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
    assert (explained(error) is not None) is is_one


def test_one_arm_of_a_comparison_ends_and_the_others_are_made(tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("FILE.exists()", "True").replace(
        "FILE.read_text()", '"penalty"'))  # fmt: skip
    arms = [tmp_path / f"{name}.toml" for name in ("game", "hungry", "other")]
    for part in ("photos", "held_out"):
        (tmp_path / part).mkdir()
        image = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)
        write_png(image, tmp_path / part / "a.png")
    photos = 'image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }'
    game = TINY.replace("dead_leaves = { crop = 16, num_images = 2, size = 32 }", photos)
    arms[0].write_text(game.replace("evaluate_every = 100", "evaluate_every = 2"))
    extends = 'extends = "game.toml"\n\n[plugins]\n'
    arms[1].write_text(f'{extends}hungry = {{ use = "./hungry.py" }}\n')
    arms[2].write_text(f"{extends}pixel_loss = {{ weight = 0.1 }}\n")
    runs = tmp_path / "runs"
    made = ganlab("compare", *arms, "--seeds", "0", "--runs", runs, "--jobs", "1")
    assert made.exit_code == 1, made.output
    assert "failed: out of memory in iteration 3 (D step, forward pass), in penalty" in made.stderr
    assert "Traceback" not in made.stderr
    assert "note: hungry: the run failed and gave no figure." in made.stdout
    states = [json.loads(f.read_text())["state"] for f in sorted(runs.glob("*/status.json"))]
    assert states == ["done", "failed", "done"]


@pytest.mark.cuda
@pytest.mark.parametrize("compile_", ["off", "graphs"])
def test_it_is_told_on_cuda(tiny: Path, monkeypatch: pytest.MonkeyPatch, compile_: str) -> None:
    monkeypatch.chdir(tiny.parent)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated() + 256 * 2**20
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room / whole)
    try:
        options = ["--set", f"compile={compile_}", "--set", "batch_size=4096", "--name", "run"]
        result = ganlab("run", tiny, "--device", "cuda", *options)
        first, *lines = message(result)
        assert re.match(r"out of memory in iteration 1 \(.*\).*: [\d.]+ [MG]iB asked for, ", first)
        assert "free on cuda:0" in first
        assert "  batch_size = 2048  # half the batch, which --fit tries first" in lines
        assert any(line.startswith('  precision = "bfloat16"') for line in lines)
        assert any(line.startswith('  compile = "off"') for line in lines) == (compile_ == "graphs")
        assert json.loads(Path("runs/run/status.json").read_text())["state"] == "failed"
        # all of it was given back
        options[3] = "batch_size=2"
        assert ganlab("run", tiny, "--device", "cuda", *options[:4]).exit_code == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
