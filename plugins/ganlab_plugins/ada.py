"""Adaptive discriminator augmentation: as much augmentation as keeps D from overfitting."""

import math
from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import AdaptiveProbability, Batch, hookimpl

# of the paper's code; the deviations of brightness and of shifts are those of its -1..1 and of
# a side, those of scale, contrast and saturation are in powers of two
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

    Each transformation befalls each image that D sees, real and fake, in the D step and in the G
    step, with probability p, which follows

        p <- max(0, p + sign(r - target) * batch * every / (speed * 1000)),  r = mean sign(D(real))

    after every `every` D steps from 0 on, r over all logits since the last time: 1 when D knows
    the training images by heart, 0 when it guesses. It means something only where the sign of a
    logit is D's verdict, as with bce and hinge; with wasserstein set `fixed_p`. Logged as
    `D/<name>_p`; it stands still while D does not train.

    The pipeline, in this order: `blit` is mirroring, quarter turns and shifts by whole pixels;
    `geom` is scaling, turning, stretching, turning and shifting; `color` is brightness, contrast,
    luma flip, hue and saturation. `bg` and `bgc`, the paper's best, are these together. Colours
    are changed in the paper's range -1..1, and the result put back into 0..1 and not clamped.

    Deviations: the paper samples bilinearly between wavelet filters that double the resolution;
    here the image is sampled bicubically once, unfiltered. It is mirrored at its edges as far as
    needed, where the paper's goes black after one image's width. An image that the coins spare is
    left alone to the last bit. Channels are groups of three (or one grey one), treated alike:
    a condition appended by conditional_discriminator, listed before, stays in register.
    Penalties see the augmented images, so that no second derivative of the sampling is needed.
    """

    pipeline: Literal["blit", "geom", "color", "bg", "bgc"] = "bgc"
    """Which transformations; all but `blit` and `color` blur a little, real and fake alike."""

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
                "torch has no deterministic form of its sampling on CUDA; set deterministic = "
                'false, or pipeline = "color"'
            )
        if images.dim() != 4:
            raise self.error(
                f"it augments images, and the samples are {list(images.shape[1:])}; "
                f"drop {self.name} from this recipe"
            )
        num_channels = images.shape[1]
        if self.pipeline in ("color", "bgc") and num_channels != 1 and num_channels % 3:
            raise self.error(
                f"it changes the colours of RGB images, and these have {num_channels} channels; "
                'set pipeline = "bg"',
                "pipeline",
            )


class Draws:
    """Random numbers for n images, and matrices made of them; float64, on the device of p."""

    def __init__(self, n: int, p: Tensor, rng: torch.Generator | None) -> None:
        self.n, self.p, self.rng = n, p, rng

    def uniform(self, low: float, high: float) -> Tensor:
        """[n], evenly in low..high."""
        return low + (high - low) * self._rand()

    def integers(self, num: int) -> Tensor:
        """[n], each of 0..num - 1 equally often."""
        return (self._rand() * num).floor()

    def normal(self, deviation: float) -> Tensor:
        """[n], around 0."""
        p = self.p
        return deviation * torch.randn(self.n, generator=self.rng, dtype=p.dtype, device=p.device)

    def sometimes(self, transformation: Tensor, p: Tensor | None = None) -> Tensor:
        """Each image's own matrix with probability p, else one that changes nothing."""
        chosen = self._rand() < (self.p if p is None else p)
        return torch.where(
            chosen[:, None, None], transformation, self.nothing(transformation.shape[-1])
        )

    def nothing(self, size: int) -> Tensor:
        """[n, size, size]: identities."""
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
    # either turn or both with probability p
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
    """[N, 3, 3] of factors [N] along the two axes."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], -1))


def shift(x: Tensor, y: Tensor) -> Tensor:
    """[N, 3, 3] that looks x pixels to the left and y upwards: the image moves right and down."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], -1).unflatten(-1, (3, 3))


def turn(angle: Tensor) -> Tensor:
    """[N, 3, 3] of angles [N] in radians."""
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def about_grey(angle: Tensor) -> Tensor:
    """[N, 3, 3] that turn a colour about the grey axis: red goes to green after a third."""
    third = 2 * math.pi / 3
    red, green, blue = ((1 + 2 * (angle - i * third).cos()) / 3 for i in range(3))
    rows = [red, blue, green, green, red, blue, blue, green, red]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Move every image by its own matrix, sampling bicubically; mirrored beyond the edges.

    :param images: [N, C, H, W].
    :param inverse: [N, 3, 3], from a pixel (x, y, 1) of the result to one of the images, in pixels
        from the centre, x to the right and y downwards.
    """
    x, y = (images.shape[3] - 1) / 2, (images.shape[2] - 1) / 2
    theta = inverse[:, :2].clone()  # in units of x and y
    theta[:, 0] /= x
    theta[:, 1] /= y
    theta[:, :, 0] *= x
    theta[:, :, 1] *= y
    dtype = torch.promote_types(images.dtype, torch.float32)  # bfloat16 cannot tell pixels apart
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
    if images.shape[1] == 1:  # the grey of the grey's colour
        linear, offset = linear.sum(2).mean(1)[:, None, None], offset.mean(1, keepdim=True)
    dtype = torch.promote_types(images.dtype, torch.float32)
    linear, offset = linear.to(dtype), offset.to(dtype)
    groups = images.to(dtype).unflatten(1, (-1, linear.shape[-1]))  # [N, groups, channels, H, W]
    changed = torch.einsum("nij,ngjhw->ngihw", linear, groups) + offset[:, None, :, None, None]
    return torch.where(_changes(matrix), changed.flatten(1, 2).to(images.dtype), images)


def _changes(matrix: Tensor) -> Tensor:
    """Which images a matrix changes at all, [N, 1, 1, 1]."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return (matrix != identity).flatten(1).any(1)[:, None, None, None]
