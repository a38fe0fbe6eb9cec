"""Time and memory of a batch from shards: a thousand images against a hundred million.

    python tests/bench/virtual_shards.py

The images of both are a thousand real files, which stand for as many as are asked for: a hundred
million in 40,000 shards. CPU time is measured in one process, a batch of the one and a batch of the
other in turn; memory in processes of their own, with images read ahead.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

COUNTS = {"1,000": (1000, 1), "100,000,000": (100_000_000, 40_000)}
ROUNDS, BATCHES, BATCH_SIZE, SIDE, CROP = 3, 120, 16, 160, 96


def make(folder: Path) -> Path:
    """A thousand smooth images with noise, as shards."""
    from ganlab.commands.pack_shards import pack_folder
    from ganlab.commands.shard_images import Packing

    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(1000):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).resize((SIDE, SIDE))
        noisy = np.asarray(coarse) // 2 + rng.integers(0, 32, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(noisy).save(folder / "photos" / f"{number:04}.png")
    print(*pack_folder(folder / "photos", folder / "shards", Packing()))
    return folder / "shards"


def opened(folder: Path, count: int, shards: int, **options: int) -> Any:
    from ganlab_plugins.image_shards import ImageShards
    from virtual import VirtualIndex

    plugin = ImageShards(path=folder, crop=CROP, **options)
    vars(plugin)["_index"] = VirtualIndex(folder, count, shards)
    return plugin


def batch(plugin: Any, step: int) -> float:
    """CPU time of one batch, of all threads, in ms."""
    from ganlab.testing import seeded

    seeded(plugin, 0, step, "D", 0)
    began = process_time()
    plugin.sample_real(BATCH_SIZE, torch.device("cpu"))
    return 1000 * (process_time() - began)


def memory(folder: Path, count: int, shards: int) -> float:
    """MiB of a process that has drawn some batches."""
    plugin = opened(folder, count, shards)
    for step in range(BATCHES):
        batch(plugin, step)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    plugin._crops.close()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def told(what: str, few: list[float], many: list[float]) -> None:
    middle = [statistics.median(values) for values in (few, many)]
    print(f"{what}: {middle[0]:.2f} and {middle[1]:.2f}, ratio {middle[1] / middle[0]:.3f}")


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:]:
        folder, count, shards = sys.argv[1:]
        print(json.dumps(memory(Path(folder), int(count), int(shards))))
        return
    with TemporaryDirectory() as parent:
        folder = make(Path(parent))
        plugins = [opened(folder, *n, readers=1, batches_ahead=0) for n in COUNTS.values()]
        times = [[batch(plugin, step) for plugin in plugins] for step in range(3 * BATCHES)]
        for begin in range(0, len(times), BATCHES):  # three parts, to show how much it varies
            few, many = zip(*times[begin : begin + BATCHES], strict=True)
            told("CPU time of a batch of 16, ms", [*few], [*many])
        found: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for values, numbers in zip(found, COUNTS.values(), strict=True):
                command = [sys.executable, __file__, folder, *map(str, numbers)]
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(json.loads(answer.stdout))
        told("memory, MiB", *found)


if __name__ == "__main__":
    main()
