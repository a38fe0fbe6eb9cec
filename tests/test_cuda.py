"""What only a GPU can tell: each shipped recipe on it, captured and as written, and no wait for it.

To try these tests without a GPU: GANLAB_TEST_GPU=cpu pytest -m cuda tests/test_cuda.py
"""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from ganlab_plugins.perceptual_loss import PerceptualLoss
from test_shipped_recipes import RECIPES, ROOT, photographs, small  # noqa: F401

from ganlab.assembly import assemble
from ganlab.cli import main
from ganlab.images.files import write_png
from ganlab.images.resampling import resize
from ganlab.iteration import iterate
from ganlab.recipe.file import read_recipe
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.speed.graphs import WARM_UPS, CudaRecorder, Graphs
from ganlab.streams import Streams
from ganlab.testing.recorder import CpuRecorder

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("seeded_weights", "small_photographs"),
    # of torch and of its compiler; what ganlab itself warns of is tested on the CPU
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]

SHIPPED = pytest.mark.parametrize(
    "recipe", RECIPES, ids=lambda f: f.relative_to(ROOT / "recipes").as_posix()
)
LAST = 40  # iterations of a run that is made short


def built(recipe: Path, photographs: Path, gpu: torch.device, *overrides: str) -> Run:  # noqa: F811
    """A small run on the GPU. Its game begins in iteration 10, if it pretrains."""
    changes = [*small(recipe, photographs)[1::2], *overrides, f"iterations={LAST}"]
    if "pretraining" in read_recipe(recipe).values["plugins"]:
        changes.append("pretraining.iterations=10")
    return assembled(recipe, changes, gpu)


def assembled(recipe: Path, overrides: Sequence[str], gpu: torch.device) -> Run:
    run = assemble(load_recipe(recipe, overrides), gpu)
    run.notes.clear()  # of what does not concern the GPU
    return run


def take(run: Run, *iterations: int) -> list[dict[str, float]]:
    """Take these iterations in one run of the loop; their losses."""
    with run.execution.running():
        lines = []
        for run.iteration in iterations:
            lines.append({name: value.item() for name, value in iterate(run).items()})
    return lines


def refusals(run: Run) -> list[str]:
    """What was not captured, without what no GPU can capture."""
    known = ("SGD has no capturable form", "cannot be captured as a CUDA graph")
    return [note for note in run.notes if not any(words in note for words in known)]


@contextmanager
def waits_refused(gpu: torch.device) -> Iterator[None]:
    """Context in which each wait for the device raises."""
    if gpu.type != "cuda":  # where the host may read its own numbers; see test_waits.py
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature"
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@SHIPPED
def test_sixty_iterations_never_wait(
    recipe: Path,
    photographs: Path,  # noqa: F811
    gpu: torch.device,
) -> None:
    # a step that waits is not captured, which is told; a comparison waits, so none may be due
    run = built(recipe, photographs, gpu, "compile=graphs", "watch_every=0")
    before, count = (30, 60) if gpu.type == "cuda" else (16, 2)
    take(run, *range(before))
    with run.execution.running(), waits_refused(gpu):
        for run.iteration in range(before, before + count):
            iterate(run)
    assert refusals(run) == []


@SHIPPED
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_shipped_recipe_trains_alike_captured_and_as_written(
    recipe: Path,
    precision: str,
    photographs: Path,  # noqa: F811
    gpu: torch.device,
) -> None:
    # torch has no deterministic form of some layers of the large networks
    large = recipe.parent.name == "div2k"
    numerics = [f"precision={precision}", f"deterministic={str(not large).lower()}"]
    lines = []
    for compile_ in ("off", "graphs"):
        run = built(recipe, photographs, gpu, *numerics, "watch_every=0", f"compile={compile_}")
        count = WARM_UPS + 3
        lines.append(take(run, *range(count), *range(LAST - count, LAST)))
    assert refusals(run) == []
    if not run.notes:
        assert isinstance(run.execution, Graphs) and run.execution._recorded
    for mine, theirs in zip(*lines, strict=True):
        mine = {name: mine[name] for name in theirs}
        assert mine == pytest.approx(theirs, rel=5e-2, abs=5e-3 if large else 1e-3)


def test_a_replayed_graph_draws_the_numbers_of_the_stream_as_it_is_seeded(
    gpu: torch.device,
) -> None:
    streams = Streams(0, gpu)
    generator, out = streams.generator("noise"), torch.empty(1000, device=gpu)

    def draw() -> None:
        out.copy_(torch.rand(1000, generator=generator, device=gpu) + torch.rand(1000, device=gpu))

    wanted = []
    for number in range(4):
        streams.moment(number)
        draw()
        wanted.append(out.clone())
    recorder = CudaRecorder(gpu) if gpu.type == "cuda" else CpuRecorder()
    with recorder.running():
        _, replay = recorder.record(draw, [generator])
        for number in range(4):
            streams.moment(number)
            replay()
            assert torch.equal(out, wanted[number])
    assert not torch.equal(wanted[0], wanted[1])


