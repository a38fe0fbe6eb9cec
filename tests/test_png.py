"""PNG files written strip by strip: the pixels are the picture's, and the files as small."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ganlab.images import png
from ganlab.images.files import ImageError
from ganlab.images.png import Packed, pack, strips, write_strips
from ganlab.images.resampling import resize, to_uint8

MODES = {(1, 8): "L", (2, 8): "LA", (3, 8): "RGB", (4, 8): "RGBA", (1, 16): "I;16"}


def noise(channels: int, height: int, width: int, bits: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(height)
    values = torch.randint(0, 2**bits, (channels, height, width), generator=rng)
    return values.to(torch.uint8 if bits == 8 else torch.uint16)


def smooth(channels: int, side: int) -> Tensor:
    """Soft blobs and a little noise, like an enlarged photograph."""
    coarse = torch.rand(1, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    grain = 0.01 * torch.randn(1, channels, side // 2, side // 2)
    return to_uint8(resize(resize(coarse, (side // 2, side // 2)) + grain, (side, side)))[0]


def packed(*bands: Tensor) -> Iterator[Packed]:
    return (pack(strip) for strip in strips(bands))


@pytest.mark.parametrize(("channels", "bits"), MODES)
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 9), (37, 53)])
@pytest.mark.parametrize("most", [50, 2**19])
def test_a_picture_given_in_bands_is_read_back_to_the_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    bits: int,
    size: tuple[int, int],
    most: int,
) -> None:
    monkeypatch.setattr(png, "STRIP", most)
    image = noise(channels, *size, bits)
    write_strips(tmp_path / "a.png", size[0], packed(*image.split(16, dim=1)))
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == MODES[channels, bits]
        found = torch.from_numpy(np.array(file)).view(*size, channels).permute(2, 0, 1)
    assert torch.equal(found.int(), image.int())


def test_the_check_sums_of_a_file_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "STRIP", 50)
    write_strips(tmp_path / "a.png", 9, packed(noise(3, 9, 5)))
    data, stream = (tmp_path / "a.png").read_bytes()[8:], b""
    while data:
        (size,) = struct.unpack(">I", data[:4])
        kind, content, check = data[4:8], data[8 : 8 + size], data[8 + size : 12 + size]
        assert struct.pack(">I", zlib.crc32(kind + content)) == check
        stream += content if kind == b"IDAT" else b""
        data = data[12 + size :]
    # which Pillow does not check
    assert len(zlib.decompress(stream)) == 9 * (1 + 3 * 5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_file_is_about_as_small_as_one_of_pillow(tmp_path: Path, channels: int) -> None:
    image = smooth(channels, 512)
    write_strips(tmp_path / "a.png", 512, packed(image))
    other = io.BytesIO()
    pixels = image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(other, "PNG")
    assert (tmp_path / "a.png").stat().st_size < 1.1 * len(other.getvalue())


def test_pictures_one_after_the_other_take_each_its_own_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "STRIP", 50)
    first, second = noise(3, 9, 5), noise(3, 4, 5)
    both = (strip for image in (first, second) for strip in packed(image))
    for name, image in (("a", first), ("b", second)):
        write_strips(tmp_path / f"{name}.png", image.shape[1], both)
        with Image.open(tmp_path / f"{name}.png") as file:
            assert np.array_equal(np.asarray(file), image.permute(1, 2, 0).numpy())
    assert next(both, None) is None


def test_a_picture_that_stays_incomplete_leaves_the_old_file(tmp_path: Path) -> None:
    write_strips(tmp_path / "a.png", 4, packed(noise(3, 4, 5)))
    before = (tmp_path / "a.png").read_bytes()

    def failing() -> Iterator[Packed]:
        yield from packed(noise(3, 4, 5))
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match=r"a\.png: the picture lacks 2 rows"):
        write_strips(tmp_path / "a.png", 6, packed(noise(3, 4, 5)))
    with pytest.raises(KeyboardInterrupt):
        write_strips(tmp_path / "a.png", 6, failing())
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png: cannot be written.*folder exists"):
        write_strips(tmp_path / "none" / "a.png", 4, packed(noise(3, 4, 5)))
