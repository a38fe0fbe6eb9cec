"""Fixtures shared by all tests."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from pages import HOSTILE
from tiny import TINY

if TYPE_CHECKING:
    import torch

# Two threads of a tiny net on a shared machine mostly wait for each other; processes that tests
# start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# cuBLAS reads it at its first product, which may be of a test before the one that needs it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


# tests and their processes hear signals also when they are started by nohup or behind an `&`
if os.name == "posix":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what the imports and the list of tests hold.

    ganlab collects garbage between the runs of a comparison and when a capture fails. Among all
    these objects that takes half a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or libraries say at the end that their objects were leaked


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs and golden LR images; the test is skipped where it is absent.

    Set GANLAB_TEST_DATA, or put the folder at ../shared/data beside the checkout.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GANLAB_TEST_DATA", default))
    if not (folder / "bicubic.csv").is_file():
        pytest.skip(f"no super-resolution test data at {folder} (set GANLAB_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the tests' own for cache and state, also for the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["GANLAB_CACHE"] = str(folder)
    os.environ["GANLAB_STATE"] = str(tmp_path_factory.mktemp("state"))
    return folder


@pytest.fixture(autouse=True)
def _same_draws_and_numerics() -> None:
    """Begin each test with the same state of torch, whatever ran before it."""
    import torch  # after OMP_NUM_THREADS is set

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> "torch.device":
    """The device of the tests marked `cuda`.

    GANLAB_TEST_GPU=cpu puts the CPU in its place, and the recorder of the tests in that of CUDA
    graphs. So these tests themselves can be tried where there is no GPU.
    """
    import torch

    from ganlab import assembly
    from ganlab.speed.graphs import Graphs
    from ganlab.testing.recorder import CpuRecorder

    if os.environ.get("GANLAB_TEST_GPU") != "cpu":
        return torch.device("cuda", 0)
    choose = assembly.choose_execution
    monkeypatch.setattr(
        assembly,
        "choose_execution",
        lambda run: Graphs(CpuRecorder()) if run.recipe.compile == "graphs" else choose(run),
    )
    return torch.device("cpu")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe file that trains a very small WGAN-GP in a blink."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def ganlab(cache: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `ganlab ...` in a process of its own."""
    import children  # after the lines above: its processes inherit the environment

    return children.run


@pytest.fixture(scope="session")
def readers_of_weights() -> list[ModuleType]:
    """The modules that read files of published weights."""
    from ganlab.recipe.discovery import installed  # imports torch, so after the line above

    for point in installed().values():
        point.load()
    modules = [m for n, m in sys.modules.items() if n.startswith(("ganlab_plugins.", "ganlab."))]
    return [module for module in modules if "load_weights" in vars(module)]


@pytest.fixture
def seeded_weights(monkeypatch: pytest.MonkeyPatch, readers_of_weights: list[ModuleType]) -> None:
    """A network that wants a file of published weights keeps the random ones it was built with."""
    for module in readers_of_weights:
        monkeypatch.setattr(module, "load_weights", lambda *arguments, **options: None)


@pytest.fixture
def small_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`builtin` evaluates on a small crop of each photograph: the same, in a tenth of the time."""
    from ganlab_plugins.builtin import Builtin

    from ganlab import hookimpl

    whole = Builtin.evaluation_images

    def evaluation_images(self: Builtin) -> dict:
        return {name: image[:, 100:196, 100:196] for name, image in whole(self).items()}

    monkeypatch.setattr(Builtin, "evaluation_images", hookimpl(evaluation_images))


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run, x2, for tests of what is enlarged."""
    from click.testing import CliRunner

    from ganlab.cli import main

    folder = tmp_path_factory.mktemp("doubling")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        "iterations = 1\nbatch_size = 2\nd_steps = 0\n[plugins]\n"
        "dead_leaves = { crop = 16, num_images = 2, size = 32 }\n"
        "bicubic = { scale = 2 }\nespcn = {}\npixel_loss = {}\nadam = {}\n"
    )
    command = ["run", str(recipe), "--runs", str(folder / "runs"), "--name", "done"]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    return folder / "runs" / "done"


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation judges the game's health on 8 samples, not 64: half its time in small runs.

    For runs of this process only; a run that another process begins or goes on has other figures.
    """
    monkeypatch.setattr("ganlab.evaluation.health.SAMPLES", 8)


HOSTILE_PLUGIN = '''\
from ganlab import Plugin, Verdict, hookimpl

NASTY = "<img src=x onerror=alert(3)>"


class Hostile(Plugin):
    """Puts what a browser might run into every text that it can."""

    text: str

    @hookimpl
    def evaluate(self, run, generator):
        return {f"{NASTY}figure": float(run.iteration)}

    @hookimpl
    def generator_loss(self, fake):
        return {f"G/{NASTY}": 0.1 * fake.square().mean()}

    @hookimpl
    def verdicts(self, history):
        return [Verdict(f"{NASTY}", 2, f"G is ill{NASTY}{self.text}")] if history.lines else []
'''


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two small recipes, two seeds each, and the page that compares them.

    Names of recipes, images, figures, losses and options are as hostile as a file system allows.
    """
    import torch
    from click.testing import CliRunner

    from ganlab.cli import main
    from ganlab.images.files import write_png

    folder = tmp_path_factory.mktemp("compared")
    rng = torch.Generator().manual_seed(0)
    for part in ("photos", "held_out"):
        (folder / part).mkdir()
        for name in ("<script>alert(2)<script>", 'it\'s "b" & {{7*7}}'):
            image = torch.rand(3, 14, 16, generator=rng)
            image = torch.nn.functional.interpolate(image[None], scale_factor=5, mode="bicubic")[0]
            write_png((image.clamp(0, 1) * 255).byte(), folder / part / f"{name}.png")
    (folder / "hostile.py").write_text(HOSTILE_PLUGIN)
    game = (
        TINY.replace("iterations = 4", "iterations = 12\nwatch_every = 2\nreport_every = 3")
        .replace("evaluate_every = 100", "evaluate_every = 4")
        .replace(
            "dead_leaves = { crop = 16, num_images = 2, size = 32 }",
            'image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }',
        )
    )
    option = json.dumps(HOSTILE)
    hostile = (
        f"{game}hostile = {{ use = './hostile.py', text = {option} }}\n# </style>{HOSTILE[:40]}\n"
    )
    recipes = [folder / "plain.toml", folder / "<img src=x onerror=alert(1)>.toml"]
    for file, text in zip(recipes, (game, hostile), strict=True):
        file.write_text(text)
    command = ["compare", *map(str, recipes), "--seeds", "0..1", "--runs", str(folder / "runs"),
               "-o", str(folder / "page.html")]  # fmt: skip
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (folder / "output.txt").write_text(result.stdout)
    return folder
