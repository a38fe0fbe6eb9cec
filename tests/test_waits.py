"""In an iteration the host neither waits for the GPU nor sends to it, so the GPU is never idle.

A pretended CUDA device notes every copy and every number that is read. A copy from pinned memory
waits for nothing, so it does not count.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from pretended import PRETENDED, pretended_cuda
from test_plugin_contract import (  # noqa: F401
    NAMES,
    files,
    skipped_without_its_package,
    subject,
)
from test_shipped_recipes import RECIPES, ROOT, photographs, small  # noqa: F401

from ganlab.assembly import assemble
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.speed.device import sent

pytestmark = [
    pytest.mark.usefixtures("seeded_weights", "small_photographs"),
    pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning"),
]

NAMED = [
    pytest.param(
        file,
        id=str(file.relative_to(ROOT / "recipes")),
        # theirs are the plugins of real_esrgan and esrgan, but for one loss; 3 s each
        marks=[pytest.mark.long] if file.stem in ("bsrgan", "ldl") else [],
    )
    for file in RECIPES
]
WAITS = ["adaptive_discriminator"]  # its comparison decides whether D's step is taken at all


def waits_of(run: Run, waits: list[str], iterations: int = 2) -> list[str]:
    """What waits in some iterations after the first, in which constants are made."""
    for run.iteration in range(1 + iterations):
        if run.iteration == 1:
            waits.clear()
        iterate(run)
    return list(waits)


@pytest.mark.parametrize("recipe", NAMED)
def test_an_iteration_of_a_shipped_recipe_never_waits(
    recipe: Path,
    photographs: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [*small(recipe, photographs)[1::2], "compile=off"]
    if "pretraining" in load_recipe(recipe, overrides).plugins:
        overrides.append("pretraining.iterations=1")
    with pretended_cuda(monkeypatch) as waits:
        run = assemble(load_recipe(recipe, overrides), PRETENDED)
        assert waits_of(run, waits) == []


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_an_iteration_with_a_plugin_never_waits(
    name: str,
    files: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    under_test = subject(name, files)
    with under_test.in_a_folder() as folder, pretended_cuda(monkeypatch) as waits:
        with skipped_without_its_package(name):
            run = under_test.run(folder, PRETENDED, compile="off")
        found = waits_of(run, waits)
    assert bool(found) == (name in WAITS), found


def test_the_pretended_device_notes_each_kind_of_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(4.0)
    with pretended_cuda(monkeypatch) as waits:
        y = x.to(PRETENDED)
        for wait in (
            lambda: x.to(PRETENDED, non_blocking=True),  # not pinned
            lambda: torch.tensor([1.0], device=PRETENDED),
            lambda: y.copy_(x),
            lambda: y[torch.tensor([0, 1])],
            lambda: y[[0, 1]],
            lambda: y.cpu(),
            lambda: y.tolist(),
            lambda: np.asarray(y),
            lambda: x.clone().copy_(y),
            lambda: y.sum().item(),
            lambda: bool(y[0] > 0),
            lambda: y[y > 1],
            lambda: y.nonzero(),
        ):
            waits.clear()
            wait()
            assert len(waits) == 1, waits
        waits.clear()
        z = sent(x, PRETENDED) * 2 + torch.ones(4, device=PRETENDED) * y[1]
        z[0], z[1] = 3.0, z[2]
        z.add_(torch.tensor(1.0)).requires_grad_().square().sum().backward()
        assert waits == []
        assert z.device == z.grad.device == z.to(torch.float64).device == PRETENDED
        assert z.detach().tolist() == [4.0, 6.0, 6.0, 8.0]
