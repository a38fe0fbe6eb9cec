"""Fixtures shared by all tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Two threads of a tiny net on a shared machine mostly wait for each other; processes that tests
# start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = """\
iterations = 4
batch_size = 2
evaluate_every = 100
checkpoint_every = 2

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1 }
wasserstein = {}
gradient_penalty = { weight = 10.0 }
pixel_loss = { weight = 1.0 }
"""


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
    """A cache folder of the tests' own, also for the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["GANLAB_CACHE"] = str(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe file that trains a very small WGAN-GP in a blink."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def ganlab() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `ganlab ...` in a process of its own."""

    def run(*arguments: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ganlab", *map(str, arguments)],
            cwd=cwd,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def seeded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that wants a file of published weights keeps the random ones it was built with."""
    from ganlab.discover import find_plugin, installed  # imports torch, so after the line above
    from ganlab.recipe_file import Origin

    for name in installed():
        find_plugin(name, Origin(None, text=name), Path())
    for module in [m for n, m in sys.modules.items() if n.startswith("ganlab_plugins.")]:
        if hasattr(module, "load_weights"):
            monkeypatch.setattr(module, "load_weights", lambda *arguments, **options: None)
