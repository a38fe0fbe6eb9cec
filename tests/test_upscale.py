"""Tiled enlargement: any size, and no seams."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.images import upscaling
from ganlab.images.resampling import resize, to_float, to_uint8
from ganlab.images.upscaling import bands, bicubic, bicubic_generator, of_one_size, upscale


@pytest.fixture
def convolutional() -> nn.Module:
    """x2 by three 3x3 convolutions: a receptive field of 3 LR pixels to each side."""
    rng = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.PixelShuffle(2),
    ).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=rng)
    return module


def nearest(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=3, mode="nearest-exact")


def halving(images: Tensor) -> Tensor:
    """x1 over 4x4 blocks: fails on other sizes, and tells blocks cut elsewhere."""
    height, width = images.shape[-2:]
    assert height % 4 == 0 and width % 4 == 0
    return images + F.max_pool2d(images, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("size", [(37, 53), (16, 17), (41, 5), (1, 33), (60, 16)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 3), (16, 4), (13, 5), (64, 16)])
def test_tiles_join_as_if_there_were_none(convolutional, size, tile, overlap):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    tiled = upscale(convolutional, images, 2, tile, overlap, multiple=1)
    torch.testing.assert_close(tiled, convolutional(images).detach(), rtol=0, atol=1e-12)


def test_an_overlap_below_the_receptive_field_shows(convolutional):
    images = torch.rand(1, 3, 37, 53, dtype=torch.float64)
    tiled = upscale(convolutional, images, 2, 16, 2, multiple=1)
    assert (tiled - convolutional(images)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (31, 32), (33, 64), (70, 23)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (16, 4), (32, 12)])
def test_every_pixel_is_made_and_lies_where_it_belongs(size, tile, overlap):
    images = torch.rand(1, 2, *size)
    assert torch.equal(upscale(nearest, images, 3, tile, overlap), nearest(images))


def test_an_image_within_one_tile_is_given_whole(convolutional):
    images = torch.rand(1, 3, 24, 40, dtype=torch.float64)
    assert torch.equal(upscale(convolutional, images, 2), convolutional(images))


@pytest.mark.parametrize("size", [(1, 1), (30, 57), (35, 64)])
def test_a_network_that_halves_its_input_gets_sides_it_can_halve(size):
    images = -torch.rand(1, 3, *size)  # a zero beyond the edge would be the maximum
    height, width = size
    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
    expected = halving(padded)[..., :height, :width]
    assert torch.equal(upscale(halving, images, 1, tile=24, overlap=4), expected)


def test_no_tile_is_larger_than_told_and_none_is_needless():
    seen = []

    def generator(images: Tensor) -> Tensor:
        seen.append((images.shape[-2], images.shape[-1]))
        return images

    upscale(generator, torch.rand(1, 1, 30, 57), 1, tile=39, overlap=4)
    assert seen == [(32, 32), (32, 32), (32, 16)]


@pytest.mark.parametrize(
    ("shape", "tile", "expected"),
    [
        ((5, 1, 20, 20), 40, [(2, 24, 24), (2, 24, 24), (1, 24, 24)]),
        ((2, 1, 32, 88), 32, [(1, 32, 32)] * 6 + [(2, 32, 16)]),
        (
            (1, 1, 88, 40),
            32,
            [(1, 32, 32)] * 3 + [(2, 32, 16), (1, 32, 16), (1, 16, 32), (1, 16, 16)],
        ),
    ],
)
def test_equal_tiles_go_together_up_to_the_pixels_of_one_whole(shape, tile, expected):
    seen = []

    def generator(images: Tensor) -> Tensor:
        seen.append((len(images), *images.shape[-2:]))
        return images

    images = torch.rand(shape)
    assert torch.equal(upscale(generator, images, 1, tile, overlap=4), images)
    assert seen == expected


def test_neighbours_of_one_size_go_together_in_order():
    sizes = [(2, 3), (2, 3), (2, 3), (3, 2), (2, 3), (9, 9), (9, 9)]
    groups = list(of_one_size(sizes, lambda size: size, 12))
    assert groups == [[(2, 3)] * 2, [(2, 3)], [(3, 2)], [(2, 3)], [(9, 9)], [(9, 9)]]


def test_what_comes_before_an_item_that_fails_is_not_lost():
    def items():
        yield from [(1, 1), (1, 1)]
        raise OSError("the third")

    found = []
    with pytest.raises(OSError, match="the third"):
        for group in of_one_size(items(), lambda size: size, 100):
            found.append(group)
    assert found == [[(1, 1), (1, 1)]]


def test_the_generator_chooses_channels_and_dtype_and_no_gradient_is_kept():
    images = torch.rand(1, 3, 9, 9, requires_grad=True)
    made = upscale(lambda x: nearest(x[:, :1]).half(), images, 3, tile=8, overlap=0)
    assert made.shape == (1, 1, 27, 27)
    assert made.dtype == torch.float16
    assert not made.requires_grad


@pytest.mark.parametrize(("tile", "overlap"), [(32, 16), (39, 16), (32, 3), (32, -4), (7, 0)])
def test_tiles_that_cannot_be_laid_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"twice the overlap of {overlap} must be a multiple of 8"):
        upscale(nearest, torch.rand(1, 3, 8, 8), 3, tile, overlap)


@pytest.mark.parametrize("size", [(37, 53), (1, 33), (70, 5), (90, 20)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 4), (24, 8), (64, 16)])
def test_bands_are_the_rows_of_the_whole_result(convolutional, size, tile, overlap):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    parts = list(bands(convolutional, images, 2, tile, overlap))
    assert all(part.shape[-2] <= 2 * tile for part in parts)
    joined = torch.cat(parts, dim=-2)
    torch.testing.assert_close(
        joined, upscale(convolutional, images, 2, tile, overlap), rtol=0, atol=1e-12
    )
    assert torch.equal(torch.cat([*bands(nearest, images, 3, tile, overlap)], -2), nearest(images))
    assert not joined.requires_grad


def test_a_band_is_made_when_it_is_asked_for():
    seen = []

    def generator(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images

    rows = bands(generator, torch.rand(1, 1, 88, 32), 1, tile=32, overlap=4)
    assert (next(rows).shape[-2], len(seen)) == (28, 1)
    assert (next(rows).shape[-2], len(seen)) == (24, 2)


@pytest.mark.parametrize("height", [1, 31, 56, 57, 63, 64, 65, 80, 81, 104, 105])
def test_bands_of_any_multiple_have_the_same_rows(height):
    images = torch.rand(1, 1, height, 8)
    first, second = (
        [part.shape[-2] for part in bands(nearest, images, 3, 32, 4, multiple)]
        for multiple in (8, 1)
    )
    assert first == second


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_images_may_be_a_list_of_integers(dtype):
    images = torch.randint(0, 256, (2, 1, 37, 20)).to(dtype)
    made = upscale(lambda tiles: nearest(to_float(tiles)), list(images), 3, 16, 4)
    assert torch.equal(made, nearest(to_float(images)))


@pytest.mark.parametrize("size", [(5, 9), (48, 48), (97, 65), (200, 3)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_in_tiles_is_bicubic_of_the_whole(monkeypatch, size, scale):
    images = torch.rand(2, 3, *size)
    whole = to_uint8(resize(images, (scale * size[0], scale * size[1])))
    assert torch.equal(bicubic(images, scale), whole)
    monkeypatch.setattr(upscaling, "BICUBIC_SIDE", 48 * scale)
    tiled = bicubic(images, scale)
    # sums in another order: a value that lies between two levels may be rounded otherwise
    assert (tiled.int() - whole.int()).abs().max() <= 1
    assert (tiled != whole).float().mean() < 1e-3
    levels = (images * 255).byte()
    assert torch.equal(bicubic_generator(scale)(levels), bicubic_generator(scale)(to_float(levels)))
