"""Tar shards of photographs as training data, on this machine or elsewhere."""

import weakref
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from ganlab import (
    BatchNumber,
    Cutting,
    GanlabError,
    ImageError,
    MayChange,
    Plugin,
    Ranges,
    RecipePath,
    RecipePlace,
    Rows,
    Run,
    ShardCrops,
    ShardIndex,
    ShardPart,
    hookimpl,
    images_of,
    read_image,
    short_names,
    told_remarks,
)

_NAMES = 8  # of held-out images in a note


class ImageShards(Plugin):
    """Random square crops of images in tar shards: for data that no disk or no cache can hold.

    `ganlab data pack FOLDER OUT` makes the shards; `ganlab data index OUT` makes the index for
    shards of webdataset. Nothing is decoded beforehand, and no list of images is kept in memory.
    The images are taken in a random order, each once before any comes again. D's batches and G's
    batches have orders of their own.

    An image is one range read, checked against its digest. Threads read and decode the images of
    the batches to come. Which image and which crop a sample gets depends on the seed and on the
    number of the sample alone. Reads as `image_folder` does: grey images become RGB, and colours
    with another profile become sRGB. JSON and other members of the shards are left alone.
    """

    path: Annotated[RecipePlace, MayChange(alters=False)] = Field(examples=["shards"])
    """The folder of the shards, or its address: https, s3 (`pip install 'ganlab[s3]'`), or http on
    this machine (`pip install 'ganlab[shards]'` for http and https)."""
    evaluation_path: RecipePath | None = None
    """Folder of held-out images, as files."""
    held_out_share: float = Field(0.1, ge=0, lt=1)
    """Without `evaluation_path`: share of the images that are held out, chosen by a hash of their
    names. They are those that `image_folder` holds out of the folder that was packed. At least one
    is held out where there are two or more; 0 holds out none."""
    evaluation_limit: int = Field(8, ge=1)
    """Largest number of held-out images that are evaluated: spread evenly over the sorted files of
    `evaluation_path`; of a share of the shards, those with the smallest hashes."""
    crop: int = Field(96, ge=8)
    """Side of a training crop in pixels (HR); no image may have a shorter side."""
    crops_per_image: int = Field(1, ge=1, le=1024)
    """Crops that are cut from each decoded image, for as many batches of a network in a row. More
    save decoding, and make neighbouring batches more alike."""
    flips: bool = True
    """Mirror half of the crops."""
    turns: bool = True
    """Turn crops by a random multiple of 90 degrees."""
    alpha: Literal["white", "black", "refuse"] = "white"
    """Background of transparent pixels; "refuse" stops with an error at an image that has any."""
    readers: Annotated[int, MayChange(alters=False)] = Field(8, ge=1, le=256)
    """Threads that read and decode. Slow connections want more of them."""
    batches_ahead: Annotated[int, MayChange(alters=False)] = Field(4, ge=0, le=1024)
    """Batches that are read and decoded ahead of the steps."""
    patience_seconds: Annotated[float, MayChange(alters=False)] = Field(60.0, gt=0)
    """After so long without a whole answer from a server, a read is tried again, 5 times in all."""

    _crops: ShardCrops | None = PrivateAttr(None)
    _steps: dict[str, int] = PrivateAttr(default_factory=lambda: {"D": 1, "G": 1})
    """Batches that an iteration draws for each network, in order."""
    _run: weakref.ref[Run] | None = PrivateAttr(None)
    """The run; a weak reference, so that a finished one gives its memory back at once."""
    _notes: list[str] = PrivateAttr(default_factory=list)
    _remarks: dict[str, str] = PrivateAttr(default_factory=dict)  # on held-out images

    @model_validator(mode="after")
    def _one_rule(self) -> "ImageShards":
        default = type(self).model_fields["held_out_share"].default
        if self.evaluation_path and self.held_out_share != default:
            raise ValueError(
                "held_out_share has no effect beside evaluation_path; drop one of them"
            )
        return self

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        recipe = run.recipe
        self._run = weakref.ref(run)
        steps = {"D": recipe.d_steps, "G": recipe.g_steps}
        # with the generator first, both networks have one batch
        self._steps = {"G": 1} if recipe.first == "generator" else steps

    @hookimpl
    def run_start(self, run: Run) -> None:
        number = len(self._index.names)
        shards = f"{number:,} shard{'' if number == 1 else 's'}"
        told = [f"{len(self._index):,} images in {shards}", *self._notes]
        run.notes += [f"{self.name}: {line}" for line in (*told, *told_remarks(self._remarks))]

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        if self._crops is None:
            self._crops = self._opened()
        batch, coming = self._batches()
        coming = islice(coming, self.batches_ahead)
        return self._crops.crops(batch, coming, self._rows(batch_size), device)

    @hookimpl
    def samples_drawn(self) -> list[str]:
        return self._crops.drawn() if self._crops else []

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return self._index.digests

    @hookimpl
    def evaluation_images(self) -> dict[str, Tensor]:
        return self._from_folder() if self.evaluation_path else self._from_shards()

    @hookimpl
    def run_end(self, run: Run) -> None:
        if self._crops:
            self._crops.close()
            self._crops = None

    def _rows(self, batch_size: int) -> Rows:
        """The samples of the batch that this process reads; of several processes each reads its."""
        run = self._run() if self._run else None
        whole = batch_size * self.world.size
        if run is None or whole != run.recipe.batch_size:  # the whole batch, or a probe
            return Rows((*range(batch_size),), batch_size)
        mine = self.world.rows(torch.arange(whole), run.recipe.accumulate)
        return Rows((*mine.tolist(),), whole)

    def _batches(self) -> tuple[BatchNumber, Iterator[BatchNumber]]:
        """The batch of this moment, and those after it."""
        match self.moment:
            case (int(iteration), str(role), int(step), *rest) if role in self._steps:
                now = BatchNumber((role, *rest), iteration * self._steps[role] + step)
                return now, self._after(iteration, role, step, rest)
            case ():  # outside a run
                number = int(torch.randint(2**32, ()))
                return BatchNumber(("alone",), number), iter(())
            case moment:  # at assembly, for example
                return BatchNumber(moment, 0), iter(())

    def _after(
        self, iteration: int, role: str, step: int, rest: list[object]
    ) -> Iterator[BatchNumber]:
        is_after = False
        while True:
            for each, steps in self._steps.items():
                for number in range(steps):
                    if is_after:
                        yield BatchNumber((each, *rest), iteration * steps + number)
                    is_after = is_after or (each, number) == (role, step)
            is_after = True
            iteration += 1

    @cached_property
    def _index(self) -> ShardIndex:
        try:
            return ShardIndex.open(Ranges(self.path, self.patience_seconds))
        except GanlabError as fault:
            raise self.error(str(fault), "path") from None

    def _opened(self) -> ShardCrops:
        index = self._index
        width, height, name = index.smallest
        if self.crop > min(width, height):
            raise self.error(
                f"crop = {self.crop} is larger than an image, {name} ({width} x {height}); choose "
                "a smaller crop, or leave such images out: `ganlab data pack` and `ganlab data "
                "index` have --min-side",
                "crop",
            )
        part = ShardPart.of(index, self._held_out)
        if not len(part):
            raise self.error("holds out all images; leave some to train on.", "held_out_share")
        cutting = Cutting(self.crop, self.flips, self.turns, self.crops_per_image, self.alpha)
        return ShardCrops(index, part, cutting, self.stream_key, self.readers)

    @cached_property
    def _held_out(self) -> np.ndarray:
        """How many images of each shard are held out: its first ones."""
        index = self._index
        if self.evaluation_path or not self.held_out_share or len(index) == 1:
            return np.zeros_like(index.counts)
        found = index.below(self.held_out_share)
        if not found.any():
            [(shard, _)] = index.smallest_ranks(1)
            found[shard] = 1
        return found

    def _from_shards(self) -> dict[str, Tensor]:
        number = int(self._held_out.sum())
        chosen = self._index.smallest_ranks(min(number, self.evaluation_limit))
        chosen = sorted(chosen, key=lambda item: PurePosixPath(item[1].name))
        names = short_names([PurePosixPath(row.name) for _, row in chosen])
        images = {}
        for name, (shard, row) in zip(names, chosen, strict=True):
            remarks: list[str] = []
            images[name] = self._index.image(shard, row, True, self.alpha, remarks)
            self._remarks |= {name: "; ".join(remarks)} if remarks else {}
        self._notes = [self._divided(number, [PurePosixPath(row.name).name for _, row in chosen])]
        return images

    def _divided(self, held_out: int, chosen: list[str]) -> str:
        """One sentence: how many images are held out, and the names of those that are scored."""
        if not held_out:
            return "no image is held out, so nothing is scored"
        names = ", ".join(chosen[:_NAMES]) + (" ..." if len(chosen) > _NAMES else "")
        which = "" if held_out == len(chosen) else f"{len(chosen):,} of them, "
        told = f"{held_out:,} held out, chosen by a hash of their names; scored, not trained on: "
        return f"{told}{which}{names}".encode(errors="backslashreplace").decode()

    def _from_folder(self) -> dict[str, Tensor]:
        assert self.evaluation_path
        try:
            files = images_of(self.evaluation_path.resolve()).images
            number = min(len(files), self.evaluation_limit)
            chosen = [files[i * len(files) // number] for i in range(number)]
            images = [read_image(file, True, self.alpha) for file in chosen]
            return dict(zip(short_names(chosen), images, strict=True))
        except ImageError as fault:
            raise self.error(str(fault), "evaluation_path") from None