WAITING = '''\
from ganlab import Plugin, hookimpl


class Waits(Plugin):
    """Reads a number in its loss."""

    @hookimpl
    def generator_loss(self, fake):
        return {"G/waits": fake.mean() * (0 if fake.mean().item() > 2 else 0.001)}
'''


def test_a_loss_that_waits_is_named_and_trained_on_as_it_is(tiny: Path, gpu: torch.device) -> None:
    (tiny.parent / "waits.py").write_text(WAITING)
    waits = 'waits={ use = "./waits.py" }'
    runs = [
        assembled(tiny, [waits, f"compile={mode}", "deterministic=true"], gpu)
        for mode in ("off", "graphs")
    ]
    lines = [take(run, *range(10)) for run in runs]
    (note,) = runs[1].notes
    assert note.startswith("G's step is not captured as a graph: waits: ")
    assert runs[1].execution._recorded  # type: ignore[attr-defined] # the step of D
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-3)


def test_features_in_bfloat16_give_nearly_the_same_loss_and_gradient(gpu: torch.device) -> None:
    real = resize(torch.rand(4, 3, 24, 24), (96, 96)).clamp(0, 1).to(gpu)
    found = []
    for precision in ("float32", "bfloat16"):
        run = SimpleNamespace(device=gpu, dtype=torch.float32, notes=[], real_shape=(3, 96, 96))
        torch.manual_seed(0)  # of the network's weights
        loss = PerceptualLoss(precision=precision)
        loss.check_recipe(run=run)
        fake = (real * 0.9).requires_grad_()
        (value,) = loss.generator_loss(fake=fake, real=real).values()
        (gradient,) = torch.autograd.grad(value, fake)
        found.append((value.item(), gradient.flatten()))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.01)
    assert torch.cosine_similarity(found[0][1], found[1][1], 0) > 0.8


@pytest.mark.parametrize("compile_", ["off", "graphs"])
def test_a_shipped_recipe_in_bfloat16_is_resumed_to_the_byte(
    tmp_path: Path, gpu: torch.device, compile_: str
) -> None:
    settings = ["iterations=24", "evaluate_every=8", "checkpoint_every=8", "precision=bfloat16"]
    settings += ["deterministic=true", f"compile={compile_}", "pretraining.iterations=6"]
    options = [part for setting in settings for part in ("--set", setting)]
    start = ["run", ROOT / "recipes/wgan_gp.toml", *options, "--runs", tmp_path, "--device", gpu]
    command(*start, "--name", "straight")
    command(*start, "--name", "stopped", "--max-iterations", 13)
    command("resume", tmp_path / "stopped", "--device", gpu)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for name in ("stats.jsonl", "scores.jsonl", "generator.safetensors", "best.safetensors"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes(), name


def command(*words: object) -> str:
    """A command of ganlab in this process; what it prints."""
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_work_on_it(tiny: Path, gpu: torch.device) -> None:
    with contextlib.chdir(tiny.parent):
        on = ["--device", gpu]
        assert f"{gpu.type}" in command("explain", tiny, *on)
        assert command("check", tiny, *on).endswith("ok\n")
        command("trace", tiny, *on)
        assert json.loads(command("bench", tiny, "--time", "1s", "--json", *on))["floor"]
        command("run", tiny, "--runs", ".", "--name", "run", *on)
        (tiny.parent / "photos").mkdir()
        image = torch.randint(0, 256, (3, 48, 52), dtype=torch.uint8)
        write_png(image, tiny.parent / "photos" / "a.png")
        assert "psnr_y" in command("eval", "run", "--data", "photos", *on)
        command("upscale", "run", "photos/a.png", *on)
        assert len(list((tiny.parent / "upscaled").glob("*.png"))) == 1


def test_a_run_on_the_second_gpu_leaves_the_first_alone(tiny: Path, gpu: torch.device) -> None:
    if gpu.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    other = torch.device("cuda", 1) if gpu.type == "cuda" else gpu
    lines = []
    for device in (gpu, other):
        held = torch.cuda.memory_allocated(gpu) if gpu.type == "cuda" else 0
        settings = ["compile=graphs", "deterministic=true", "ema={}", "instance_noise={}"]
        run = assembled(tiny, settings, device)
        lines.append(take(run, *range(10)))
        assert run.notes == [] and {p.device for p in run.G.parameters()} == {device}
    # less, since the first run is gone
    assert gpu.type != "cuda" or torch.cuda.memory_allocated(gpu) <= held
    assert lines[0] == lines[1]


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Inductor on CUDA needs triton")
def test_networks_compiled_by_inductor_train_alike(tiny: Path, gpu: torch.device) -> None:
    lines = []
    for mode in ("off", "networks"):
        run = assembled(tiny, [f"compile={mode}", "tf32=false"], gpu)
        lines.append(take(run, *range(3)))
    assert run.notes == []
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-3)
