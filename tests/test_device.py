"""How numbers are computed on CUDA is what the recipe says; switches are there without a GPU."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.speed.device import choose_numerics, full_float32

CUDA = torch.device("cuda", 0)


def numerics() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize(
    ("tf32", "deterministic", "wanted"),
    [
        (True, False, (False, True, False)),
        (False, False, (False, False, False)),
        (True, True, (True, False, False)),
        (False, True, (True, False, False)),
    ],
)
def test_the_recipe_says_how_cuda_computes(
    tf32: bool, deterministic: bool, wanted: tuple[bool, bool, bool]
) -> None:
    choose_numerics(CUDA, tf32, deterministic)
    assert numerics() == wanted
    choose_numerics(CUDA, True, False)  # of the next run in this process
    assert numerics() == (False, True, False)


def test_on_a_cpu_nothing_is_switched() -> None:
    choose_numerics(torch.device("cpu"), False, True)
    assert numerics() == (False, True, False)


def test_full_float32_is_for_its_block_alone() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with pytest.raises(KeyError), full_float32():
            assert numerics() == (False, False, False)
            raise KeyError
        assert numerics() == (False, True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


class WithoutFloat64(TorchDispatchMode):
    """A device that cannot compute in float64, as MPS."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        wide = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        assert all(t.dtype != torch.float64 for t in wide), func
        return made


def test_an_iteration_needs_no_float64_where_there_is_none(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_text(
        tiny.read_text() + "instance_noise = { sigma = { from = 0.1, to = 0.0, over = 3 } }\n"
        "diff_augment = {}\nema = {}\nlearning_rate_schedule = { kind = 'cosine', over = 4 }\n"
    )
    for module in [m for n, m in sys.modules.items() if n.startswith("ganlab.")]:
        if hasattr(module, "widest_float"):
            monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    run = assemble(load_recipe(tiny, ["d_steps=2"]), torch.device("cpu"))
    batch = run.hook.sample_batch(batch_size=2, device=run.device)  # drawn on the host
    with monkeypatch.context() as patch, WithoutFloat64():
        patch.setattr(run.manager.hook, "sample_batch", lambda **_: batch)
        for run.iteration in range(3):
            iterate(run)


def test_a_precision_that_a_device_lacks_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganlab.assembly.widest_float", lambda device: torch.float32)
    with pytest.raises(RecipeError, match='precision = "float64" is not possible on cpu'):
        assemble(load_recipe(tiny, ["precision=float64"]), torch.device("cpu"))
