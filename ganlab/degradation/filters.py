"""Filters: convolution with one kernel per image, and unsharp masking."""

import torch
from torch import Tensor
from torch.nn import functional as F


def filter_images(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each image with its kernel; borders are reflected, the last pixel is not repeated.

        out[n, c, y, x] = sum over (i, j) of kernels[n, i, j] images[n, c, y + i - m, x + j - m]

    with m the middle of the kernel. Images may be smaller than the kernel. Differentiable.

    :param images: [N, C, H, W], float.
    :param kernels: [N, k, k] or [N, k, l], k and l odd; or [1, k, l], one for all images.
    :returns: [N, C, H, W], not clipped.
    """
    n, c, height, width = images.shape
    rows, columns = kernels.shape[-2:]
    if rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"a kernel of {rows} x {columns} has no middle: its sides must be odd")
    # On CUDA a single channel is an ordinary convolution, which may be computed in TF32; a grouped
    # convolution of several channels is computed in float32.
    alone = images.is_cuda and n * c == 1
    dtype = torch.float64 if alone else images.dtype
    padded = reflected(images, rows // 2, columns // 2).to(dtype)
    weights = kernels.to(dtype).expand(n, rows, columns).repeat_interleave(c, 0)[:, None]
    with torch.autocast(images.device.type, enabled=False):
        out = F.conv2d(padded.reshape(1, n * c, *padded.shape[-2:]), weights, groups=n * c)
    return out.view(n, c, height, width).to(images.dtype)


def sharpen(
    images: Tensor, weight: float = 0.5, radius: int = 50, threshold: float = 10.0
) -> Tensor:
    """Unsharp masking with a soft mask, as Real-ESRGAN sharpens its HR (arXiv:2107.10833).

        residual = I - blur(I)
        mask = blur(|residual| > threshold / 255)
        out = mask clip(I + weight residual, 0, 1) + (1 - mask) I

    blur is Gaussian with a side of `radius`, made odd, and OpenCV's sigma for that side,
    0.3 ((side - 1) / 2 - 1) + 0.8: side 51 and sigma 8 by default. It is computed in two passes.

    :param images: [N, C, H, W] in 0..1.
    :param threshold: in grey levels of 255; smaller differences are noise and not sharpened.
    :returns: [N, C, H, W] in 0..1.
    """
    side = radius + (radius + 1) % 2
    sigma = 0.3 * ((side - 1) / 2 - 1) + 0.8
    axis = torch.arange(side, dtype=images.dtype, device=images.device) - side // 2
    bell = torch.exp(-0.5 * (axis / sigma) ** 2)
    bell = (bell / bell.sum())[None]

    def blur(x: Tensor) -> Tensor:
        return filter_images(filter_images(x, bell[:, :, None]), bell[:, None, :])

    residual = images - blur(images)
    mask = blur((residual.abs() * 255 > threshold).to(images.dtype))
    sharp = (images + weight * residual).clamp(0, 1)
    return mask * sharp + (1 - mask) * images


def reflected(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images with this many more rows and columns on each side, reflected at the border pixels.

    `F.pad` needs a margin smaller than the image. Here the margin may be larger; the image is then
    reflected several times.
    """
    height, width = images.shape[-2:]
    if rows < height and columns < width:
        return F.pad(images, (columns, columns, rows, rows), mode="reflect")
    images = images.index_select(-2, _bouncing(height, rows, images.device))
    return images.index_select(-1, _bouncing(width, columns, images.device))


def _bouncing(side: int, margin: int, device: torch.device) -> Tensor:
    """Indices -margin .. side + margin - 1, reflected into 0 .. side - 1."""
    period = max(2 * (side - 1), 1)
    index = torch.arange(-margin, side + margin, device=device).remainder(period)
    return torch.minimum(index, period - index) if side > 1 else index
