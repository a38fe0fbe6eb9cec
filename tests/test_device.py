"""How numbers are computed on CUDA is what the recipe says; switches are there without a GPU."""

from collections.abc import Iterator

import pytest
import torch

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
