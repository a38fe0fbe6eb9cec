"""DiffAugment: differentiable augmentation of all images that the discriminator sees."""

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ganlab import NoEffect, Plugin, hookimpl

Kind = Literal["color", "translation", "cutout"]

_OPTIONS: dict[Kind, tuple[str, ...]] = {
    "color": ("brightness", "saturation", "contrast"),
    "translation": ("translation",),
    "cutout": ("cutout",),
}


class DiffAugment(Plugin):
    """Differentiable augmentation for data-efficient GANs (Zhao et al. 2020, arXiv:2006.10738).

    Every image that D sees, real or fake, in the D step and in the G step, is changed by its own
    random draws. The generator's gradient passes through the changes. U(a, b) is uniform in a..b:

    - `color`: `x + U(-b, b)`; then `m + (x - m) U(1 - s, 1 + s)`, m the mean of a pixel's channels;
      then the same with `U(1 - c, 1 + c)` and m the mean of the whole image.
    - `translation`: a shift by whole pixels, up to a share of each side; empty pixels are filled.
    - `cutout`: a rectangle is filled; its sides are a share of the image's, its centre is anywhere.

    The defaults are those of the published code. Its images are in -1..1, but here they are in
    0..1: so its brightness of 0.5 is 0.25 here, and its fill of 0 is 0.5 here, which is grey. Apart
    from the range, both are then the same function (with black, a fill of 0 here, they would not
    be). Nothing is clamped.

    Channels form groups of three (or one grey channel): a condition appended by
    conditional_discriminator, listed before, gets the same draws. Where real and fake images get
    different draws, losses that compare their features pixel by pixel measure the shift, too.
    """

    policy: list[Kind] = Field(["color", "translation", "cutout"], min_length=1)
    """The changes, in this order."""

    brightness: Annotated[float, NoEffect(0)] = Field(0.25, ge=0)
    """Largest change of brightness, for images in 0..1."""

    saturation: Annotated[float, NoEffect(0)] = Field(1.0, ge=0, le=1)
    """Largest relative change of the colours' distance from grey."""

    contrast: Annotated[float, NoEffect(0)] = Field(0.5, ge=0, le=1)
    """Largest relative change of the distance from the image's mean."""

    translation: Annotated[float, NoEffect(0)] = Field(0.125, ge=0, le=1)
    """Largest shift, as a share of a side, rounded down to pixels."""

    cutout: Annotated[float, NoEffect(0)] = Field(0.5, ge=0, le=1)
    """Sides of the rectangle, as a share of the image's sides, rounded down to pixels."""

    fill: float = 0.5
    """Value of the pixels that a shift or the cutout leaves empty; 0.5 is the published value."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "DiffAugment":
        if len(set(self.policy)) < len(self.policy):
            raise ValueError("policy names one kind twice; name it once")
        idle = [name for kind in _OPTIONS if kind not in self.policy for name in _OPTIONS[kind]]
        if self.policy == ["color"]:
            idle.append("fill")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with this policy; leave it out")
        return self

    @hookimpl(wrapper=True)
    def augment(self) -> Generator[None, Tensor, Tensor]:
        images = yield
        if images.dim() != 4:
            raise self.error(
                f"it augments images, but the samples have shape {list(images.shape[1:])}; "
                f"drop {self.name} from this recipe"
            )
        change = {"color": self._color, "translation": self._translation, "cutout": self._cutout}
        for kind in self.policy:
            images = change[kind](images)
        return images

    def _color(self, images: Tensor) -> Tensor:
        num_channels = images.shape[1]
        if num_channels != 1 and num_channels % 3:
            raise self.error(
                f"color changes RGB images, but these have {num_channels} channels; leave color "
                "out of the policy",
                "policy",
            )
        brightness = self._uniform(images) * self.brightness
        saturation = 1 + self._uniform(images) * self.saturation
        contrast = 1 + self._uniform(images) * self.contrast
        return color(images, brightness, saturation, contrast)

    def _translation(self, images: Tensor) -> Tensor:
        down, right = (
            self._integers(images, -largest, largest)
            for largest in (_share(side, self.translation) for side in images.shape[2:])
        )
        return shift(images, down, right, self.fill)

    def _cutout(self, images: Tensor) -> Tensor:
        sides = [_share(side, self.cutout) for side in images.shape[2:]]
        # as published: if a side is even, the centre may lie on the far edge of the image
        top, left = (
            self._integers(images, 0, whole - side % 2) - side // 2
            for whole, side in zip(images.shape[2:], sides, strict=True)
        )
        return cut(images, top, left, (sides[0], sides[1]), self.fill)

    def _uniform(self, images: Tensor) -> Tensor:
        """One number in -1..1 for each image."""
        n, device, dtype = len(images), images.device, images.dtype
        return 2 * torch.rand(n, generator=self.rng, device=device, dtype=dtype) - 1

    def _integers(self, images: Tensor, low: int, high: int) -> Tensor:
        """One integer in low..high for each image, both ends included."""
        return torch.randint(
            low, high + 1, (len(images),), generator=self.rng, device=images.device
        )


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Change each image's brightness, saturation and contrast by its own draws, in this order.

    :param images: [N, C, H, W], C = 1 or groups of three channels; each group is an image.
    :param brightness, saturation, contrast: [N]; 0, 1 and 1 change nothing.
    """
    num_channels = 1 if images.shape[1] == 1 else 3
    groups = images.unflatten(1, (-1, num_channels))  # [N, groups, channels, H, W]
    brightness, saturation, contrast = (
        draw.view(-1, 1, 1, 1, 1) for draw in (brightness, saturation, contrast)
    )
    groups = groups + brightness
    groups = torch.lerp(groups.mean(2, keepdim=True), groups, saturation)
    groups = torch.lerp(groups.mean((2, 3, 4), keepdim=True), groups, contrast)
    return groups.flatten(1, 2)


def shift(images: Tensor, down: Tensor, right: Tensor, fill: float) -> Tensor:
    """Move every image by its own whole number of pixels.

    :param down, right: [N], integers; negative ones move up and left.
    """
    sides = images.shape[2:]
    rows, columns = (
        torch.arange(side, device=images.device) - by[:, None]
        for side, by in zip(sides, (down, right), strict=True)
    )
    within = (_inside(rows, sides[0])[:, :, None] & _inside(columns, sides[1])[:, None])[:, None]
    num = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = rows.clamp(0, sides[0] - 1), columns.clamp(0, sides[1] - 1)
    moved = images.movedim(1, 3)[num, rows[:, :, None], columns[:, None]].movedim(3, 1)
    return torch.where(within, moved, fill)


def cut(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """Fill a rectangle in every image; it may lie partly outside the image.

    :param top, left: [N], integers: the position of the rectangle's first pixel.
    :param size: (height, width) of the rectangle.
    """
    rows, columns = (
        _inside(torch.arange(side, device=images.device) - first[:, None], extent)
        for side, first, extent in zip(images.shape[2:], (top, left), size, strict=True)
    )
    return torch.where((rows[:, :, None] & columns[:, None])[:, None], fill, images)


def _inside(positions: Tensor, side: int) -> Tensor:
    return (positions >= 0) & (positions < side)


def _share(side: int, share: float) -> int:
    return int(side * share + 1e-6)  # 0.29 * 100 is 28.999...
