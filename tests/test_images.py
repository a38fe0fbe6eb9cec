"""Image files: every mode becomes the 8-bit RGB that a viewer would show, or is refused by name."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganlab import (
    ImageError,
    cache_folder,
    list_images,
    read_image,
    split_alpha,
    write_png,
)
from ganlab.images.files import read_picture
from ganlab.images.resampling import to_float, to_uint16

ORIENTATION = 0x0112


def noise(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_rgb_is_returned_as_it_is(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise()), **options)
    assert torch.equal(read_image(path), chw(noise()))


def test_grey_becomes_three_equal_channels_or_is_kept(tmp_path):
    grey = noise(channels=1)
    path = save(tmp_path / "a.png", Image.fromarray(grey[:, :, 0]))
    assert torch.equal(read_image(path), chw(grey).expand(3, -1, -1))
    assert torch.equal(read_image(path, keep_grey=True), chw(grey))


def test_black_and_white_becomes_0_and_255(tmp_path):
    bits = noise(channels=1)[:, :, 0] > 127
    path = save(tmp_path / "a.png", Image.fromarray(bits))
    assert torch.equal(read_image(path, keep_grey=True)[0], torch.from_numpy(bits) * 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_divided_by_257_and_rounded(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    expected = np.rint(values.astype(np.float64) / 257)
    assert expected.tolist() == [[0, 0, 1, 1, 128, 254, 255, 255]]
    assert read_image(path, keep_grey=True)[0].tolist() == expected.tolist()


def test_a_palette_is_looked_up(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", palette)
    assert read_image(path)[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]
    assert split_alpha(path)[1] is None


def test_a_transparent_palette_entry_shows_what_is_behind(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", palette, transparency=1)
    assert read_image(path)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    colour, alpha = split_alpha(path)
    assert colour[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]
    assert alpha is not None
    assert alpha.tolist() == [[[255, 0]]]


def test_cmyk_is_converted_to_the_colours_it_prints(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    red, green, blue = read_image(path)[:, 4, 4].tolist()
    assert red > 250
    assert green < 5
    assert blue < 5


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, [[1, 2]]), (2, [[2, 1]]), (3, [[2, 1]]), (6, [[1], [2]]), (8, [[2], [1]])],
)
def test_exif_orientation_is_applied(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.array([[1, 2]], np.uint8)), exif=exif)
    assert read_image(path, keep_grey=True)[0].tolist() == expected


# --- alpha ---------------------------------------------------------------------------------------


def test_alpha_is_composited_by_its_definition(tmp_path):
    rgba = noise(channels=4)
    path = save(tmp_path / "a.png", Image.fromarray(rgba))
    opacity = rgba[:, :, 3:] / 255
    for behind, value in (("white", 255), ("black", 0)):
        expected = np.floor(rgba[:, :, :3] * opacity + value * (1 - opacity) + 0.5)
        error = read_image(path, alpha=behind).double() - torch.from_numpy(
            expected.transpose(2, 0, 1)
        )
        assert error.abs().max() == 0


def test_alpha_is_split_off_with_the_colours_untouched(tmp_path):
    rgba = noise(channels=4)
    colour, alpha = split_alpha(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert torch.equal(colour, chw(rgba[:, :, :3]))
    assert alpha is not None
    assert torch.equal(alpha, chw(rgba[:, :, 3:]))


def test_grey_with_alpha_is_still_grey(tmp_path):
    array = noise(channels=2)
    array[0, 0] = (40, 0)
    path = save(tmp_path / "a.png", Image.fromarray(array))
    assert read_image(path, keep_grey=True).shape == (1, 5, 7)
    assert read_image(path, keep_grey=True)[0, 0, 0] == 255
    assert split_alpha(path)[0][:, 0, 0].tolist() == [40, 40, 40]


def test_transparency_is_refused_on_request_and_opaque_alpha_never(tmp_path):
    rgba = noise(channels=4)
    clear = save(tmp_path / "clear.png", Image.fromarray(rgba))
    rgba[:, :, 3] = 255
    opaque = save(tmp_path / "opaque.png", Image.fromarray(rgba))
    with pytest.raises(ImageError, match=r'clear\.png: has transparent.*alpha = "white"'):
        read_image(clear, alpha="refuse")
    assert torch.equal(read_image(opaque, alpha="refuse"), chw(rgba[:, :, :3]))
    assert split_alpha(opaque)[1] is None


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.6])
def test_a_truncated_file_is_named(tmp_path, suffix, part):
    path = save(tmp_path / f"half.{suffix}", Image.fromarray(noise(64, 64)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=rf"half\.{suffix}: cannot be read.*; replace"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_animations_and_pages_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(noise(8, 8) // (1 + i)) for i in range(2)]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"holds 2 (or more )?frames"):
        read_image(path)


def test_a_second_picture_in_a_jpeg_is_ignored(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    path = save(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert read_image(path)[0].min() > 250


@pytest.mark.parametrize("filter_", ["error", "ignore"])
def test_a_decompression_bomb_is_an_error_whatever_becomes_of_warnings(
    tmp_path, monkeypatch, filter_
):
    path = save(tmp_path / "a.png", Image.fromarray(noise(10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with warnings.catch_warnings(), pytest.raises(ImageError, match=r"a\.png: .*pixels"):
        warnings.simplefilter(filter_)
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).shape == (3, 10, 10)


@pytest.mark.parametrize(
    "values", [np.ones((4, 4), np.float32), np.full((4, 4), -1, np.int32), np.array([[65536]])]
)
def test_float_and_32_bit_pixels_are_refused(tmp_path, values):
    kind = np.float32 if values.dtype == np.float32 else np.int32
    path = save(tmp_path / "a.tif", Image.fromarray(values.astype(kind)))
    with pytest.raises(ImageError, match=r"mode [FI] .*8 or 16 bits"):
        read_image(path)


def test_other_formats_are_not_opened_whatever_their_suffix(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(noise()), format="GIF")
    with pytest.raises(ImageError, match=r"a\.png: cannot be read"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


# --- folders -------------------------------------------------------------------------------------


def test_images_are_listed_in_order_from_nested_folders_without_hidden_ones(tmp_path):
    for name in ("b.PNG", "a/z.jpeg", "a/b/c.TIFF", "a/notes.txt", ".x.png", ".git/y.png", "d.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a/b/c.TIFF", "a/z.jpeg", "b.PNG"]


def test_a_folder_that_is_missing_empty_or_a_file_is_named(tmp_path):
    (tmp_path / "a.txt").touch()
    for path, fault in ((tmp_path / "nil", "no such"), (tmp_path / "a.txt", "is a file")):
        with pytest.raises(ImageError, match=rf"{path.name}: {fault}"):
            list_images(path)
    with pytest.raises(ImageError, match=r"no image in it.*\.png"):
        list_images(tmp_path)


def test_the_cache_folder_follows_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GANLAB_CACHE")
    assert cache_folder().name == "ganlab"


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_written_png_holds_the_same_pixels(tmp_path, channels):
    image = chw(noise(channels=channels))
    write_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file).reshape(5, 7, channels), noise(channels=channels))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_png(chw(noise()), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(self: object, file: io.BytesIO, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"a\.png: cannot be written \(No space left"):
        write_png(chw(noise()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_target_folder_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be written.*folder exists"):
        write_png(chw(noise()), tmp_path / "nil" / "a.png")


@pytest.mark.parametrize("shape", [(5, 4, 4), (4, 4)])
def test_only_images_are_written(tmp_path, shape):
    with pytest.raises(ValueError, match="write_png takes uint8"):
        write_png(torch.zeros(shape, dtype=torch.uint8), tmp_path / "a.png")
    with pytest.raises(ValueError, match="write_png takes uint8"):
        write_png(torch.zeros(3, 4, 4), tmp_path / "a.png")
    with pytest.raises(ValueError, match="write_png takes uint8"):
        write_png(torch.zeros(3, 4, 4, dtype=torch.uint16), tmp_path / "a.png")


def test_16_grey_bits_survive_writing_and_reading(tmp_path):
    values = torch.tensor([[[0, 1, 128, 257, 40_000, 65_534, 65_535]]], dtype=torch.uint16)
    write_png(values, tmp_path / "a.png")
    again, alpha = split_alpha(tmp_path / "a.png", keep_grey=True, keep_16_bits=True)
    assert again.dtype == torch.uint16
    assert again.tolist() == values.tolist()
    assert alpha is None
    assert to_uint16(to_float(again)).tolist() == values.tolist()
    assert split_alpha(tmp_path / "a.png")[0].dtype == torch.uint8


def png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit values [H, W, 2 to 4], which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width, channels = values.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_read_whole_or_told(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, channels), np.uint16)
    (tmp_path / "wide.png").write_bytes(png(values))
    colour, alpha = split_alpha(tmp_path / "wide.png", keep_grey=True, keep_16_bits=True)
    planes = chw(values.astype(np.int32))
    number = channels if channels == 3 else channels - 1
    assert colour.dtype == torch.uint16
    assert torch.equal(colour.int(), planes[:number])
    assert alpha is None if channels == 3 else torch.equal(alpha.int(), planes[number:])
    remarks = []
    read_image(tmp_path / "wide.png", alpha="black", remarks=remarks)
    assert remarks == ["16 bits a channel read as 8"]
    if channels == 3:
        assert torch.equal(read_image(tmp_path / "wide.png"), (planes >> 8).byte())


@pytest.mark.parametrize("layout", [{}, {"compression": "zlib"}, {"byteorder": ">"},
                                    {"compression": "zlib", "predictor": True},
                                    {"tile": (16, 16)}])  # fmt: skip
@pytest.mark.parametrize("channels", [3, 4])
def test_a_tiff_of_16_bits_is_read_whole(tmp_path, layout, channels):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 65536, (20, 33, channels), np.uint16)
    extra = ["unassalpha"] if channels == 4 else None
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=extra, **layout)
    colour, alpha = split_alpha(tmp_path / "a.tif", keep_16_bits=True)
    assert torch.equal(colour.int(), chw(values.astype(np.int32))[:3])
    assert (alpha is None) == (channels == 3)
    if alpha is not None:
        assert torch.equal(alpha.int(), chw(values.astype(np.int32))[3:])


def test_16_bits_and_orientation_go_together(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 65536, (2, 3, 3), np.uint16)
    orientation = [(ORIENTATION, "H", 1, 6, False)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=orientation)
    colour, _ = split_alpha(tmp_path / "a.tif", keep_16_bits=True)
    assert torch.equal(colour.int(), chw(np.rot90(values, -1).astype(np.int32)))


def test_layouts_that_pillow_cannot_read_whole_are_read_with_8_bits_and_told(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, 3), np.uint16)
    data = png(values)
    key = struct.pack(">HHH", *map(int, values[0, 0]))  # one colour is transparent
    chunk = struct.pack(">I", 6) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    picture = read_picture(tmp_path / "a.png", keep_16_bits=True)
    assert picture.colour.dtype == torch.uint8
    assert picture.remark == "16 bits a channel read as 8"


def test_every_16_bit_level_comes_back_from_its_float():
    levels = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    assert to_uint16(to_float(levels)).tolist() == levels.tolist()
    assert to_uint16(torch.tensor([-0.1, 1.1])).tolist() == [0, 65535]
