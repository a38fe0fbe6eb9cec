"""Dead leaves: synthetic images of disks that hide one another; no data files are needed."""

import math
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from ganlab import ImageStore, Plugin, cache_folder, hookimpl, write_png

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Radii = tuple[float, float, float]

_RADII = (3.0, 100.0, 3.0)
_COVERAGE = 5.0


class DeadLeaves(Plugin):
    """Crops of dead leaves images, a data source that needs no photographs.

    Opaque disks fall until they cover the plane. The view from above has the occlusions and edges
    of natural images, and also their scale invariance if the radii have the density `r^-exponent`
    with exponent 3 (Lee, Mumford and Huang 2001, Occlusion models for natural images, IJCV 41).
    Networks trained only on such images restore photographs nearly as well as those trained on
    photographs (Achddou, Gousseau and Ladjal, openreview vKT8fZFGcG; with textures:
    arXiv:2504.10201).

    Deviations: colours are random with natural spread, not from a photograph's histogram; edges
    are anti-aliased by painting at twice the size; on average 5 leaves lie over a pixel, and the
    pixels without any (0.7 %) show one bottom leaf.
    """

    num_images: int = Field(48, ge=1, le=10_000)
    """Images to cut crops from; painted once, about 50 ms each, then kept in the cache folder."""
    size: int = Field(320, ge=16)
    """Side of these images in pixels."""
    seed: int = Field(0, ge=0)
    """Seed of the images; unlike the run's seed, it changes the data set itself."""
    min_radius: float = Field(_RADII[0], ge=0.5)
    """Radius of the smallest leaves, in pixels; small leaves dominate, so it sets the fineness."""
    max_radius: float = Field(_RADII[1], gt=0)
    """Radius of the largest leaves, in pixels."""
    exponent: float = Field(_RADII[2], gt=1)
    """Exponent of the density of radii, r^-exponent; 3 is scale invariant, more: smaller leaves."""
    texture: float = Field(0.5, ge=0, le=1)
    """Share of leaves with stripes or shading; 0 paints flat colours."""
    crop: int = Field(64, ge=8)
    """Side of a training crop in pixels (HR)."""
    flips: bool = True
    """Mirror half of the crops."""
    turns: bool = True
    """Turn crops by a random multiple of 90 degrees."""

    _store: ImageStore | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _consistent(self) -> "DeadLeaves":
        if self.min_radius >= self.max_radius:
            raise ValueError("min_radius must be below max_radius")
        if self.crop > self.size:
            raise ValueError("crop must be at most size, the side of the painted images")
        return self

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        crops, rng = self._leaves().crops, self.host_rng
        return crops(batch_size, self.crop, rng, device, self.flips, self.turns)

    @hookimpl
    def samples_drawn(self) -> list[str]:
        return self._leaves().drawn()

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return self._leaves().digests

    def _leaves(self) -> ImageStore:
        if self._store is None:
            radii = (self.min_radius, self.max_radius, self.exponent)
            made_of = (self.size, radii, self.texture)
            self._store = gallery(
                self.seed,
                self.num_images,
                lambda rng: paint(self.size, natural_colours(rng), rng, radii, self.texture),
                made_of,
            )
        return self._store


