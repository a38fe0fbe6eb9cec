"""What a batch of crops from shards costs, of few images and of a hundred million virtual ones."""

from pathlib import Path

import pytest
import torch
from ganlab_plugins.image_shards import ImageShards
from virtual import VirtualIndex

from ganlab.commands.pack_shards import pack_folder
from ganlab.commands.shard_images import Packing
from ganlab.images.files import write_png
from ganlab.testing import seeded

BATCH = 16


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = torch.Generator().manual_seed(0)
    (folder / "photos").mkdir()
    for number in range(100):
        image = torch.randint(256, (3, 56, 56), dtype=torch.uint8, generator=rng)
        write_png(image, folder / "photos" / f"{number}.png")
    [*pack_folder(folder / "photos", folder / "out", Packing())]
    return folder / "out"


@pytest.mark.benchmark(group="a batch of crops from shards, read and decoded in one thread")
@pytest.mark.parametrize(("count", "shard_count"), [(100, 1), (100_000_000, 40_000)])
def test_sampling_a_batch_of_shards(benchmark, shards, count: int, shard_count: int) -> None:
    plugin = ImageShards(path=shards, crop=48, readers=1, batches_ahead=0)
    vars(plugin)["_index"] = VirtualIndex(shards, count, shard_count)
    steps = iter(range(10**9))

    def sample() -> torch.Tensor:
        return seeded(plugin, 0, next(steps), "D", 0).sample_real(BATCH, torch.device("cpu"))

    batch = benchmark(sample)
    assert batch.shape == (BATCH, 3, 48, 48)
    assert 0.4 < batch.mean() < 0.6
