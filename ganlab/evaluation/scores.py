"""Judging a generator on held-out images: scores beside bicubic, and sample strips."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ganlab.errors import RecipeError
from ganlab.images.files import write_png
from ganlab.images.metrics import WINDOW, high_frequency_ratio, psnr, ssim, stride_power
from ganlab.runs.pictures import keep_pictures
from ganlab.recipe.file import did_you_mean
from ganlab.images.resampling import resize, to_float, to_uint8
from ganlab.steps import merged
from ganlab.images.upscaling import alike, upscale

if TYPE_CHECKING:
    from ganlab.engine import Run

STRIP_SIDE = 128  # HR pixels of the crops shown
STRIP_IMAGES = 6
SCORES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "hf_ratio", "lr_psnr")
COLUMNS = ("LR, nearest", "bicubic", "SR", "HR")
# HR pixels made and judged at once: what the caches of a CPU hold, and what keeps a GPU busy
TOGETHER = {"cpu": 256 * 256, "cuda": 1024 * 1024}

Scores = dict[str, float | Tensor]


@dataclass(frozen=True, slots=True)
class Judged:
    """One held-out image with what was made of it; all uint8 [3, H, W] or [1, H, W]."""

    name: str
    hr: Tensor
    lr: Tensor
    sr: Tensor
    bicubic: Tensor
    scores: dict[str, float]
    bicubic_scores: dict[str, float] = field(default_factory=dict)


def judge_images(
    images: Iterable[tuple[str, Tensor]],
    generator: nn.Module,
    run: "Run",
    score_bicubic: bool = True,
) -> Iterator[Judged]:
    """Degrade each image, enlarge it again by the generator and by bicubic, and score both.

    The protocol of the SR literature: HR cropped to a multiple of the scale at the right and the
    bottom, SR rounded to 8 bits, `scale` pixels shaved. A grey image is its own luma plane.

    Neighbours of one size go together, up to `TOGETHER` pixels, and their scores come from the
    device at once. Each is degraded alone, by random numbers of its name.

    :param images: names and uint8 [3, H, W] or [1, H, W], taken one by one, as they are needed.
    :param run: whose degradation, scale and device to use.
    :param score_bicubic: else `bicubic_scores` is empty; they never change during a run.
    :returns: in the order of the images.
    """
    cropped = ((name, _cropped(image, run.scale)) for name, image in images)
    for group in alike(cropped, lambda item: item[1].shape, TOGETHER[run.device.type]):
        yield from _judge_group(dict(group), generator, run, score_bicubic)


def _judge_group(
    originals: dict[str, Tensor], generator: nn.Module, run: "Run", score_bicubic: bool
) -> Iterator[Judged]:
    """Images of one size, judged together."""
    names = list(originals)
    hr = torch.stack(list(originals.values())).to(run.device)
    with torch.no_grad():
        lr = _degraded(run, names, hr.expand(-1, 3, -1, -1))
        sr = to_uint8(upscale(generator, lr, run.scale))
        bicubic = to_uint8(resize(lr, (hr.shape[-2], hr.shape[-1])))
        lr = to_uint8(lr)
        rows = _scored(run, names, sr, hr, lr)
        rows += _scored(run, names, bicubic, hr, lr) if score_bicubic else []
    scores = _numbers(rows)
    pictures = zip(originals.values(), lr.cpu(), sr.cpu(), bicubic.cpu(), strict=True)
    for index, (name, four) in enumerate(zip(names, pictures, strict=True)):
        yield Judged(name, *four, *scores[index :: len(names)])


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean over images of each score."""
    return {name: fmean(row[name] for row in rows) for name in rows[0]} if rows else {}


@contextmanager
def evaluating(generator: nn.Module) -> Iterator[nn.Module]:
    """A generator in eval mode, each of its parts put back as it was."""
    modes = {module: module.training for module in generator.modules()}
    generator.eval()
    try:
        with torch.no_grad():
            yield generator
    finally:
        for module, training in modes.items():
            module.training = training


def check_held_out(run: "Run") -> None:
    """Refuse at assembly what would stop the run at its first evaluation.

    :raises RecipeError: for an image too small to score, or a best metric that nobody computes.
    """
    smallest = WINDOW + 3 * run.scale
    for name, image in run.held_out.items():
        if min(image.shape[-2:]) < smallest:
            raise RecipeError(
                f"{run.recipe.file}: the held-out image {name} is too small to score at "
                f"x{run.scale}; it must have at least {smallest} pixels a side"
            )
    hooks = (run.hook.evaluate, run.hook.score_images)
    others = [impl for hook in hooks for impl in hook.get_hookimpls()]
    if not others and run.recipe.best_metric not in SCORES:
        near = did_you_mean(run.recipe.best_metric, SCORES)
        raise RecipeError(
            f"{run.recipe.file}: best_metric = '{run.recipe.best_metric}' is not computed"
            f"{near or '; there are ' + ', '.join(SCORES)}"
        )


