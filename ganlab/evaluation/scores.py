"""Scores of a generator on held-out images, beside those of bicubic enlargement."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from ganlab.errors import RecipeError
from ganlab.images.metrics import WINDOW, high_frequency_ratio, psnr, ssim, stride_power
from ganlab.images.resampling import passing_matrices, to_float, to_uint8
from ganlab.images.upscaling import bicubic, of_one_size, upscale
from ganlab.plugin import EvaluatedImage
from ganlab.recipe.file import did_you_mean
from ganlab.run import Run, merged
from ganlab.runs.means import Rows, left_out, means, unscored
from ganlab.speed.device import no_kernel_search, widest_float
from ganlab.stopping import held

SCORES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "hf_ratio", "lr_psnr")
# HR pixels enlarged and scored at once: few enough for a CPU's caches, enough to keep a GPU busy
TOGETHER = {"cpu": 256 * 256, "cuda": 1024 * 1024, "mps": 512 * 512}
MATRICES = 2**26  # bytes of the matrices of bicubic that an evaluation keeps for its next images

Scores = dict[str, float | Tensor]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation."""

    images: list[EvaluatedImage]
    figures: dict[str, float]
    """Mean scores over the held-out images, and the plugins' figures of the whole set."""
    scores: dict[str, dict[str, dict[str, float]]]
    """The scores of each image: {"images": {name: scores}}; the first time also "bicubic"."""
    left_out: dict[str, list[str]]
    """Figures that are means over fewer images: the images on which the score is not finite. A
    figure of the whole set that is not finite is here too, without images."""
    health: dict[str, float]
    """`health/checkerboard`: the power of SR at the stride of its upsampling, divided by that of
    HR; the mean over the images for which it is finite."""

    def behind(self, figure: str) -> dict[str, float]:
        """The finite scores of the images over which a figure is the mean; empty for others."""
        without = self.left_out.get(figure, ())
        return {
            image: scores[figure]
            for image, scores in self.scores["images"].items()
            if image not in without and math.isfinite(scores.get(figure, math.nan))
        }


def evaluate_generator(run: Run, generator: nn.Module) -> Evaluation:
    """Evaluate a generator on the held-out images of a run, and ask the plugins for figures.

    The first time, it also keeps the scores of bicubic enlargement in the run's progress.

    :param generator: in eval mode.
    """
    progress = run.progress
    images = evaluate_share(run, generator, not progress.bicubic)
    scores = {"images": {item.name: item.scores for item in images}}
    if not progress.bicubic:
        scores["bicubic"] = {item.name: item.bicubic_scores for item in images}
        progress.bicubic = means(scores["bicubic"])
        progress.unscored = left_out(scores["bicubic"])
    without = left_out(scores["images"], *_marked(progress.unscored, scores["images"]))
    run.streams.moment("evaluation")
    others = run.hook.evaluate(run=run, generator=generator, images=images)
    others = [{name: _number(name, v) for name, v in figures.items()} for figures in others]
    figures = merged(run, [means(scores["images"], without), *others])
    without |= {name: [] for name, value in figures.items() if not math.isfinite(value)}
    without |= {n: list(i) for n, i in unscored(scores["images"]).items() if n not in figures}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    return Evaluation(images, figures, scores, without, _checkerboard(run, images))


def evaluate_share(run: Run, generator: nn.Module, score_bicubic: bool) -> list[EvaluatedImage]:
    """Evaluate the held-out images, shared out among the processes of the run.

    :returns: of all images, in their order; on other processes than the first it is empty.
    """
    mine: list[EvaluatedImage] = []
    try:
        share = run.world.scattered(list(run.held_out.items()))
        mine = list(evaluate_images(share, generator, run, score_bicubic))
    finally:  # when a signal ends it too: the others wait for this one
        with held():
            every = run.world.gathered(mine)
    return every


def _marked(unscored: dict[str, list[str]], rows: Rows) -> Iterator[Rows]:
    """Rows in which the scores are not finite where they were not for bicubic."""
    if unscored:
        yield {
            image: {name: math.nan if image in unscored.get(name, ()) else 0.0 for name in scores}
            for image, scores in rows.items()
        }


