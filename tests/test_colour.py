"""Colour profiles: pixels become sRGB, or keep their profile; none is dropped in silence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageCms

from ganlab import ImageError, read_image
from ganlab.cli import main
from ganlab.images import colour
from ganlab.images.colour import _ADOBE, _P3, _SRGB, _SRGB_CURVE, conversion, made_profile
from ganlab.images.files import read_picture

P3 = made_profile("Display P3", _P3, _SRGB_CURVE)
ADOBE = made_profile("Adobe RGB", _ADOBE, (563 / 256,))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LINEAR = made_profile("linear", _SRGB, (1.0,))
COLOURS = np.array([[[230, 40, 40], [30, 200, 60], [20, 30, 220], [128, 128, 128]]], np.uint8)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey pixels, made from one of colours: its curve alone."""
    tone = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"desc": colour._text("grey"), b"cprt": colour._text("none"),
            b"wtpt": colour._xyz((0.9642, 1, 0.8249)), b"kTRC": tone + b"\0\0"}  # fmt: skip
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += key + struct.pack(">II", start + len(body), len(value))
        body += value
    rest = P3[4:16] + b"GRAY" + P3[20:128] + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(rest) + 4) + rest


def to_srgb(values: np.ndarray, primaries: tuple[float, ...], gamma: float | None) -> np.ndarray:
    """sRGB of colours, computed in float64 from the definitions; both whites are D65."""

    def matrix(xy: tuple[float, ...]) -> np.ndarray:
        x, y = np.array(xy).reshape(4, 2).T
        xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
        return xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])

    unit = values / 255
    low = unit <= 0.04045
    linear = unit**gamma if gamma else np.where(low, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    linear = linear @ np.linalg.solve(matrix(_SRGB), matrix(primaries)).T
    linear = linear.clip(0, 1)
    shown = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * shown


def save(path: Path, pixels: np.ndarray = COLOURS, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def levels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(int)


def with_chunk(path: Path, kind: bytes, data: bytes) -> Path:
    file = path.read_bytes()
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(file[:33] + chunk + file[33:])
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(
    ("profile", "primaries", "gamma"), [(P3, _P3, None), (ADOBE, _ADOBE, 563 / 256),
                                        (LINEAR, _SRGB, 1.0)]
)  # fmt: skip
def test_colours_with_a_profile_become_those_of_srgb(tmp_path, suffix, profile, primaries, gamma):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", icc_profile=profile, **options)
    remarks = []
    found = levels(read_image(path, remarks=remarks))
    assert np.abs(found - to_srgb(COLOURS, primaries, gamma)).max() <= 2
    assert np.abs(found - COLOURS).max() > 8
    assert remarks[0].startswith("colours converted from '") and remarks[0].endswith("' to sRGB")


@pytest.mark.parametrize("profile", [None, SRGB, made_profile("own", _SRGB, _SRGB_CURVE)])
def test_srgb_in_any_words_leaves_every_pixel_as_it_is(tmp_path, profile):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = save(tmp_path / "a.png", pixels, **({"icc_profile": profile} if profile else {}))
    remarks = []
    assert np.array_equal(levels(read_image(path, remarks=remarks)), pixels)
    assert remarks == []


@pytest.mark.parametrize(
    ("chunks", "primaries", "gamma"),
    [
        ({b"cICP": bytes([12, 13, 0, 1])}, _P3, None),
        ({b"cICP": bytes([1, 13, 0, 1]), b"gAMA": struct.pack(">I", 100_000)}, None, None),
        ({b"gAMA": struct.pack(">I", 100_000)}, _SRGB, 1.0),
        ({b"gAMA": struct.pack(">I", 45_455)}, None, None),
        ({b"gAMA": struct.pack(">I", 45_455),
          b"cHRM": struct.pack(">8I", *(round(100_000 * v) for v in _SRGB))}, None, None),
        ({b"gAMA": struct.pack(">I", 45_455),
          b"cHRM": struct.pack(">8I", *(round(100_000 * v) for v in _P3))}, _P3, 2.2),
        ({b"sRGB": b"\0", b"gAMA": struct.pack(">I", 100_000)}, None, None),
    ],
)  # fmt: skip
def test_the_chunks_of_a_png_say_what_its_colours_are(tmp_path, chunks, primaries, gamma):
    path = save(tmp_path / "a.png")
    for kind, data in chunks.items():
        with_chunk(path, kind, data)
    expected = COLOURS if primaries is None else to_srgb(COLOURS, primaries, gamma)
    found = levels(read_image(path))
    assert np.abs(found - expected).max() <= (0 if primaries is None else 2)


def test_adobe_rgb_that_only_exif_tells_is_converted(tmp_path):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65535, 0xA005: {1: "R03"}}
    path = save(tmp_path / "a.jpg", COLOURS.repeat(16, 0).repeat(16, 1), exif=exif, quality=100,
                subsampling=0)  # fmt: skip
    found = levels(read_image(path))[8:9, 8::16]
    assert np.abs(found - to_srgb(COLOURS, _ADOBE, 563 / 256)).max() <= 4


def test_grey_levels_follow_their_curve_and_stay_grey(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)[None]
    path = save(tmp_path / "a.png", ramp, icc_profile=grey_profile(1.0))
    found = read_image(path, keep_grey=True)
    expected = to_srgb(ramp[..., None].repeat(3, 2), _SRGB, 1.0)[:, :, 0]
    assert found.shape[0] == 1
    assert np.abs(found[0].numpy() - expected).max() <= 1
    # many grey pictures have a profile of colours
    path = save(tmp_path / "b.png", ramp, icc_profile=P3)
    assert np.array_equal(read_image(path, keep_grey=True)[0].numpy(), ramp)


def test_alpha_and_palettes_are_converted_too(tmp_path):
    rgba = np.concatenate([COLOURS, np.full((1, 4, 1), 128, np.uint8)], 2)
    picture = read_picture(save(tmp_path / "a.png", rgba, icc_profile=P3))
    expected = to_srgb(COLOURS, _P3, None)
    assert np.abs(levels(picture.colour) - expected).max() <= 2
    assert picture.alpha.unique().tolist() == [128]
    palette = Image.fromarray(COLOURS).quantize(4)
    palette.save(tmp_path / "b.png", icc_profile=P3)
    assert np.abs(levels(read_image(tmp_path / "b.png")) - expected).max() <= 3


@pytest.mark.parametrize("profile", [b"none", SRGB[:200], bytes(3000), grey_profile(2.2)])
def test_a_profile_that_cannot_be_used_is_told(tmp_path, profile):
    path = save(tmp_path / "a.png", icc_profile=profile)
    remarks = []
    assert np.array_equal(levels(read_image(path, remarks=remarks)), COLOURS)
    assert remarks[0].startswith("its colour profile cannot be used and is left out")


@pytest.mark.parametrize("code", [[9, 16, 0, 1], [9, 18, 0, 1], [0, 0, 0, 0]])
def test_colours_of_high_dynamic_range_are_told(tmp_path, code):
    remarks = []
    read_image(with_chunk(save(tmp_path / "a.png"), b"cICP", bytes(code)), remarks=remarks)
    assert "cannot be used" in remarks[0]


@pytest.mark.parametrize("points", [(0,) * 8, (1,) * 8, (31270, 0) * 4, (2**32 - 1,) * 8])
def test_primaries_that_are_no_colours_are_told(tmp_path, points):
    remarks = []
    path = with_chunk(save(tmp_path / "a.png"), b"cHRM", struct.pack(">8I", *points))
    assert np.array_equal(levels(read_image(path, remarks=remarks)), COLOURS)
    assert "cannot be used" in remarks[0]


def test_cmyk_without_a_profile_is_told(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    remarks = []
    read_image(tmp_path / "a.jpg", remarks=remarks)
    assert remarks == ["CMYK without a colour profile, converted by a simple formula"]


def test_without_littlecms_a_picture_with_a_profile_is_refused(tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise ImportError("no module")

    conversion.cache_clear()
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", missing)
    with pytest.raises(ImageError, match=r"a\.png: has a colour profile, and this Pillow was"):
        read_image(save(tmp_path / "a.png", icc_profile=P3))
    assert read_image(save(tmp_path / "b.png")).shape == (3, 1, 4)


def seen(path: Path) -> np.ndarray:
    """The colours that a viewer with colour management shows."""
    with Image.open(path) as image:
        profile = image.info.get("icc_profile")
        if image.mode == "I;16":
            shown = Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8))
        else:
            shown = image.convert("L" if image.mode == "L" else "RGB")
        if profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            shown = ImageCms.profileToProfile(
                shown, source, ImageCms.createProfile("sRGB"), 1, outputMode="RGB",
                flags=ImageCms.Flags.NOOPTIMIZE,
            )  # fmt: skip
    return np.asarray(shown.convert("RGB")).astype(int)


@pytest.mark.parametrize("bits", ["8", "16"])
@pytest.mark.parametrize("kind", ["icc", "cicp", "gama", "grey", "srgb", "none"])
def test_an_enlarged_picture_shows_the_colours_of_its_original(tmp_path, monkeypatch, kind, bits):
    from ganlab.commands import upscale

    class Scaled:
        scale, device, dtype = 2, torch.device("cpu"), torch.float32

    def nearest(images: torch.Tensor) -> torch.Tensor:
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)

    monkeypatch.setattr(upscale, "load_for_use", lambda *_: (Scaled(), nearest, None))
    monkeypatch.setattr("ganlab.runs.reference.find_run", Path)
    grey, path = np.array([[20, 90, 160, 230]], np.uint8), tmp_path / "a.png"
    if kind == "grey":
        save(path, grey, icc_profile=grey_profile(1.0))
    else:
        save(path, **({"icc_profile": {"icc": P3, "srgb": SRGB}[kind]} if kind in ("icc", "srgb")
                      else {}))  # fmt: skip
    chunks = {"cicp": (b"cICP", bytes([12, 13, 0, 1])), "gama": (b"gAMA", struct.pack(">I", 10**5))}
    if kind in chunks:
        with_chunk(path, *chunks[kind])
    command = ["upscale", "run", str(path), "-o", str(tmp_path / "out"), "--bits", bits]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    after = seen(tmp_path / "out" / "a.png")[::2, ::2]
    before = levels(read_image(path))
    assert np.abs(before - after).max() <= 2
