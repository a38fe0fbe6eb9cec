"""Full-reference measures of images: PSNR, SSIM, and the amount of fine detail.

All take 8-bit images, as stored in a file, and return float64, one number for each image.
Large images are measured band by band, because float64 copies of the whole need much memory.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Channel = Literal["y", "rgb"]

PEAK = 255
WINDOW = 11  # of SSIM, in pixels
SIGMA = 1.5
TILE_PERIODS = 8  # for `stride_power`: enough to distinguish a periodic pattern from the picture
BAND = 2**20  # pixels that are measured at once; several float64 copies of them are needed
ROUNDING_POWER = 1 / 12  # variance of rounding to whole levels: the floor of any 8-bit spectrum


def luma(images: Tensor) -> Tensor:
    """The luma of ITU-R BT.601 in 16..235, not rounded; a grey image is returned unchanged.

        Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255

    Grey stays in 0..255, as in the evaluation code of the SR literature. With the formula, the only
    grey image of Set14 would add 0.09 dB to the mean of the set.

    :param images: uint8 [N, 3, H, W] or [N, 1, H, W].
    :returns: float64 [N, 1, H, W].
    :raises ValueError: when the images have another dtype or shape.
    """
    _check(images)
    if images.shape[1] == 1:
        return images.to(torch.float64)
    red, green, blue = images.split(1, dim=1)
    weighted = 65.481 * red.double() + 128.553 * green.double() + 24.966 * blue.double()
    return weighted.div_(255).add_(16)


def psnr(image: Tensor, reference: Tensor, shave: int, channel: Channel = "y") -> Tensor:
    """Peak signal-to-noise ratio, in dB.

        PSNR = 10 log10(255^2 / mean((image - reference)^2))

    With `channel` "y" and `shave` = scale it is the protocol of the SR literature (SRCNN,
    arXiv:1501.00092; EDSR, arXiv:1707.02921): on `luma`, with the borders cut. "rgb" takes the mean
    over the three channels. It is lower, by 20 log10(255 / 219) = 1.32 dB where the channels have
    equal errors: never compare "y" with "rgb".

    :param image, reference: uint8 [N, C, H, W], C 3 or 1.
    :param shave: pixels to cut from every side.
    :returns: float64 [N]; inf where the images are equal.
    :raises ValueError: when the shapes differ or the shave leaves nothing.
    """
    bands = _bands(image, reference, shave, channel, 1)
    mse = _mean(((a - b).square_().mean(dim=(1, 2, 3)), a.shape[-2]) for a, b in bands)
    return 10 * torch.log10(PEAK**2 / mse)


def ssim(image: Tensor, reference: Tensor, shave: int, channel: Channel = "y") -> Tensor:
    """Structural similarity, the mean of its map (Wang et al., IEEE TIP 13(4), 2004).

        SSIM = (2 m1 m2 + c1)(2 s12 + c2) / ((m1^2 + m2^2 + c1)(s1 + s2 + c2))

    m1 and m2 are local means, s1 and s2 variances, s12 the covariance, under an 11x11 Gaussian
    window of sigma 1.5, only where the window fits; c1 = (0.01 255)^2, c2 = (0.03 255)^2;
    population variances, no downsampling. "rgb" is the mean over the channels.

    :param image, reference: uint8 [N, C, H, W], C 3 or 1.
    :param shave: pixels to cut from every side.
    :returns: float64 [N], at most 1.
    :raises ValueError: when the shapes differ or the shave leaves less than 11x11 pixels.
    """
    bands = _bands(image, reference, shave, channel, WINDOW)
    return _mean(_ssim(a, b) for a, b in bands)


def _ssim(a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    luminance, structure = ssim_maps(a, b)
    return (luminance * structure).mean(dim=(1, 2, 3)), luminance.shape[-2]


def ssim_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of `ssim`: luminance (local means), and contrast with structure.

    :param a, b: planes in 0..255, float [N, C, H, W], at least 11x11.
    :returns: two tensors [N, C, H - 10, W - 10].
    """
    # one after the other, so that few maps are in memory together
    mean_a, mean_b, square_a = _blur(a), _blur(b), _blur(a * a)
    square_b, product = _blur(b * b), _blur(a * b)
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    covariance = product - mean_a * mean_b
    variances = (square_a - mean_a**2) + (square_b - mean_b**2)
    structure = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, structure


def high_frequency_ratio(image: Tensor, reference: Tensor, scale: int) -> Tensor:
    """The power of the detail that LR cannot hold: the image's, divided by the reference's.

        ratio = sum |F(w (Y - mean Y))|^2 of the image / the same of the reference,
                over the frequencies farther than 0.5 / scale cycles a pixel from zero

    Y is `luma`, w a Hann window over both sides, F the discrete Fourier transform. 1 is right;
    below 1 the image is too smooth (a network trained for PSNR alone), above 1 it is too sharp or
    noisy. The ratio measures the amount of detail, not whether it is in the right place.

    :param image, reference: uint8 [N, C, H, W], C 3 or 1.
    :param scale: HR side / LR side, so that 0.5 / scale is the Nyquist frequency of LR.
    :returns: float64 [N], at least 0; inf or nan where the reference has no detail at all.
    :raises ValueError: when the shapes differ.
    """
    image, reference = _cut(image, reference, 0, "y", 1)
    return _power_beyond(luma(image), 0.5 / scale) / _power_beyond(luma(reference), 0.5 / scale)