def evaluate_images(
    images: Iterable[tuple[str, Tensor]],
    generator: nn.Module,
    run: Run,
    score_bicubic: bool = True,
) -> Iterator[EvaluatedImage]:
    """Degrade each image, enlarge it again by the generator and by bicubic, and score both.

    The protocol is that of the SR literature: HR is cropped at the right and the bottom to a
    multiple of the scale, SR is rounded to 8 bits, `scale` pixels are shaved. A grey image is its
    own luma plane.

    Neighbouring images of one size are computed together, up to `TOGETHER` pixels. Their scores
    come from the device in one transfer. Each image is degraded alone, with random numbers that
    depend on its name.

    :param images: names and uint8 [3, H, W] or [1, H, W]; taken one by one, when needed.
    :param run: whose degradation, scale and device to use.
    :param score_bicubic: False leaves `bicubic_scores` empty; they never change during a run.
    :returns: in the order of the images.
    """
    cropped = ((name, _cropped(image, run.scale)) for name, image in images)
    with passing_matrices() as drop:
        for group in of_one_size(cropped, lambda item: item[1].shape, TOGETHER[run.device.type]):
            yield from _evaluate_group(dict(group), generator, run, score_bicubic)
            drop(MATRICES)


def _evaluate_group(
    originals: dict[str, Tensor], generator: nn.Module, run: Run, score_bicubic: bool
) -> Iterator[EvaluatedImage]:
    """Evaluate images of one size together."""
    names = list(originals)
    hr = torch.stack(list(originals.values())).to(run.device)
    with torch.no_grad():
        lr = _degraded(run, names, hr.expand(-1, 3, -1, -1))
        sr = upscale(lambda tiles: to_uint8(generator(tiles)), lr, run.scale)
        smooth = bicubic(lr, run.scale)
        lr = to_uint8(lr)
        if widest_float(run.device) is not torch.float64:  # which scores need
            hr, lr, sr, smooth = (images.cpu() for images in (hr, lr, sr, smooth))
        rows = _scored(run, names, sr, hr, lr)
        rows += _scored(run, names, smooth, hr, lr) if score_bicubic else []
    scores = numbers(rows)
    pictures = zip(originals.values(), lr.cpu(), sr.cpu(), smooth.cpu(), strict=True)
    for index, (name, four) in enumerate(zip(names, pictures, strict=True)):
        yield EvaluatedImage(name, *four, *scores[index :: len(names)])


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Context in which a network is in eval mode, and computes no gradient.

    cuDNN does not search for the quickest kernels in it.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), no_kernel_search():
            yield network
    finally:
        for module, training in modes.items():
            module.training = training


def check_held_out(run: Run) -> None:
    """Refuse at assembly what would stop the run at its first evaluation.

    :raises RecipeError: for an image too small to score, or a setting of evaluations
        where nothing is evaluated.
    """
    smallest = WINDOW + 3 * run.scale
    for name, image in run.held_out.items():
        if min(image.shape[-2:]) < smallest:
            owners = " and ".join(plugin.name for plugin in run.plugins_with("evaluation_images"))
            raise RecipeError(
                f"{run.recipe.file}: {owners}: the image {name} is held out, and too small to "
                f"score at x{run.scale}; it must have at least {smallest} pixels a side. Remove "
                "it, or name other held-out images"
            )
    evaluated = run.held_out or run.plugins_with("evaluate")
    for setting in () if evaluated else ("best_metric", "patience"):
        value = getattr(run.recipe, setting)
        if value != type(run.recipe).model_fields[setting].default:
            raise RecipeError(
                f"{run.recipe.origin(setting)}: {setting} = {value!r} has no effect: there are no "
                "held-out images, and no plugin evaluates anything else; leave it out, or add "
                "held-out images"
            )


def check_best_metric(run: Run) -> None:
    """Refuse a best metric that no evaluation computes; needs no data.

    :raises RecipeError: when no plugin has figures of its own, and the engine has none of the name.
    """
    others = run.plugins_with("evaluate") or run.plugins_with("score_images")
    if not others and run.recipe.best_metric not in SCORES:
        near = did_you_mean(run.recipe.best_metric, SCORES)
        raise RecipeError(
            f"{run.recipe.file}: best_metric = '{run.recipe.best_metric}' is not computed"
            f"{near or '; choose one of ' + ', '.join(SCORES)}"
        )


