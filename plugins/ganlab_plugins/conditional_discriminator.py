"""Conditional discriminator: it judges an image together with its low-resolution image."""

from collections.abc import Generator
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import Plugin, hookimpl, resize


class ConditionalDiscriminator(Plugin):
    """Lets the discriminator see the condition (pix2pix; Isola et al. 2017, arXiv:1611.07004).

    D sees `[x, enlarge(condition)]`, the channels of x and then those of the condition:
    [N, C + c, H, W]. So it judges not only whether x is natural, but also whether x belongs to its
    LR image. Any discriminator fits, because it is built for the number of channels it gets.

    List it before the augmentations that must change both parts in the same way, as diff_augment
    and ada do, and after those that are for x alone. Otherwise D could recognise an augmented image
    by its condition. Penalties see the appended channels: the slope in gradient_penalty is over x
    and condition together, and its point between real and fake has the condition of both.
    """

    share_forward: ClassVar[bool | None] = True

    enlarge: Literal["bicubic", "nearest"] = "bicubic"
    """How the condition is enlarged to the size of the images; `nearest` turns its pixels into
    blocks."""

    @hookimpl(wrapper=True)
    def augment(self, condition: Tensor) -> Generator[None, Tensor, Tensor]:
        images = yield
        if images.dim() != 4 or condition.dim() != 4:
            raise self.error(
                "it appends an image to images, but the condition has shape "
                f"{list(condition.shape[1:])} and the samples have shape "
                f"{list(images.shape[1:])}; drop {self.name} from this recipe"
            )
        height, width = images.shape[2:]
        if self.enlarge == "bicubic":
            enlarged = resize(condition, (height, width))
        else:
            enlarged = F.interpolate(condition, (height, width), mode="nearest-exact")
        return torch.cat([images, enlarged.to(images.dtype)], 1)
