"""JPEG as tensor operations, against Pillow's libjpeg and against itself."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from ganlab import degradation, round_to_8_bits, to_float
from ganlab.images.metrics import psnr

# (photograph, rows, columns): whole blocks, odd sides, less than a block
CROPS = [
    ("astronaut", slice(0, 128), slice(0, 160)),
    ("coffee", slice(3, 104), slice(50, 187)),
    ("chelsea", slice(40, 117), slice(60, 142)),
    ("coffee", slice(100, 105), slice(200, 211)),
    ("camera", slice(100, 201), slice(150, 287)),
]


def photograph(name: str, rows: slice, columns: slice) -> Tensor:
    """uint8 [1, C, H, W]."""
    pixels = torch.from_numpy(getattr(data, name)()[rows, columns].copy())
    return pixels.permute(2, 0, 1)[None] if pixels.dim() == 3 else pixels[None, None]


def pillow(image: Tensor, quality: int) -> Tensor:
    """The image of a JPEG file that Pillow wrote and read, uint8 [1, C, H, W]."""
    pixels = image[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        file, "JPEG", quality=quality
    )
    with Image.open(file) as read:
        made = torch.from_numpy(np.array(read))
    return made.permute(2, 0, 1)[None] if made.dim() == 3 else made[None, None]


def at(quality: float, n: int = 1) -> Tensor:
    return torch.full((n,), float(quality), dtype=torch.float64)


def decibels(one: Tensor, other: Tensor) -> float:
    mean = (one.double() - other.double()).square().mean().item()
    return 10 * np.log10(1 / mean) if mean else float("inf")


@pytest.mark.parametrize("quality", [10, 30, 60, 95])
@pytest.mark.parametrize("crop", CROPS, ids=lambda crop: f"{crop[0]}-{crop[1].stop}")
def test_it_is_within_48_decibels_of_pillow(crop, quality):
    image = photograph(*crop)
    made = degradation.jpeg(to_float(image).double(), at(quality))
    reference = to_float(pillow(image, quality))
    assert decibels(made, reference) > 48
    # what JPEG did is far more than that
    assert decibels(made, to_float(image)) < decibels(made, reference) - 5


def test_a_low_quality_is_reproduced_almost_bit_for_bit():
    # at coarse steps few coefficients lie where libjpeg's integer arithmetic decides otherwise
    image = photograph("camera", slice(0, 128), slice(0, 160))
    made = degradation.jpeg(to_float(image), at(10).float())
    assert (made * 255 - pillow(image, 10)).abs().gt(0.5).double().mean() < 1e-3


@pytest.mark.parametrize("crop", CROPS[:3], ids=lambda crop: crop[0])
def test_the_differentiable_one_is_near_the_real_one(crop):
    image = to_float(photograph(*crop)).double()
    real = degradation.jpeg(image, at(60))
    assert decibels(degradation.jpeg(image, at(60), differentiable=True), real) > 43


def test_every_image_has_its_own_quality():
    image = to_float(photograph(*CROPS[1])).double()
    batch = degradation.jpeg(image.expand(3, -1, -1, -1), torch.tensor([30.0, 60.0, 95.0]))
    for index, quality in enumerate((30, 60, 95)):
        assert torch.equal(batch[index : index + 1], degradation.jpeg(image, at(quality)))
    quality = [psnr((255 * b).byte()[None], (255 * image).byte(), 0).item() for b in batch]
    assert quality == sorted(quality) and quality[0] < quality[2] - 5


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 7, 23), (1, 1, 8, 9), (1, 3, 17, 16)])
def test_any_size_keeps_its_shape_and_gets_8_bit_values(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    made = degradation.jpeg(image, at(50, len(image)).float())
    assert made.shape == image.shape and made.dtype == image.dtype
    torch.testing.assert_close(made, round_to_8_bits(made))
    assert made.min() >= 0 and made.max() <= 1


@pytest.mark.parametrize("quality", [10, 50, 100])
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_stay(quality, level):
    image = torch.full((1, 3, 24, 20), level / 255)
    torch.testing.assert_close(degradation.jpeg(image, at(quality).float()), image)


def test_quality_50_has_the_tables_of_the_standard():
    # the first step of luma is 16: block means become multiples of 16 / 8 = 2 levels, clipped
    flat = (torch.arange(256) / 255)[:, None, None, None].expand(256, 1, 8, 8)
    made = degradation.jpeg(flat, at(50, 256).float()) * 255
    assert sorted(set(made.round().flatten().tolist())) == [*range(0, 256, 2), 255]
    # and at quality 25, twice the step: multiples of 4
    made = degradation.jpeg(flat, at(25, 256).float()) * 255
    assert sorted(set(made.round().flatten().tolist())) == [*range(0, 256, 4), 255]


def test_quality_100_loses_but_the_rounding():
    image = to_float(photograph("camera", slice(0, 64), slice(0, 64)))
    made = degradation.jpeg(image, at(100).float())
    assert (made - image).abs().max() * 255 < 1.6


def test_the_two_dtypes_give_one_image():
    image = to_float(photograph(*CROPS[1]))
    single, double = (degradation.jpeg(image.to(d), at(60)) for d in (image.dtype, torch.float64))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert (single - double).abs().gt(1e-3).double().mean() < 1e-3


def test_the_gradient_of_the_differentiable_one_is_the_slope_of_its_value():
    image = 0.2 + 0.6 * torch.rand(1, 3, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: degradation.jpeg(x, at(60), differentiable=True), image.requires_grad_()
    )


def test_the_real_one_has_no_slope():
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    degradation.jpeg(image, at(60).float()).sum().backward()
    assert image.grad is not None and not image.grad.any()


def test_two_or_four_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        degradation.jpeg(torch.rand(1, 4, 8, 8), at(50))