def _checkerboard(run: Run, images: list[EvaluatedImage]) -> dict[str, float]:
    if not images or run.scale == 1:
        return {}

    device = run.device if widest_float(run.device) is torch.float64 else torch.device("cpu")

    def power(pictures: list[Tensor]) -> Tensor:
        return stride_power(torch.stack(pictures).to(device), run.scale)

    # HR gets three channels as SR has, so that the luma of both is computed in the same way
    ratios = [
        power([item.sr for item in group]) / power([item.hr.expand(3, -1, -1) for item in group])
        for group in of_one_size(images, lambda item: item.sr.shape, TOGETHER[run.device.type])
    ]
    finite = [ratio for ratio in torch.cat(ratios).tolist() if math.isfinite(ratio)]
    return {"health/checkerboard": fmean(finite)} if finite else {}


def _cropped(image: Tensor, scale: int) -> Tensor:
    height, width = (side - side % scale for side in image.shape[-2:])
    return image[:, :height, :width]


def _degraded(run: Run, names: Sequence[str], images: Tensor) -> Tensor:
    """Degrade each image alone, with the same blur and noise for HR, SR and bicubic of a name."""
    made = []
    images = to_float(images).to(run.device, run.dtype)
    for name, image in zip(names, images.split(1), strict=True):
        run.streams.moment("evaluation", name)
        made.append(run.hook.degrade(images=image))
    return torch.cat(made)


def _scored(run: Run, names: Sequence[str], images: Tensor, hr: Tensor, lr: Tensor) -> list[Scores]:
    """The scores of each image. Scores that are tensors stay on the device.

    :param images: SR or the bicubic images, uint8 [N, 3, H, W].
    """
    scale = run.scale
    again = to_uint8(_degraded(run, names, images)).to(lr.device)
    own = reference_scores(images, hr, scale, scale) | {"lr_psnr": psnr(again, lr, 0)}
    sr = grey_plane(images) if hr.shape[1] == 1 else images
    rows = []
    for index, name in enumerate(names):
        one = slice(index, index + 1)
        run.streams.moment("evaluation", name)
        others = run.hook.score_images(run=run, sr=sr[one], hr=hr[one], lr=lr[one])
        rows.append(merged(run, [{key: value[index] for key, value in own.items()}, *others]))
    return rows


def reference_scores(
    images: Tensor, hr: Tensor, shave: int, scale: int | None
) -> dict[str, Tensor]:
    """The scores of images against their originals: `SCORES` without `lr_psnr`.

    :param images: uint8 [N, 3 or 1, H, W]; of a grey original, their grey planes are scored.
    :param hr: uint8 [N, 3 or 1, H, W].
    :param scale: of `hf_ratio`, which is left out without it.
    :returns: float64 [N] each.
    """
    sr = grey_plane(images) if hr.shape[1] == 1 else images
    found = {
        "psnr_y": psnr(sr, hr, shave, "y"),
        "ssim_y": ssim(sr, hr, shave, "y"),
        "psnr_rgb": psnr(sr, hr, shave, "rgb"),
        "ssim_rgb": ssim(sr, hr, shave, "rgb"),
    }
    return found | ({"hf_ratio": high_frequency_ratio(sr, hr, scale)} if scale else {})


def numbers(rows: list[Scores]) -> list[dict[str, float]]:
    """The scores as numbers. Those on the device are brought to the host in one transfer."""
    for name, value in (pair for row in rows for pair in row.items()):
        if isinstance(value, Tensor) and value.numel() != 1:
            _number(name, value)
    waiting = [v.reshape(()) for row in rows for v in row.values() if isinstance(v, Tensor)]
    device = waiting[0].device
    found = iter(torch.stack([v.to(device, torch.float64) for v in waiting]).tolist())
    return [
        {n: next(found) if isinstance(v, Tensor) else _number(n, v) for n, v in row.items()}
        for row in rows
    ]


def _number(name: str, value: float | Tensor) -> float:
    """A figure as Python's own number, which a checkpoint can hold; numpy's are not.

    :raises RecipeError: when it is not one number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        kind = f"tensor {[*value.shape]}" if isinstance(value, Tensor) else repr(value)
        raise RecipeError(f"the figure {name!r} is {kind}, not one number") from None


def grey_plane(picture: Tensor) -> Tensor:
    """The grey plane of a picture that a colour generator made from a grey one, uint8."""
    return to_uint8(to_float(picture).mean(dim=1, keepdim=True))
