"""Crops of held-out images that a run keeps for reports: LR, bicubic, SR and HR as files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ganlab.errors import printable
from ganlab.files import write_text
from ganlab.images.contrast import busiest
from ganlab.images.files import ImageError, write_png
from ganlab.images.png_bytes import png_again, png_within
from ganlab.plugin import EvaluatedImage
from ganlab.runs.reading import entry, is_count, is_text, listed, parsed, tell_once

SIDE = 192  # of a crop, in HR pixels
KEPT = 24  # images; if there are more, those with the lowest bicubic scores
KINDS = ("lr", "bicubic", "sr", "hr")
_MOST_PIXELS = 4 * 2**20  # of a sample: a strip of six images has a tenth of it
_LARGEST = 2**20  # bytes of the file of a crop: noise of SIDE x SIDE pixels has a tenth of it


@dataclass(frozen=True, slots=True)
class Crop:
    """The place of a kept crop in its image, in HR pixels; each number a multiple of the scale."""

    name: str
    top: int
    left: int
    height: int
    width: int
    scale: int


def _is_crop(value: Any) -> bool:
    if not _CROP(value) or len(value) != 6:
        return False
    scale, sides = value["scale"], (value["height"], value["width"])
    return scale > 0 and all(scale <= side <= SIDE and side % scale == 0 for side in sides)


_CROP = entry(
    name=is_text, top=is_count, left=is_count, height=is_count, width=is_count, scale=is_count
)
_CROPS = listed(_is_crop, KEPT)


def keep_pictures(folder: Path, images: Sequence[EvaluatedImage], scale: int) -> None:
    """Write the crops of the last evaluation; they replace those of the evaluation before.

    Images and places are chosen once, from the images alone, so two runs on the same images keep
    the same crops. `index.json` lists the crops; `<number>-<kind>.png` are their files.
    """
    folder.mkdir(exist_ok=True)
    crops = read_crops(folder)
    if not crops:
        crops = [_crop(item, scale) for item in _hardest(images)]
        write_text(folder / "index.json", json.dumps([asdict(c) for c in crops], indent=2) + "\n")
    known = {item.name: item for item in images}
    for number, crop in enumerate(crops):
        item = known.get(crop.name)
        for kind in KINDS:
            path = picture(folder, number, kind)
            if item and (kind == "sr" or not path.is_file()):
                write_png(_cut(getattr(item, kind), crop, crop.scale if kind == "lr" else 1), path)


def read_crops(folder: Path) -> list[Crop]:
    """The crops that a run has kept; an empty list before its first evaluation.

    A list that is damaged is told on stderr, and taken as absent.
    """
    path = folder / "index.json"
    found, fault = parsed(path)
    if not fault and (found is not None and not _CROPS(found)):
        fault = "not a list of crops"
    if fault:
        tell_once(f"{printable(str(path))}: damaged: {fault}; the pictures are left out")
    return [] if fault or found is None else [Crop(**each) for each in found]


def read_picture(run: Path, crop: Crop, number: int, kind: str) -> bytes | None:
    """A kept crop as the bytes of a PNG file that are written here; None when there is none.

    A file that is anything else than this picture is told on stderr, and left out: nothing of it
    reaches a page but its pixels.
    """
    path = picture(run, number, kind)
    divisor = crop.scale if kind == "lr" else 1
    try:
        if path.stat().st_size > _LARGEST:
            raise ImageError(f"{path}: more than {_LARGEST // 2**20} MiB.")
        return _again(path.read_bytes(), crop.width // divisor, crop.height // divisor)
    except FileNotFoundError:
        return None
    except (OSError, ImageError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        tell_once(f"{printable(str(path))}: left out of the page: {reason}")
        return None


@lru_cache(maxsize=256)  # a page is rewritten during training, and three of four stay the same
def _again(content: bytes, width: int, height: int) -> bytes:
    return png_again(content, width, height)


def picture(folder: Path, number: int, kind: str) -> Path:
    """The file of a crop; `kind` is one of `KINDS`."""
    return folder / f"{number:02d}-{kind}.png"


def newest_sample(samples: Path) -> Path | None:
    """The picture of the last evaluation in a run's folder of samples; None before the first."""
    numbered = [file for file in samples.glob("*.png") if file.stem.isdecimal()]
    return max(numbered, key=lambda file: int(file.stem), default=None)


def read_sample(samples: Path, room: tuple[int, int]) -> bytes | None:
    """The picture of the last evaluation as a PNG file that is written here; None without one.

    :param room: width and height into which it is made smaller to fit.
    """
    path = newest_sample(samples)
    try:
        return png_within(path.read_bytes(), room, _MOST_PIXELS) if path else None
    except (OSError, ImageError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        tell_once(f"{printable(str(path))}: left out of the page: {reason}")
        return None


def _hardest(images: Sequence[EvaluatedImage]) -> list[EvaluatedImage]:
    if len(images) <= KEPT:
        return list(images)
    # a run resumed without its pictures has no bicubic scores: it keeps the first images
    ranked = sorted(images, key=lambda item: item.bicubic_scores.get("psnr_y", 0.0))
    return ranked[:KEPT]


def _crop(item: EvaluatedImage, scale: int) -> Crop:
    """The square with the most contrast between neighbouring pixels: where methods differ."""
    height, width = (min(SIDE, side) // scale * scale for side in item.hr.shape[-2:])
    top, left = busiest(item.hr, height, width, scale)
    return Crop(item.name, top, left, height, width, scale)


def _cut(image: Tensor, crop: Crop, divisor: int) -> Tensor:
    top, left, height, width = (
        side // divisor for side in (crop.top, crop.left, crop.height, crop.width)
    )
    return image[:, top : top + height, left : left + width]