def stride_power(images: Tensor, stride: int) -> Tensor:
    """Spectral power at the multiples of 1 / stride: the power of a pattern with this period.

        P = 1/12 + mean over tiles and over (k, l) != (0, 0) of |F(v Y)(k / s, l / s)|^2 / sum v^2

    s is the stride. Y is `luma` minus its mean, in whole tiles of 8 s x 8 s pixels under a Hann
    window v; k and l are 0 .. s - 1; 1/12 is the power of rounding to 8 bits.

    :param images: uint8 [N, C, H, W], each side at least 4 strides.
    :returns: float64 [N].
    """
    side = stride * min(TILE_PERIODS, min(images.shape[-2:]) // stride)
    rows_of_tiles = images[..., : images.shape[-2] // side * side, :]
    bands = rows_of_tiles.split(side * max(1, _rows(images) // side), dim=-2)
    power = _mean((_power_of_tiles(luma(band)[:, 0], side), band.shape[-2]) for band in bands)
    step = side // stride
    at_stride = power[..., ::step, ::step].flatten(1)[:, 1:]  # without the mean
    return ROUNDING_POWER + at_stride.mean(1)


def _power_of_tiles(planes: Tensor, side: int) -> Tensor:
    """Spectral power [N, side, side] under a Hann window, the mean over tiles."""
    tiles = planes.unfold(1, side, side).unfold(2, side, side).flatten(1, 2)
    hann = torch.hann_window(side, periodic=True, dtype=torch.float64, device=planes.device)
    window = hann[:, None] * hann
    centred = tiles - tiles.mean(dim=(2, 3), keepdim=True)
    power = torch.fft.fft2(centred.mul_(window)).abs().square_() / window.square().sum()
    return power.mean(1)


def _power_beyond(planes: Tensor, frequency: float) -> Tensor:
    """Spectral power [N] beyond a distance from frequency zero, in cycles per pixel."""
    height, width = planes.shape[-2:]
    planes = planes - planes.mean(dim=(2, 3), keepdim=True)
    planes.mul_(_hann(height, planes.device)[:, None] * _hann(width, planes.device))
    power = torch.fft.fft2(planes).abs().square_()
    vertical = torch.fft.fftfreq(height, dtype=torch.float64, device=planes.device)
    horizontal = torch.fft.fftfreq(width, dtype=torch.float64, device=planes.device)
    beyond = torch.hypot(vertical[:, None], horizontal) > frequency
    return power.mul_(beyond).sum(dim=(1, 2, 3))


def _hann(size: int, device: torch.device) -> Tensor:
    # without the two zeros at its ends, which would remove the outermost pixels
    return torch.hann_window(size + 2, periodic=False, dtype=torch.float64, device=device)[1:-1]


def _blur(planes: Tensor) -> Tensor:
    """Gaussian mean where the window fits: [N, C, H, W] -> [N, C, H - 10, W - 10]."""
    bell = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    for axis in (-2, -1):
        size = planes.shape[axis] - WINDOW + 1
        # sums of shifted images: five times faster than a float64 conv2d on the CPU
        blurred = torch.zeros_like(planes.narrow(axis, 0, size))
        for i, weight in enumerate(bell):
            blurred.add_(planes.narrow(axis, i, size), alpha=weight / sum(bell))
        planes = blurred
    return planes


def _bands(
    image: Tensor, reference: Tensor, shave: int, channel: Channel, window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The planes to compare, float64, with borders cut, in bands of up to `BAND` pixels.

    Neighbouring bands share `window` - 1 rows; so each window lies in one band.
    """
    image, reference = _cut(image, reference, shave, channel, window)
    step = _rows(image)
    for top in range(0, image.shape[-2] - window + 1, step):
        rows = (..., slice(top, top + step + window - 1), slice(None))
        if channel == "y":
            yield luma(image[rows]), luma(reference[rows])
        else:
            yield image[rows].to(torch.float64), reference[rows].to(torch.float64)


def _mean(bands: Iterator[tuple[Tensor, int]]) -> Tensor:
    """The mean of a picture from the means of its bands, each given with its number of rows."""
    means, heights = zip(*bands, strict=True)
    shares = [height / sum(heights) for height in heights]
    return torch.stack([mean * share for mean, share in zip(means, shares, strict=True)]).sum(0)


def _rows(images: Tensor) -> int:
    """How many rows of the images are measured at once."""
    return max(1, BAND // (len(images) * images.shape[-1]))


def _cut(
    image: Tensor, reference: Tensor, shave: int, channel: Channel, smallest: int
) -> tuple[Tensor, Tensor]:
    """Check two images, and cut their borders; each side keeps at least `smallest`."""
    if image.shape != reference.shape:
        raise ValueError(f"the images differ in shape: {[*image.shape]} and {[*reference.shape]}")
    if channel not in ("y", "rgb"):
        raise ValueError(f"channel must be 'y' or 'rgb', not {channel!r}")
    _check(image)
    _check(reference)
    height, width = image.shape[-2:]
    if shave < 0 or min(height, width) - 2 * shave < smallest:
        raise ValueError(
            f"a shave of {shave} pixels leaves less than {smallest} x {smallest} of an image "
            f"of {width} x {height}"
        )
    inner = (..., slice(shave, height - shave), slice(shave, width - shave))
    return image[inner], reference[inner]


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"the measures take uint8 images, not {images.dtype}; use to_uint8")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, C, H, W], C 3 or 1, not {[*images.shape]}")
