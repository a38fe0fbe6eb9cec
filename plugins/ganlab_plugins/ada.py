"""Adaptive discriminator augmentation: more of it while D overfits, less while it does not."""

import math
from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import AdaptiveProbability, Batch, hookimpl

# Values of the paper's code. BRIGHTNESS_STD is for images in -1..1, SHIFT_STD a share of a side;
# the deviations of scale, contrast and saturation are exponents of two.
SHIFT_MAX = 0.125
SCALE_STD = 0.2
TURN_MAX = math.pi
STRETCH_STD = 0.2
SHIFT_STD = 0.125
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
HUE_MAX = math.pi
SATURATION_STD = 1.0


class ADA(AdaptiveProbability):
    """Adaptive discriminator augmentation (StyleGAN2-ADA; Karras et al. 2020, arXiv:2006.06676).

    Each image that D sees, real or fake, in the D step and in the G step, gets each transformation
    with probability p. p begins at 0 and is updated after every `every` D steps:

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    r is the mean over all logits since the last update: 1 when D knows the training images by
    heart, 0 when it guesses. It is meaningful only where the sign of a logit is D's decision, as
    with bce and hinge; with wasserstein set `fixed_p`. p is logged as `D/<name>_p`. It does not
    change while D does not train.

    The transformations, in this order: `blit` is mirroring, quarter turns and shifts by whole
    pixels; `geom` is scaling, turning, stretching, turning and shifting; `color` is brightness,
    contrast, luma flip, hue and saturation. `bg` is the first two together; `bgc`, the paper's
    best, is all three. Colours are changed in the paper's range -1..1; the result is mapped back
    to 0..1 and not clamped.

    Deviations: the paper samples bilinearly between wavelet filters that double the resolution;
    here the image is sampled once, bicubically and without a filter. It is mirrored at its edges
    as far as needed; the paper's image becomes black beyond one image's width. An image that
    draws no transformation keeps every bit. Channels form groups of three (or one grey channel),
    and all groups get the same transformation: a condition appended by conditional_discriminator,
    listed before, stays aligned with its image. Penalties see the augmented images, so no second
    derivative of the sampling is needed.
    """

    pipeline: Literal["blit", "geom", "color", "bg", "bgc"] = "bgc"
    """Which transformations; all but `blit` and `color` blur a little, both real and fake."""

    @hookimpl(wrapper=True)
    def augment(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        self._check(images)
        draws = Draws(len(images), self.p.to(images.device), self.rng)
        if self.pipeline != "color":
            height, width = images.shape[2:]
            inverse = draws.nothing(3)
            if self.pipeline != "geom":
                inverse = inverse @ blit(draws, height, width)
            if self.pipeline != "blit":
                inverse = inverse @ geometry(draws, height, width)
            images = warp(images, inverse)
        if self.pipeline in ("color", "bgc"):
            images = recolor(images, colors(draws))
        return images

    @hookimpl(wrapper=True)
    def discriminator_step(
        self, batch: Batch
    ) -> Generator[None, dict[str, Tensor], dict[str, Tensor]]:
        return self.steered((yield), len(batch.real))

    def _check(self, images: Tensor) -> None:
        if (
            images.is_cuda
            and self.pipeline != "color"
            and torch.are_deterministic_algorithms_enabled()
        ):
            raise self.error(
                "torch's image sampling is not deterministic on CUDA; set deterministic = "
                'false, or pipeline = "color"'
            )
        if images.dim() != 4:
            raise self.error(
                f"it augments images, but the samples have shape {list(images.shape[1:])}; "
                f"drop {self.name} from this recipe"
            )
        num_channels = images.shape[1]
        if self.pipeline in ("color", "bgc") and num_channels != 1 and num_channels % 3:
            raise self.error(
                f"it changes the colours of RGB images, but these have {num_channels} channels; "
                'set pipeline = "bg"',
                "pipeline",
            )


class Draws:
    """Random numbers for n images, and matrices made of them; float64, on the device of p."""

    def __init__(self, n: int, p: Tensor, rng: torch.Generator | None) -> None:
        self.n, self.p, self.rng = n, p, rng

    def uniform(self, low: float, high: float) -> Tensor:
        """[n] numbers, uniform in low..high."""
        return low + (high - low) * self._rand()

    def integers(self, num: int) -> Tensor:
        """[n] integers, uniform in 0..num - 1."""
        return (self._rand() * num).floor()

    def normal(self, deviation: float) -> Tensor:
        """[n] numbers, normal with mean 0."""
        p = self.p
        return deviation * torch.randn(self.n, generator=self.rng, dtype=p.dtype, device=p.device)

    def sometimes(self, transformation: Tensor, p: Tensor | None = None) -> Tensor:
        """Each image's own matrix with probability p, otherwise the identity."""
        chosen = self._rand() < (self.p if p is None else p)
        return torch.where(
            chosen[:, None, None], transformation, self.nothing(transformation.shape[-1])
        )

    def nothing(self, size: int) -> Tensor:
        """Identity matrices [n, size, size]."""
        return torch.eye(size, dtype=self.p.dtype, device=self.p.device).repeat(self.n, 1, 1)

    def _rand(self) -> Tensor:
        p = self.p
        return torch.rand(self.n, generator=self.rng, dtype=p.dtype, device=p.device)


def blit(draws: Draws, height: int, width: int) -> Tensor:
    """Mirror, turn by 90 degrees and shift by whole pixels: [N, 3, 3], see `warp`."""
    mirror = draws.sometimes(stretch(1 - 2 * draws.integers(2), 1 + draws.integers(1)))
    quarters = draws.sometimes(turn(draws.integers(4) * (math.pi / 2)).round())
    right, down = (draws.uniform(-SHIFT_MAX, SHIFT_MAX) * side for side in (width, height))
    return mirror @ quarters @ draws.sometimes(shift(right.round(), down.round()))


def geometry(draws: Draws, height: int, width: int) -> Tensor:
    """Scale, turn, stretch, turn and shift: [N, 3, 3], see `warp`."""
    scale = draws.normal(SCALE_STD).exp2()
    scaled = draws.sometimes(stretch(1 / scale, 1 / scale))
    # so that at least one of the two turns happens with probability p
    p = 1 - (1 - draws.p).clamp(0, 1).sqrt()
    first, last = (draws.sometimes(turn(draws.uniform(-TURN_MAX, TURN_MAX)), p) for _ in range(2))
    longer = draws.normal(STRETCH_STD).exp2()
    stretched = draws.sometimes(stretch(1 / longer, longer))
    right, down = (draws.normal(SHIFT_STD) * side for side in (width, height))
    return scaled @ first @ stretched @ last @ draws.sometimes(shift(right, down))


def colors(draws: Draws) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation of colours in -1..1: [N, 4, 4]."""
    luma = torch.full((3, 3), 1 / 3, dtype=draws.p.dtype, device=draws.p.device)  # v v^T
    nothing = draws.nothing(3)

    def of(linear: Tensor, offset: Tensor | None = None) -> Tensor:
        matrix = draws.nothing(4)
        matrix[:, :3, :3] = linear
        if offset is not None:
            matrix[:, :3, 3] = offset[:, None]
        return draws.sometimes(matrix)

    brightness = of(nothing, draws.normal(BRIGHTNESS_STD))
    contrast = of(nothing * draws.normal(CONTRAST_STD).exp2()[:, None, None])
    flip = of(nothing - 2 * luma * draws.integers(2)[:, None, None])
    hue = of(about_grey(draws.uniform(-HUE_MAX, HUE_MAX)))
    more = draws.normal(SATURATION_STD).exp2()[:, None, None]
    return of(luma + (nothing - luma) * more) @ hue @ flip @ contrast @ brightness


def stretch(x: Tensor, y: Tensor) -> Tensor:
    """Matrices [N, 3, 3] that scale the two axes by the factors x and y, [N]."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], -1))


def shift(x: Tensor, y: Tensor) -> Tensor:
    """Matrices [N, 3, 3] that sample x to the left and y above: the image moves right and down."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], -1).unflatten(-1, (3, 3))


def turn(angle: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of angles [N] in radians."""
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def about_grey(angle: Tensor) -> Tensor:
    """Matrices [N, 3, 3] that rotate colours about the grey axis; 1/3 of a turn: red to green."""
    third = 2 * math.pi / 3
    red, green, blue = ((1 + 2 * (angle - i * third).cos()) / 3 for i in range(3))
    rows = [red, blue, green, green, red, blue, blue, green, red]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Transform every image by its own matrix: sampled bicubically, mirrored beyond the edges.

    :param images: [N, C, H, W].
    :param inverse: [N, 3, 3], from a pixel (x, y, 1) of the result to its place in the image, in
        pixels from the centre, x to the right and y downwards.
    """
    x, y = (images.shape[3] - 1) / 2, (images.shape[2] - 1) / 2
    theta = inverse[:, :2].clone()  # in units of x and y
    theta[:, 0] /= x
    theta[:, 1] /= y
    theta[:, :, 0] *= x
    theta[:, :, 1] *= y
    dtype = torch.promote_types(images.dtype, torch.float32)  # bfloat16 is too coarse for pixels
    grid = F.affine_grid(theta.to(dtype), list(images.shape), align_corners=True)
    moved = F.grid_sample(images.to(dtype), grid, "bicubic", "reflection", align_corners=True)
    return torch.where(_changes(inverse), moved.to(images.dtype), images)


def recolor(images: Tensor, matrix: Tensor) -> Tensor:
    """Change the colours of every image by its own matrix.

    :param images: [N, C, H, W] in 0..1, C = 1 or groups of three channels.
    :param matrix: [N, 4, 4], of colours (r, g, b, 1) in -1..1.
    """
    linear, offset = matrix[:, :3, :3], matrix[:, :3, 3]
    # 2 y - 1 = linear (2 x - 1) + offset
    offset = (offset + 1 - linear.sum(2)) / 2
    if images.shape[1] == 1:  # the mean of what the three equal channels become
        linear, offset = linear.sum(2).mean(1)[:, None, None], offset.mean(1, keepdim=True)
    dtype = torch.promote_types(images.dtype, torch.float32)
    linear, offset = linear.to(dtype), offset.to(dtype)
    groups = images.to(dtype).unflatten(1, (-1, linear.shape[-1]))  # [N, groups, channels, H, W]
    changed = torch.einsum("nij,ngjhw->ngihw", linear, groups) + offset[:, None, :, None, None]
    return torch.where(_changes(matrix), changed.flatten(1, 2).to(images.dtype), images)


def _changes(matrix: Tensor) -> Tensor:
    """Whether each image's matrix differs from the identity, [N, 1, 1, 1]."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return (matrix != identity).flatten(1).any(1)[:, None, None, None]
