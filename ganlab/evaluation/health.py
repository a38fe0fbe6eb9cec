"""The health of a game, measured at an evaluation. For a watched step see attribution.py."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ganlab.evaluation.scores import eval_mode
from ganlab.images.resampling import to_float
from ganlab.run import Run, discriminators
from ganlab.speed.device import widest_float
from ganlab.steps import judge

SAMPLES = 64  # images per figure: cheap beside an evaluation, enough to average out the noise
SURE = 3.0  # standard errors; if D separates real from fake by less, its gap means nothing


def game_health(run: Run, generator: nn.Module) -> dict[str, float]:
    """Health figures of G and D on newly drawn samples. Nothing in the run changes.

    `health/spread`: how much G's images vary over a batch, as a multiple of how much real samples
    vary (standard deviation over the batch, mean over elements). 1 is right. Near 0, G makes nearly
    the same image from every input.

    `health/held_out_gap` = 1 - g(held-out) / g(training), g(set) = sum (D(real) - D(fake)) / sum
    mean |real - fake| over crops of the set. 0: D judges images that it never saw like its training
    images. 1: on them it cannot tell real from fake. `health/trained_accuracy` and
    `health/held_out_accuracy`: the share of crops with a larger logit than the fake made from them.
    All three are left out when D hardly tells real from fake on training images. They follow r_v of
    ADA (Karras et al. 2020, arXiv:2006.06676). But r_v compares the logits of real images alone, so
    it would mistake another subject, or smoother pictures, for memorisation.

    :param generator: the one to evaluate, in eval mode.
    """
    if run.D is None:
        return {}
    run.streams.moment("evaluation", "health")
    with torch.no_grad():
        real = run.hook.sample_real(batch_size=SAMPLES, device=run.device).to(run.dtype)
        found, gap, distance = _gaps(run, generator, real)
        spread = found.std(dim=0).mean() / real.std(dim=0).mean()
        figures = {"health/spread": spread.item()}
        unseen = _held_out_crops(run)
        trained, error = gap.mean().item(), (gap.std() / len(gap) ** 0.5).item()
        if unseen is not None and trained > SURE * error:
            _, others, farther = _gaps(run, generator, unseen)
            slopes = others.sum() / farther.sum(), gap.sum() / distance.sum()
            figures |= {
                "health/held_out_gap": 1 - (slopes[0] / slopes[1]).item(),
                "health/trained_accuracy": (gap > 0).to(gap.dtype).mean().item(),
                "health/held_out_accuracy": (others > 0).to(gap.dtype).mean().item(),
            }
    return figures


def _gaps(run: Run, generator: nn.Module, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fakes of degraded samples; for each, D(real) - D(fake) and mean |real - fake|, [N]."""
    exact = widest_float(run.device)
    condition = run.hook.degrade(images=real).to(run.dtype)
    with run.autocast():
        fake = _in_batches(run, generator, condition).to(real.dtype)
    seen = [run.hook.augment(images=images, condition=condition) for images in (real, fake)]
    gaps = []
    for D in discriminators(run):
        with eval_mode(D):
            of_real, of_fake = (
                _in_batches(run, partial(_logit, run, D), images) for images in seen
            )
        gaps.append((of_real - of_fake).to(exact))
    distance = (real - fake).abs().flatten(1).mean(1).to(exact)
    return fake, torch.stack(gaps).mean(0), distance


def _logit(run: Run, D: nn.Module, images: Tensor) -> Tensor:
    """The mean logit of each image, [N]."""
    return judge(run, D, images).flatten(1).mean(1)


def _in_batches(run: Run, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Compute a function of images in parts as large as those that the run trains on.

    So it takes less memory than a step. All parts are of one size, for a D that compares the
    images of a batch: where the last would be smaller, it begins earlier.
    """
    size = min(max(1, run.recipe.batch_size // run.recipe.accumulate), len(images))
    found = []
    for start in range(0, len(images), size):
        first = min(start, len(images) - size)
        found.append(function(images[first : first + size])[start - first :])
    return torch.cat(found)


def _held_out_crops(run: Run) -> Tensor | None:
    """Random crops of held-out images, shaped like training samples; None when no image fits."""
    channels, *size = run.real_shape if len(run.real_shape) == 3 else (0, 0, 0)
    images = [
        image
        for image in run.held_out.values()
        if image.shape[0] in (1, channels)
        and all(a >= b for a, b in zip(image.shape[1:], size, strict=True))
    ]
    if not images or not channels:
        return None
    height, width = size
    rng = run.streams.host_generator("health")
    crops = []
    for number in range(SAMPLES):
        image = images[number % len(images)]
        top, left = (
            int(torch.randint(side - kept + 1, (), generator=rng))
            for side, kept in zip(image.shape[1:], size, strict=True)
        )
        crops.append(image[:, top : top + height, left : left + width].expand(channels, -1, -1))
    return to_float(torch.stack(crops)).to(run.device, run.dtype)
