"""A network that no machine could hold is refused while it is built, by plugin and option."""

from pathlib import Path

import pytest
import torch
from tiny import TINY
from torch import nn

from ganlab import network_bounds
from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.network_bounds import bounded
from ganlab.recipe.model import load_recipe
from ganlab.runs.reading import is_count


def assembled(folder: Path, text: str) -> None:
    file = folder / "r.toml"
    file.write_text(text)
    assemble(load_recipe(file), torch.device("cpu"))


def test_a_network_of_too_many_tensors_is_refused_by_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_bounds, "MOST_TENSORS", 100)
    with pytest.raises(RecipeError, match=r"r\.toml:\d+: .*encoder_decoder: .* more than 100 tens"):
        assembled(tmp_path, TINY.replace("{ width = 4 }", "{ width = 4, num_blocks = 1000 }"))


def test_a_network_larger_than_the_free_memory_is_refused_before_it_is_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_bounds, "free_memory", lambda device: 4 * 1000)
    filled: list[nn.Module] = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: filled.append(layer))
    with pytest.raises(RecipeError, match="G: its network's parameters take"), bounded(_error):
        nn.Linear(20, 20)  # 420 values
        nn.Linear(30, 30)  # 900 values
    assert len(filled) == 1


def test_bounds_end_with_their_context_and_know_layers_without_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_bounds, "free_memory", lambda device: 8)
    with bounded(_error):
        nn.LazyLinear(3)
        nn.Linear(30, 30, device="meta")
    nn.Linear(30, 30)


def test_the_largest_seed_is_a_count_that_records_may_hold() -> None:
    assert is_count(2**63 - 1) and not is_count(2**63)


def _error(fault: str) -> RecipeError:
    return RecipeError(f"G: {fault}")