def judge_run(
    run: "Run", generator: nn.Module
) -> tuple[dict[str, float], dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """All that a run knows of its generator: means over the held-out images, plugins' figures.

    Writes the strip of samples and the crops for reports, and keeps bicubic's means the first time.

    :param generator: in eval mode.
    :returns: the figures; each image's scores: {"images": {name: scores}}, with the same of
        "bicubic" the first time; and `health/checkerboard`, the power of SR at the stride of its
        upsampling as a multiple of that of HR, the mean over images.
    """
    judged = list(judge_images(run.held_out.items(), generator, run, not run.bicubic))
    if judged and run.folder:
        path = run.folder.samples / f"{run.iteration:07d}.png"
        run.writer.later(_write_strip, judged, run.scale, path)
        run.writer.later(keep_pictures, run.folder.pictures, judged, run.scale)
    scores = {"images": {item.name: item.scores for item in judged}}
    if not run.bicubic:
        run.bicubic = means([item.bicubic_scores for item in judged])
        scores["bicubic"] = {item.name: item.bicubic_scores for item in judged}
    run.streams.moment("evaluation")
    others = run.hook.evaluate(run=run, generator=generator, judged=judged)
    figures = merged(run, [means([item.scores for item in judged]), *others])
    return figures, scores, _checkerboard(run, judged)


def _write_strip(judged: list[Judged], scale: int, path: Path) -> None:
    write_png(strip(judged[:STRIP_IMAGES], scale), path)


def _checkerboard(run: "Run", judged: list[Judged]) -> dict[str, float]:
    if not judged or run.scale == 1:
        return {}

    def power(pictures: list[Tensor]) -> Tensor:
        return stride_power(torch.stack(pictures).to(run.device), run.scale)

    # the original in colour as the answer is, so that both have the same luma
    ratios = [
        power([item.sr for item in group]) / power([item.hr.expand(3, -1, -1) for item in group])
        for group in alike(judged, lambda item: item.sr.shape, TOGETHER[run.device.type])
    ]
    return {"health/checkerboard": fmean(torch.cat(ratios).tolist())}


def strip(judged: list[Judged], scale: int) -> Tensor:
    """A picture of fixed crops: a row an image, LR by nearest | bicubic | SR | HR.

    :returns: uint8 [3, H, W].
    """
    from torchvision.utils import make_grid  # a second to import, and not needed to begin

    cells = []
    for item in judged:
        height, width = item.hr.shape[-2:]
        side = min(STRIP_SIDE, height, width) // scale * scale
        top, left = ((s - side) // 2 // scale * scale for s in (height, width))
        nearest = item.lr.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        for picture in (nearest, item.bicubic, item.sr, item.hr.expand(3, -1, -1)):
            cell = torch.full((3, STRIP_SIDE, STRIP_SIDE), 255, dtype=torch.uint8)
            cell[:, :side, :side] = picture[:, top : top + side, left : left + side]
            cells.append(cell)
    grid = make_grid(cells, nrow=len(COLUMNS), padding=4, pad_value=255)
    return torch.cat([_header(grid.shape[-1]), grid], dim=1)


def _header(width: int) -> Tensor:
    """The names of the columns above a strip."""
    image = Image.new("L", (width, 18), 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12)
    for index, name in enumerate(COLUMNS):
        draw.text((4 + index * (STRIP_SIDE + 4), 2), name, fill=0, font=font)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, 18, width).expand(3, -1, -1)


def _cropped(image: Tensor, scale: int) -> Tensor:
    height, width = (side - side % scale for side in image.shape[-2:])
    return image[:, :height, :width]


def _degraded(run: "Run", names: Sequence[str], images: Tensor) -> Tensor:
    """Each alone, with the same blur and noise for HR, SR and bicubic of one name."""
    made = []
    for name, image in zip(names, to_float(images).to(run.dtype).split(1), strict=True):
        run.streams.moment("evaluation", name)
        made.append(run.hook.degrade(images=image))
    return torch.cat(made)


def _scored(
    run: "Run", names: Sequence[str], images: Tensor, hr: Tensor, lr: Tensor
) -> list[Scores]:
    """The scores of each image; those computed on the device are still there.

    :param images: SR or bicubic's, uint8 [N, 3, H, W].
    """
    scale = run.scale
    again = to_uint8(_degraded(run, names, images))
    shown = _grey(images) if hr.shape[1] == 1 else images
    own = {
        "psnr_y": psnr(shown, hr, scale, "y"),
        "ssim_y": ssim(shown, hr, scale, "y"),
        "psnr_rgb": psnr(shown, hr, scale, "rgb"),
        "ssim_rgb": ssim(shown, hr, scale, "rgb"),
        "hf_ratio": high_frequency_ratio(shown, hr, scale),
        "lr_psnr": psnr(again, lr, 0),
    }
    rows = []
    for index, name in enumerate(names):
        one = slice(index, index + 1)
        run.streams.moment("evaluation", name)
        others = run.hook.score_images(run=run, sr=shown[one], hr=hr[one], lr=lr[one])
        rows.append(merged(run, [{key: value[index] for key, value in own.items()}, *others]))
    return rows


def _numbers(rows: list[Scores]) -> list[dict[str, float]]:
    """All that is still on the device, brought to the host in one transfer."""
    waiting = [v for row in rows for v in row.values() if isinstance(v, Tensor)]
    device = waiting[0].device
    found = iter(torch.stack([v.to(device, torch.float64) for v in waiting]).tolist())
    return [
        {name: next(found) if isinstance(v, Tensor) else v for name, v in row.items()}
        for row in rows
    ]


def _grey(picture: Tensor) -> Tensor:
    """The one plane of a grey picture that went through a colour generator."""
    return to_uint8(to_float(picture).mean(dim=1, keepdim=True))
