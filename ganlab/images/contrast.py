"""Where in a picture there is most to see."""

import torch
from torch import Tensor


def busiest(image: Tensor, height: int, width: int, step: int) -> tuple[int, int]:
    """The place of a part with the most contrast between neighbouring pixels: its top and left.

    :param image: [C, H, W], of any type.
    :param height, width: of the part, at most those of the image.
    :param step: places are multiples of it. Time grows with (height / step) * (width / step).
    """
    luma = image.double().mean(0)
    contrast = torch.zeros_like(luma)
    contrast[:, 1:] += luma.diff(dim=1).abs()
    contrast[1:] += luma.diff(dim=0).abs()
    sums = torch.nn.functional.avg_pool2d(contrast[None, None], (height, width), stride=step)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return row * step, column * step