@click.command("dead-leaves")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--count", default=48, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--size", default=320, show_default=True, type=click.IntRange(16, 4096))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def paint_folder(folder: Path, count: int, size: int, seed: int) -> None:
    """Paint dead leaves images into a folder, to try out what reads a folder of images.

    They are those of the data source dead_leaves with the same size and seed. Files that are there
    are kept.

    Example: ganlab dead-leaves leaves --count 8
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = paint(size, natural_colours(rng), rng)
        file = folder / f"leaves-{number:04d}.png"
        if not file.exists():
            write_png(image, file)
    click.echo(f"{count} images of {size} x {size} pixels in {folder}")


def gallery(
    seed: int, number: int, painter: Callable[[Generator], Tensor], *made_of: object
) -> ImageStore:
    """Painted images, read from ganlab's cache folder if they were painted before.

    :param painter: makes one image, uint8 [3, H, W].
    :param made_of: everything that the images depend on, except seed, number and this file.
    """
    # this file is part of the key, because a change of the code can change the images
    key = sha256(Path(__file__).read_bytes() + repr((seed, number, made_of)).encode())
    path = cache_folder() / f"leaves-{key.hexdigest()[:16]}.store"

    def painted(first: int) -> Iterator[tuple[str, Tensor]]:
        rng = np.random.default_rng(seed)
        # the images before `first` are painted again: all take numbers from one random stream
        return islice(((f"leaves {i}", painter(rng)) for i in range(number)), first, None)

    return ImageStore.cached(path, painted)


def natural_colours(rng: Generator, count: int = 1024) -> Floats:
    """Random colours [count, 3] in 0..1 around a few hues, muted like those of a landscape.

    Luminance varies most, blue-yellow less, red-green least: the order of the principal
    components of natural images (Ruderman, Cronin and Chiao 1998, JOSA A 15).
    """
    hues = rng.normal(0, (0.05, 0.025), (4, 2))[rng.integers(4, size=count)]
    luma = rng.beta(1.8, 2.2, count)
    # shadows and highlights have less chroma than medium brightness
    yellow, red = ((hues + rng.normal(0, (0.02, 0.012), (count, 2))) * 4).T * luma * (1 - luma)
    colours = luma[:, None] + np.stack([yellow + red, yellow * 0.6 - red * 0.5, -yellow * 1.8], 1)
    return colours.clip(0, 1).astype(np.float32)


def paint(
    size: int, colours: Floats, rng: Generator, radii: Radii = _RADII, texture: float = 0.5
) -> Tensor:
    """Paint one dead leaves image.

    :param colours: [K, 3] in 0..1; each leaf gets one of them.
    :param radii: smallest and largest radius in pixels, and the exponent of the density.
    :param texture: share of leaves with a brightness wave: stripes if short, shading if long.
    :returns: uint8 [3, size, size].
    """
    leaf = _topmost(2 * size, *_fall(2 * size, rng, radii, _COVERAGE))
    image = colours[rng.integers(len(colours), size=leaf.max() + 1)][leaf]
    if texture:
        image += _waves(leaf, rng, texture)[:, :, None]
    image.clip(0, 1, out=image)
    # the mean over 2 x 2 of the double size gives soft edges, like those of a lens
    rows = image[::2] + image[1::2]
    image = ((rows[:, ::2] + rows[:, 1::2]) * (255 / 4) + 0.5).clip(0, 255)
    return torch.from_numpy(image.astype(np.uint8)).permute(2, 0, 1)


def _fall(
    side: int, rng: Generator, radii: Radii, coverage: float
) -> tuple[Floats, Integers, Integers]:
    """A table of 64 radii, and each falling leaf's index in it, [n], and centre, [n, 2].

    Centres are uniform on the plane; only leaves that can reach the image are drawn.

    :param coverage: mean number of leaves over a pixel; a share exp(-coverage) of pixels has none.
    """
    smallest, largest, exponent = radii
    # the image is painted at twice its size
    table = np.geomspace(2 * smallest, 2 * largest, 64)
    reach = side + 2 * np.ceil(table) + 1
    # equal steps in log r: density r^-exponent becomes r^(1 - exponent)
    weights = table ** (1 - exponent) * reach**2
    weights /= weights.sum()
    number = math.ceil(coverage / float((weights * math.pi * table**2 / reach**2).sum()))
    which = rng.choice(len(table), size=number, p=weights)
    half = np.ceil(table[which])[:, None]
    centres = np.floor(rng.random((number, 2)) * (side + 2 * half + 1) - half).astype(np.int64)
    return table.astype(np.float32), which, centres


def _topmost(side: int, table: Floats, which: Integers, centres: Integers) -> NDArray[np.int32]:
    """Number of the top leaf at each pixel, [side, side]: the last that fell; 0 without a leaf."""
    halves = np.ceil(table).astype(int).tolist()
    squares = [np.arange(-half, half + 1) ** 2 for half in halves]
    disks = [x[:, None] + x <= radius**2 for x, radius in zip(squares, table, strict=True)]
    seen = np.zeros((side, side), np.int32)
    for leaf, (kind, (y, x)) in enumerate(zip(which.tolist(), centres.tolist(), strict=True), 1):
        half, disk = halves[kind], disks[kind]
        up, left = y - half, x - half
        rows = slice(max(-up, 0), side - up)
        columns = slice(max(-left, 0), side - left)
        target = seen[max(up, 0) : y + half + 1, max(left, 0) : x + half + 1]
        # only the bounding box is written: 3 us per leaf, for any size of the image
        np.copyto(target, leaf, where=disk[rows, columns])
    return seen


def _waves(leaf: NDArray[np.int32], rng: Generator, share: float) -> Floats:
    """Brightness waves on some leaves, [side, side]: 3 to 200 pixels long, in any direction."""
    number = int(leaf.max()) + 1
    length = 2 * np.geomspace(3, 200, 64)[rng.integers(64, size=number)]
    angle, phase = rng.uniform(0, 2 * math.pi, (2, number))
    wave = np.stack([np.cos(angle), np.sin(angle)]) * 2 * math.pi / length
    height = rng.exponential(0.06, number) * (rng.random(number) < share)
    y, x = wave.astype(np.float32)[:, leaf] * np.indices(leaf.shape, np.float32)
    return height.astype(np.float32)[leaf] * np.sin(y + x + phase.astype(np.float32)[leaf])
