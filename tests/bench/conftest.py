"""What the timings have in common."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ganlab.assembly import assemble
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.system import keep_freed_memory

GAME = """\
iterations = 1_000_000
batch_size = 4
watch_every = 0

[plugins]
dead_leaves = { crop = 32, num_images = 2, size = 48 }
bicubic = { scale = 4 }
srresnet = { norm = "none", width = 16, num_blocks = 2 }
vgg_discriminator = { width = 8, norm = "none" }
bce = { weight = 0.005 }
pixel_loss = { weight = 1.0 }
# steps that move nothing, so that the thousandth costs what the first did
adam = { learning_rate = 1e-9 }
"""


@pytest.fixture(autouse=True)
def _one_thread_and_memory_as_in_training() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Run]:
    """Assembles a small game, with changes as of `--set`."""

    def build(*changes: str) -> Run:
        file = tmp_path / "game.toml"
        file.write_text(GAME)
        return assemble(load_recipe(file, changes), torch.device("cpu"))

    return build
