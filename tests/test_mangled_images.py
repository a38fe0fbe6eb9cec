"""Damaged and hostile pictures: each is read or named, none ends in a traceback or runs away."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ganlab import ImageError, read_image
from ganlab.cli import main
from ganlab.images.colour import _P3, _SRGB_CURVE, made_profile
from ganlab.images.files import read_picture

FORMATS = {
    "png": {"icc_profile": made_profile("P3", _P3, _SRGB_CURVE)},
    "jpg": {"icc_profile": made_profile("P3", _P3, _SRGB_CURVE), "progressive": True},
    "webp": {"quality": 90},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "jfif": {"format": "JPEG"},
}


def originals() -> dict[str, bytes]:
    small = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    picture = Image.fromarray(small).resize((56, 48), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for suffix, options in FORMATS.items():
        file = io.BytesIO()
        extra = {} if suffix == "bmp" else {"exif": exif}
        picture.save(file, **{"format": Image.registered_extensions()[f".{suffix}"], **extra,
                              **options})  # fmt: skip
        found[suffix] = file.getvalue()
    return found


def mangled(data: bytes, rng: np.random.Generator) -> bytes:
    """One kind of damage: flipped bits, a cut, zeros, or a part that is repeated."""
    values = bytearray(data)
    a, b = sorted(int(i) for i in rng.integers(1, len(values), 2))
    kind = int(rng.integers(5))
    if kind == 0:
        for place in rng.integers(0, len(values), 4):
            values[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del values[b:]
    elif kind == 2:
        values[a : a + 40] = bytes(len(values[a : a + 40]))
    elif kind == 3:
        values[a:a] = values[b : b + 100]
    else:  # the head, where the sizes are
        values[int(rng.integers(0, 60))] = int(rng.integers(256))
    return bytes(values)


def check_mangled(folder: Path, number: int) -> None:
    files, rng = originals(), np.random.default_rng(0)
    (folder / "data").mkdir()
    for suffix, data in files.items():
        for i in range(number // len(files)):
            (folder / "data" / f"{i:04}.{suffix}").write_bytes(data)
    call = ["data", "verify", str(folder / "data")]
    assert CliRunner().invoke(main, [*call, "--write"], catch_exceptions=False).exit_code == 0
    refused = 0
    for file in sorted((folder / "data").glob("0*")):
        data = file.read_bytes()
        while (changed := mangled(data, rng)) == data:
            pass
        file.write_bytes(changed)
        for keep in (False, True):
            try:
                read_picture(file, keep_16_bits=keep, keep_profile=keep)
            except ImageError as fault:
                assert str(fault).startswith(f"{file}: ")
                refused += not keep
    assert refused > number / 5
    result = CliRunner().invoke(main, call, catch_exceptions=False)
    assert result.exit_code == 1
    # with digests each of them is noticed, also where the decoder sees nothing wrong
    count = number // len(files) * len(files)
    assert result.stdout.splitlines()[-1] == f"{count:,} images, {count:,} with a fault"


@pytest.mark.filterwarnings("ignore")
def test_mangled_images_are_read_or_named_and_digests_notice_all(tmp_path):
    check_mangled(tmp_path, 180)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_mangled_images_are_read_or_named(tmp_path):
    check_mangled(tmp_path, 1002)


# --- hostile pictures ----------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_chunk_that_unpacks_to_far_more_bytes_is_refused(tmp_path, kind):
    packed = zlib.compress(bytes(2**26), 9)
    head = {b"iCCP": b"p\0\0", b"zTXt": b"p\0\0", b"iTXt": b"p\0\1\0\0\0"}[kind]
    data = originals()["png"]
    (tmp_path / "a.png").write_bytes(data[:33] + chunk(kind, head + packed) + data[33:])
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as an image \(Decompressed"):
        read_image(tmp_path / "a.png")


def test_a_tiff_of_many_directories_is_refused_after_the_second(tmp_path, monkeypatch):
    single = struct.pack("<2sHI", b"II", 42, 8)
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8),
               (279, 4, 1, 1)]  # fmt: skip
    size = 2 + 12 * len(entries) + 4
    for number in range(2000):
        single += struct.pack("<H", len(entries))
        single += b"".join(struct.pack("<HHII", *entry) for entry in entries)
        single += struct.pack("<I", 8 + size * (number + 1) if number < 1999 else 0)
    (tmp_path / "a.tif").write_bytes(single)
    from PIL.TiffImagePlugin import TiffImageFile

    seeks, seek = [], TiffImageFile._seek
    monkeypatch.setattr(TiffImageFile, "_seek", lambda f, n: seeks.append(n) or seek(f, n))
    with pytest.raises(ImageError, match=r"a\.tif: holds 2 or more frames or pages"):
        read_image(tmp_path / "a.tif")
    assert max(seeks) == 1


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path):
    data = originals()["jpg"]
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:-2] + 2000 * data[last:-2] + data[-2:])
    with pytest.raises(ImageError, match=r"a\.jpg: has 2,\d\d\d scans"):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(data)
    assert read_image(tmp_path / "b.jpg").shape[0] == 3


def test_directories_of_exif_that_go_in_a_circle_end(tmp_path):
    entry = struct.pack(">HHII", 0x8769, 4, 1, 8)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + struct.pack(">I", 8)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 8, 8)
