"""A folder of photographs as training data."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ganlab import (
    Entry,
    ImageError,
    ImageStore,
    Listing,
    NoRoom,
    Plugin,
    RecipePath,
    Run,
    cache_folder,
    decoded_size,
    hookimpl,
    images_of,
    name_rank,
    read_image,
    short_names,
    told_remarks,
)

_NAMES = 8  # of held-out images in a note


class ImageFolder(Plugin):
    """Random square crops of the images in a folder, nested folders included.

    Every image is equally likely, whatever its size. The images are decoded once, into one file
    in ganlab's cache folder ($GANLAB_CACHE). It takes 3 bytes a pixel: 7 GB for DIV2K. It is mapped
    into memory, not loaded, and used again while the folder's files keep their sizes and times.
    A digest of each image's pixels is kept with it.

    Reads PNG, JPEG, WebP, BMP and TIFF; grey images become RGB, and colours with another profile
    become sRGB. Nothing is read before the first
    crop, so that a finished run can be used without its data.
    """

    reads_folder = "path"

    path: RecipePath = Field(examples=["photographs"])
    """Folder of training images (HR)."""
    evaluation_path: RecipePath | None = None
    """Folder of held-out images. It may lie inside `path`: its images are not trained on."""
    held_out_share: float = Field(0.1, ge=0, lt=1)
    """Without `evaluation_path`: share of the images in `path` that are held out, chosen by a hash
    of their names. At least one is held out where there are two or more; 0 holds out none."""
    evaluation_limit: int = Field(8, ge=1)
    """Largest number of held-out images that are evaluated: spread evenly over the sorted files of
    `evaluation_path`; of a share of `path`, those with the smallest hashes."""
    crop: int = Field(96, ge=8)
    """Side of a training crop in pixels (HR); no image may have a shorter side."""
    flips: bool = True
    """Mirror half of the crops."""
    turns: bool = True
    """Turn crops by a random multiple of 90 degrees."""
    keep_on_device: Literal["auto", "yes", "no"] = "auto"
    """Keep all pixels in GPU memory; "auto": if they take at most a quarter of the free memory."""
    alpha: Literal["white", "black", "refuse"] = "white"
    """Background of transparent pixels; "refuse" stops with an error at an image that has any."""
    on_broken: Literal["stop", "skip"] = "stop"
    """What to do at an image that cannot be read, or that `alpha` refuses. "skip" leaves it out and
    names it at the start and in the report. No image changes sides between training and held-out
    images when another one is left out. `ganlab data verify` finds all such images beforehand."""

    _store: ImageStore | None = PrivateAttr(None)
    _remarks: dict[str, str] = PrivateAttr(default_factory=dict)  # on held-out images
    _listings: dict[Path, Listing] = PrivateAttr(default_factory=dict)
    _division: str = PrivateAttr("")  # which images are held out, in words

    @model_validator(mode="after")
    def _one_rule(self) -> "ImageFolder":
        default = type(self).model_fields["held_out_share"].default
        if self.evaluation_path and self.held_out_share != default:
            raise ValueError(
                "held_out_share has no effect beside evaluation_path; drop one of them"
            )
        return self

    @hookimpl
    def run_start(self, run: Run) -> None:
        told = [listing.told() for listing in self._listings.values()]
        told += [self._division] if self._division else []
        told += told_remarks((self._store.remarks if self._store else {}) | self._remarks)
        run.notes += [f"{self.name}: {sentence}" for sentence in told]

    @hookimpl
    def sample_real(self, batch_size: int, device: torch.device) -> Tensor:
        if self._store is None:
            self._store = self._settled(self._open(), device)
        return self._store.crops(
            batch_size, self.crop, self.host_rng, device, self.flips, self.turns
        )

    @hookimpl
    def samples_drawn(self) -> list[str]:
        return self._store.drawn() if self._store else []

    @hookimpl
    def data_digest(self) -> dict[str, str]:
        return (self._store or self._open()).digests

    @hookimpl
    def evaluation_images(self) -> dict[str, Tensor]:
        files = self._held_out()
        number = min(len(files), self.evaluation_limit)
        if self.evaluation_path:
            chosen = [files[i * len(files) // number] for i in range(number)]
        else:  # the first by hash, so that an image that is added moves at most one
            chosen = sorted(files[:number])
            self._division = self._divided(len(files), [file.name for file in chosen])
        names = short_names(chosen)
        images = {}
        for name, file in zip(names, chosen, strict=True):
            entry = self._entry(name, file, keep_grey=True)
            if entry.image is None:
                self.left_out[name] = entry.remark
            else:
                images[name] = entry.image
                self._remarks |= {name: entry.remark} if entry.remark else {}
        if chosen and not images:
            raise self.error(f"no held-out image can be read: {', '.join(names[:4])}", "on_broken")
        return images

    def _divided(self, held_out: int, chosen: list[str]) -> str:
        """One sentence: how many images are held out, and the names of those that are scored."""
        if not held_out:
            return "no image is held out, so nothing is scored"
        names = ", ".join(chosen[:_NAMES]) + (" ..." if len(chosen) > _NAMES else "")
        which = "" if held_out == len(chosen) else f"{len(chosen):,} of them, "
        return (
            (
                f"{held_out:,} held out, chosen by a hash of their names; scored, not trained on: "
                f"{which}{names}"
            )
            .encode(errors="backslashreplace")
            .decode()
        )  # a name need not be text

    def _open(self) -> ImageStore:
        # listed now, so that a wrong path is reported before training, not at an evaluation
        held_out = set(self._held_out())
        files = [file for file in self._list("path") if file not in held_out]
        if not files:
            option = "evaluation_path" if self.evaluation_path else "held_out_share"
            raise self.error("holds out all images of path; leave some to train on.", option)
        store = self._cached(files)
        if store.left_out and self.on_broken == "stop":
            raise self.error(next(iter(store.left_out.values())))
        if not store.names:
            raise self.error(f"none of the {len(files)} images can be read.", "on_broken")
        self.left_out.update(store.left_out)
        name, height, width = store.smallest()
        if self.crop > min(height, width):
            small = int((store.sizes.amin(1) < self.crop).sum())
            raise self.error(
                f"crop = {self.crop} is larger than {small} of the images, such as "
                f"{self.path / name} ({width} x {height}); choose a smaller crop or remove them.",
                "crop",
            )
        return store

    def _held_out(self) -> list[Path]:
        """The held-out files: those of `evaluation_path`, or else by hash, the smallest hash first.

        A file is held out if a hash of its path below `path` falls into the share.
        """
        if self.evaluation_path:
            return self._list("evaluation_path")
        root, files = self.path.resolve(), self._list("path")
        if not self.held_out_share or len(files) == 1:
            return []
        ranked = sorted((name_rank(file.relative_to(root).as_posix()), file) for file in files)
        below = sum(rank < self.held_out_share for rank, _ in ranked)
        return [file for _, file in ranked[: max(1, below)]]

    def _cached(self, files: list[Path]) -> ImageStore:
        stats = [(file, file.stat()) for file in files]
        what = [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        place, left_out = self.path.resolve(), str(self.held_out_share)
        if self.evaluation_path:  # held-out images elsewhere leave the store as it is
            held_out = self.evaluation_path.resolve()
            left_out = str(held_out) if held_out.is_relative_to(place) else ""
        folder = f"folder-{_digest(place, self.alpha, left_out)}"
        path = cache_folder() / f"{folder}-{_digest(what)}.store"
        new = not path.exists()
        try:
            store = ImageStore.cached(
                path, lambda first: self._decoded(files, first), lambda: _decoded_sizes(files)
            )
        except NoRoom as fault:
            raise self.error(
                f"{fault}, or pack the folder with `ganlab data pack {self.path} OUT` and read OUT "
                "with image_shards, which decodes nothing beforehand",
                "path",
            ) from None
        # delete stores of earlier contents of the folder; a run that has one mapped can still read
        kept = {path, path.with_name(path.name + ".lock")}
        for old in set(path.parent.glob(f"{folder}-*.store*")) - kept if new else ():
            with suppress(OSError):
                old.unlink()
        return store

    def _decoded(self, files: list[Path], first: int) -> Iterator[Entry]:
        """Decode the images from image number `first` on; a killed process decoded those before."""
        console = Console(stderr=True)
        quiet = not console.is_terminal
        total, files = len(files), files[first:]
        ahead, root = iter(files), self.path.resolve()

        def read(file: Path) -> Entry:
            return self._entry(str(file.relative_to(root)), file)

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            # a few images ahead of the writer, never all of them in RAM
            waiting = deque(pool.submit(read, file) for file in islice(ahead, 32))
            left = track(
                files,
                "decoding images",
                total=total,
                completed=first,
                console=console,
                disable=quiet,
            )
            for _ in left:
                entry = waiting.popleft().result()
                waiting.extend(pool.submit(read, later) for later in islice(ahead, 1))
                yield entry

    def _settled(self, store: ImageStore, device: torch.device) -> ImageStore:
        room = store.num_bytes
        if self.keep_on_device == "auto":
            room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0
        if self.keep_on_device == "no" or store.num_bytes > room:
            return store
        try:
            return store.to(device)
        except torch.OutOfMemoryError:
            fault = f'{store.num_bytes} bytes do not fit on {device}; choose "auto" or "no".'
            raise self.error(fault, "keep_on_device") from None

    def _list(self, option: Literal["path", "evaluation_path"]) -> list[Path]:
        folder: Path | None = getattr(self, option)
        try:
            if folder is None:
                return []
            # resolve the folder, not each file: for 100,000 files that would take a second
            found = self._listings[folder] = images_of(folder.resolve())
            return found.images
        except ImageError as fault:
            raise self.error(str(fault), option) from None

    def _entry(self, name: str, file: Path, keep_grey: bool = False) -> Entry:
        remarks: list[str] = []
        try:
            image = read_image(file, keep_grey, self.alpha, remarks)
            return Entry(name, image, "; ".join(remarks))
        except ImageError as fault:
            if self.on_broken == "stop":
                raise self.error(str(fault)) from None
            return Entry(name, None, str(fault))


def _decoded_sizes(files: list[Path]) -> int:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return sum(pool.map(decoded_size, files, chunksize=64))


def _digest(*key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]
