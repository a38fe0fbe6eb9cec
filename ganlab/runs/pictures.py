"""Crops of held-out images that a run keeps for reports: LR, bicubic, SR and HR as files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ganlab.files import write_text
from ganlab.images.files import write_png
from ganlab.plugin import EvaluatedImage

SIDE = 192  # of a crop, in HR pixels
KEPT = 24  # images; if there are more, those with the lowest bicubic scores
KINDS = ("lr", "bicubic", "sr", "hr")


@dataclass(frozen=True, slots=True)
class Crop:
    """The place of a kept crop in its image, in HR pixels; each number a multiple of the scale."""

    name: str
    top: int
    left: int
    height: int
    width: int
    scale: int


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
    """The crops that a run has kept; an empty list before its first evaluation."""
    try:
        return [Crop(**entry) for entry in json.loads((folder / "index.json").read_text())]
    except (OSError, ValueError, TypeError):
        return []


def picture(folder: Path, number: int, kind: str) -> Path:
    """The file of a crop; `kind` is one of `KINDS`."""
    return folder / f"{number:02d}-{kind}.png"


def _hardest(images: Sequence[EvaluatedImage]) -> list[EvaluatedImage]:
    if len(images) <= KEPT:
        return list(images)
    # a run resumed without its pictures has no bicubic scores: it keeps the first images
    ranked = sorted(images, key=lambda item: item.bicubic_scores.get("psnr_y", 0.0))
    return ranked[:KEPT]


def _crop(item: EvaluatedImage, scale: int) -> Crop:
    """The square with the most contrast between neighbouring pixels: where methods differ."""
    height, width = (min(SIDE, side) // scale * scale for side in item.hr.shape[-2:])
    luma = item.hr.double().mean(0)
    contrast = torch.zeros_like(luma)
    contrast[:, 1:] += luma.diff(dim=1).abs()
    contrast[1:] += luma.diff(dim=0).abs()
    sums = torch.nn.functional.avg_pool2d(contrast[None, None], (height, width), stride=scale)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return Crop(item.name, row * scale, column * scale, height, width, scale)


def _cut(image: Tensor, crop: Crop, divisor: int) -> Tensor:
    top, left, height, width = (
        side // divisor for side in (crop.top, crop.left, crop.height, crop.width)
    )
    return image[:, top : top + height, left : left + width]
