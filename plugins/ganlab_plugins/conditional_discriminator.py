"""Conditional discriminator: it judges an image beside the low-resolution one that it came from."""

from collections.abc import Generator
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab import Plugin, hookimpl, resize


class ConditionalDiscriminator(Plugin):
    """Show the discriminator the condition too (pix2pix; Isola et al. 2017, arXiv:1611.07004).

    D sees `[x, enlarge(condition)]`, the channels of both one after another: [N, C + c, H, W], so
    that it judges not only whether x is natural but whether x belongs to its LR image. Any
    discriminator will do, for it is told the number of channels.

    List it before the augmentations that are to treat both parts alike, as diff_augment and ada
    do, and after those that are for x alone. D could otherwise tell an augmented image by its
    condition. Penalties see the appended channels: the slope that gradient_penalty holds is over
    x and condition together, and its point between real and fake has their common condition.
    """

    share_forward: ClassVar[bool | None] = True

    enlarge: Literal["bicubic", "nearest"] = "bicubic"
    """How the condition is brought to the size of the images; `nearest` shows its pixels as
    blocks."""

    @hookimpl(wrapper=True)
    def augment(self, condition: Tensor) -> Generator[None, Tensor, Tensor]:
        images = yield
        if images.dim() != 4 or condition.dim() != 4:
            raise self.error(
                f"it appends an image to images, and the condition is {list(condition.shape[1:])} "
                f"beside samples of {list(images.shape[1:])}; drop {self.name} from this recipe"
            )
        height, width = images.shape[2:]
        if self.enlarge == "bicubic":
            enlarged = resize(condition, (height, width))
        else:
            enlarged = F.interpolate(condition, (height, width), mode="nearest-exact")
        return torch.cat([images, enlarged.to(images.dtype)], 1)
