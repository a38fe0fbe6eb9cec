"""What it costs to call a hook, with nobody on it and with ten plugins that do nothing."""

import shutil
from pathlib import Path

import pytest
import torch

BYSTANDER = Path(__file__).with_name("bystander.py")


@pytest.mark.benchmark(group="a chained hook, beside so many plugins")
@pytest.mark.parametrize("count", [0, 10])
def test_dispatch_of_a_chained_hook(benchmark, build, tmp_path: Path, count: int) -> None:
    shutil.copy(BYSTANDER, tmp_path)
    run = build(*(f'bystander_{i}={{ use = "./bystander.py" }}' for i in range(count)))
    images = torch.zeros(1, 3, 4, 4)
    assert len(run.hook.augment.get_hookimpls()) == count + 1  # the engine's own is the last
    assert benchmark(run.hook.augment, images=images, condition=images) is images
