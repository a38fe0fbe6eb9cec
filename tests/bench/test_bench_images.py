"""What images cost on their way into a step, and their scores at an evaluation."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ganlab import ImageStore, resize
from ganlab.evaluation.scores import eval_mode, evaluate_generator

CPU = torch.device("cpu")
BATCH = 16


def noise(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=rng)


def note_per_sample(benchmark) -> None:
    if benchmark.stats:  # there are none where benchmarks are disabled
        benchmark.extra_info["ms_per_sample"] = 1000 * benchmark.stats.stats.median / BATCH


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], ImageStore]:
    """Image caches on the disk, mapped as in training: so many images of such a side."""
    folder = tmp_path_factory.mktemp("stores")

    def images(count: int, side: int, first: int) -> Iterator[tuple[str, Tensor]]:
        image = noise(3, side, side)
        return ((f"noise {number}", image) for number in range(first, count))

    def store(count: int, side: int) -> ImageStore:
        return ImageStore.cached(folder / f"{count}-{side}", partial(images, count, side))

    return store


@pytest.mark.benchmark(group="a batch of crops, flipped, turned, to float")
@pytest.mark.parametrize(
    ("count", "side", "crop"), [(100, 160, 128), (100, 56, 48), (10_000, 56, 48)]
)
def test_sampling_a_batch(benchmark, stores, count: int, side: int, crop: int) -> None:
    store, rng = stores(count, side), torch.Generator().manual_seed(0)
    for _ in range(2 * count // BATCH if benchmark.enabled else 0):  # until the file is in memory
        store.crops(BATCH, crop, rng, CPU)
    batch = benchmark(store.crops, BATCH, crop, rng, CPU)
    assert batch.shape == (BATCH, 3, crop, crop) and 0.4 < batch.mean() < 0.6
    note_per_sample(benchmark)


def as_product(images: Tensor) -> Tensor:
    return resize(images, (32, 32))


def as_interpolation(images: Tensor) -> Tensor:
    return F.interpolate(images, (32, 32), mode="bicubic", antialias=True)


@pytest.mark.benchmark(group="bicubic shrinking of a batch, 128 to 32")
@pytest.mark.parametrize("shrink", [as_product, as_interpolation])
def test_shrinking_a_batch(benchmark, shrink: Callable[[Tensor], Tensor]) -> None:
    images = noise(BATCH, 3, 128, 128) / 255
    inner = benchmark(shrink, images)[..., 2:-2, 2:-2]  # they differ in what lies beyond an edge
    assert (inner - as_interpolation(images)[..., 2:-2, 2:-2]).abs().max() < 1e-5
    note_per_sample(benchmark)


@pytest.mark.benchmark(group="scores of four images of 96 x 96, but for bicubic's")
def test_an_evaluation(benchmark, build) -> None:
    run = build()
    run.held_out = {str(number): noise(3, 96, 96) for number in range(4)}
    with eval_mode(run.G):
        evaluate_generator(run, run.G)  # the first one scores bicubic's answers too
        found = benchmark(evaluate_generator, run, run.G)
    assert found.figures["psnr_y"] > 0
