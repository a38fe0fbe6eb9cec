"""Judging a generator on held-out images: scores beside bicubic, and sample strips."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ganlab.errors import RecipeError
from ganlab.images import write_png
from ganlab.metrics import WINDOW, high_frequency_ratio, psnr, ssim, stride_power
from ganlab.pictures import keep_pictures
from ganlab.recipe_file import did_you_mean
from ganlab.resampling import resize, to_float, to_uint8
from ganlab.steps import merged
from ganlab.upscale import upscale

if TYPE_CHECKING:
    from ganlab.engine import Run

STRIP_SIDE = 128  # HR pixels of the crops shown
STRIP_IMAGES = 6
SCORES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "hf_ratio", "lr_psnr")
COLUMNS = ("LR, nearest", "bicubic", "SR", "HR")


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
    images: dict[str, Tensor],
    generator: nn.Module,
    run: "Run",
    score_bicubic: bool = True,
) -> Iterator[Judged]:
    """Degrade each image, enlarge it again by the generator and by bicubic, and score both.

    The protocol of the SR literature: HR cropped to a multiple of the scale at the right and the
    bottom, SR rounded to 8 bits, `scale` pixels shaved. A grey image is its own luma plane.

    :param images: name -> uint8 [3, H, W] or [1, H, W].
    :param run: whose degradation, scale and device to use.
    :param score_bicubic: else `bicubic_scores` is empty; they never change during a run.
    """
    scale = run.scale
    for name, image in images.items():
        height, width = (side - side % scale for side in image.shape[-2:])
        hr = image[None, :, :height, :width].to(run.device)
        grey = hr.shape[1] == 1
        with torch.no_grad():
            lr = _degraded(run, name, hr.expand(-1, 3, -1, -1))
            sr = upscale(generator, lr, scale)
            enlarged = resize(lr, (height, width))
        made = [to_uint8(picture) for picture in (sr, enlarged, lr)]
        scores: list[dict[str, float]] = []
        for picture in made[: 1 + score_bicubic]:
            again = to_uint8(_degraded(run, name, picture))
            shown = _grey(picture) if grey else picture
            own = _scores(shown, hr, scale) | {"lr_psnr": _mean(psnr(again, made[2], 0))}
            with torch.no_grad():
                others = run.hook.score_images(run=run, sr=shown, hr=hr, lr=made[2])
            scores.append(merged(run, [own, *others]))
        sr8, enlarged8, lr8 = (m[0].cpu() for m in made)
        yield Judged(name, image[:, :height, :width], lr8, sr8, enlarged8, *scores)


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
    judged = list(judge_images(run.held_out, generator, run, not run.bicubic))
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
    return figures, scores, _checkerboard(judged, run.scale)


def _write_strip(judged: list[Judged], scale: int, path: Path) -> None:
    write_png(strip(judged[:STRIP_IMAGES], scale), path)


def _checkerboard(judged: list[Judged], scale: int) -> dict[str, float]:
    if not judged or scale == 1:
        return {}
    ratios = [
        (stride_power(item.sr[None], scale) / stride_power(_in_colour(item), scale)).item()
        for item in judged
    ]
    return {"health/checkerboard": fmean(ratios)}


def _in_colour(item: Judged) -> Tensor:
    """The original, of as many channels as the answer, so that both have the same luma."""
    return item.hr.expand(3, -1, -1)[None]


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


def _degraded(run: "Run", name: str, images: Tensor) -> Tensor:
    run.streams.moment("evaluation", name)  # the same blur and noise for HR, SR and bicubic
    return run.hook.degrade(images=to_float(images).to(run.dtype))


def _scores(image: Tensor, reference: Tensor, scale: int) -> dict[str, float]:
    return {
        "psnr_y": _mean(psnr(image, reference, scale, "y")),
        "ssim_y": _mean(ssim(image, reference, scale, "y")),
        "psnr_rgb": _mean(psnr(image, reference, scale, "rgb")),
        "ssim_rgb": _mean(ssim(image, reference, scale, "rgb")),
        "hf_ratio": _mean(high_frequency_ratio(image, reference, scale)),
    }


def _mean(values: Tensor) -> float:
    return values.mean().item()


def _grey(picture: Tensor) -> Tensor:
    """The one plane of a grey picture that went through a colour generator."""
    return to_uint8(to_float(picture).mean(dim=1, keepdim=True))
