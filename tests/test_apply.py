"""Photographs enlarged several at once, files read and written beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ganlab.cli import main
from ganlab.commands import apply
from ganlab.commands.apply import evaluate_folder, upscale_files
from ganlab.errors import RecipeError
from ganlab.images.files import ImageError, read_image, split_alpha, write_png

SIDES = {"a": (20, 24), "b": (20, 24), "c": (20, 24), "d": (24, 20), "e": (20, 24)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run."""
    folder = tmp_path_factory.mktemp("apply")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        "iterations = 2\nbatch_size = 2\nd_steps = 0\n[plugins]\n"
        "dead_leaves = { crop = 16, num_images = 2, size = 32 }\n"
        "bicubic = {}\nencoder_decoder = { width = 4 }\npixel_loss = {}\n"
    )
    command = ["run", str(recipe), "--runs", str(folder / "runs"), "--name", "done"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "runs" / "done"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Images of two sizes, the second with alpha."""
    rng = torch.Generator().manual_seed(0)
    for name, (height, width) in SIDES.items():
        channels = 4 if name == "b" else 3
        image = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=rng)
        write_png(image, tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in SIDES]


def enlarged(trained: Path, files: list[Path], output: Path) -> list[str]:
    return list(upscale_files(str(trained), files, output, 256, "last", "cpu"))


@pytest.mark.parametrize(("pixels", "batches"), [(256 * 256, [3, 1, 1]), (15_360, [2, 1, 1, 1])])
def test_photographs_enlarged_together_are_those_enlarged_alone(
    trained: Path,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixels: int,
    batches: list[int],
) -> None:
    monkeypatch.setitem(apply.TOGETHER, "cpu", pixels)
    shown = []
    whole = apply.upscale
    monkeypatch.setattr(apply, "upscale", lambda *a: shown.append(len(a[1])) or whole(*a))
    lines = enlarged(trained, files, tmp_path / "together")
    assert shown == batches
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "together" / file.name) for file in files
    ]
    assert lines[3].endswith(": 20x24 -> 80x96")
    for file in files:
        enlarged(trained, [file], tmp_path / "alone")
        one, other = (split_alpha(tmp_path / way / file.name) for way in ("together", "alone"))
        # a convolution may round otherwise in a batch of another size
        assert (one[0].int() - other[0].int()).abs().max() <= 1
        assert (one[1] is None) == (other[1] is None) == (file.stem != "b")
        assert one[1] is None or torch.equal(one[1], other[1])


def test_what_comes_before_a_damaged_file_is_made_and_told(
    trained: Path, files: list[Path], tmp_path: Path
) -> None:
    files[2].write_bytes(files[2].read_bytes()[:60])
    lines = []
    with pytest.raises(ImageError, match=r"c\.png"):
        for line in upscale_files(str(trained), files, tmp_path / "out", 256, "last", "cpu"):
            lines.append(line)
    assert [line.partition(":")[0][-5:] for line in lines] == ["a.png", "b.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_a_file_is_told_once_it_is_written(
    trained: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = apply.write_png

    def full(image: torch.Tensor, path: Path) -> None:
        if path.name == "b.png":
            raise ImageError(f"{path}: cannot be written: No space left on device")
        whole(image, path)

    monkeypatch.setattr(apply, "write_png", full)
    lines = []
    with pytest.raises(ImageError, match=r"b\.png: cannot be written"):
        for line in upscale_files(str(trained), files, tmp_path / "out", 256, "last", "cpu"):
            assert Path(line.partition(":")[0]).is_file()
            lines.append(line)
    assert len(lines) == 1


def test_no_more_files_are_read_ahead_than_told() -> None:
    read: list[int] = []
    beside = apply.beside(lambda number: read.append(number) or number, range(20))
    for number in range(20):
        assert next(beside) == number
        assert len(read) <= number + 1 + apply.AHEAD


def test_a_folder_scored_in_groups_has_the_figures_of_its_images(
    trained: Path, tmp_path: Path
) -> None:
    rng = torch.Generator().manual_seed(0)
    for name, side in (("a", 40), ("b", 40), ("c", 48), ("d", 40)):
        image = torch.randint(0, 256, (3, side, 48), dtype=torch.uint8, generator=rng)
        for folder in ("all", name):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_png(image, tmp_path / folder / f"{name}.png")
    found = evaluate_folder(str(trained), tmp_path / "all", "last", "cpu")
    assert list(found["images"]) == ["a.png", "b.png", "c.png", "d.png"]
    for name in "abcd":
        alone = evaluate_folder(str(trained), tmp_path / name, "last", "cpu")
        for who in ("generator", "bicubic"):
            expected = alone["images"][f"{name}.png"][who]
            # one rounded pixel more or less, where a batch rounds otherwise
            assert found["images"][f"{name}.png"][who] == pytest.approx(expected, rel=1e-3)
    assert read_image(tmp_path / "all" / "c.png").shape == (3, 48, 48)


def seen(path: Path) -> tuple[str, torch.Tensor]:
    """Pillow's mode of a file, and its values."""
    with Image.open(path) as image:
        values = np.asarray(image).astype(np.int32)
    return image.mode, torch.from_numpy(values)


@pytest.mark.parametrize(
    ("channels", "dtype", "bits", "mode"),
    [
        (1, torch.uint8, None, "L"),
        (2, torch.uint8, None, "LA"),
        (3, torch.uint8, None, "RGB"),
        (1, torch.uint16, None, "I;16"),
        (1, torch.uint16, 8, "L"),
        (1, torch.uint8, 16, "I;16"),
        (4, torch.uint8, 8, "RGBA"),
    ],
)
def test_a_picture_keeps_its_channels_and_its_bits(
    trained: Path, tmp_path: Path, channels: int, dtype: torch.dtype, bits: int | None, mode: str
) -> None:
    image = torch.randint(0, 256, (channels, 20, 24)).to(dtype)
    if dtype == torch.uint16:
        image = (image.int() * 251).to(dtype)
    write_png(image, tmp_path / "x.png")
    options = ["--bits", str(bits)] if bits else []
    command = ["upscale", str(trained), str(tmp_path / "x.png"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found, values = seen(tmp_path / "out" / "x.png")
    assert found == mode
    assert values.shape[:2] == (80, 96)


def test_16_bits_and_8_bits_are_the_same_picture(trained: Path, tmp_path: Path) -> None:
    deep = (torch.randint(0, 256, (1, 20, 24)).int() * 257).to(torch.uint16)
    write_png(deep, tmp_path / "deep.png")
    write_png((deep.int() // 257).to(torch.uint8), tmp_path / "flat.png")
    files = [tmp_path / "deep.png", tmp_path / "flat.png"]
    lines = enlarged(trained, files, tmp_path / "out")
    assert len(lines) == 2
    wide, narrow = (seen(tmp_path / "out" / file.name)[1] for file in files)
    assert len(wide.unique()) > 256
    # 8 bits are rounded twice: each channel, and then their mean
    assert ((wide / 257) - narrow).abs().max() <= 1.01


def test_a_generator_that_only_enlarges_keeps_every_grey_level(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        apply,
        "upscale",
        lambda _, lr, scale, tile: lr.repeat_interleave(4, 2).repeat_interleave(4, 3),
    )
    for dtype, most in ((torch.uint8, 256), (torch.uint16, 65536)):
        image = torch.randint(0, most, (1, 20, 24)).int().to(dtype)
        write_png(image, tmp_path / f"{most}.png")
        enlarged(trained, [tmp_path / f"{most}.png"], tmp_path / "out")
        _, values = seen(tmp_path / "out" / f"{most}.png")
        assert torch.equal(values[::4, ::4], image[0].int())


@pytest.mark.parametrize(("channels", "what"), [(3, "colours"), (2, "an alpha channel")])
def test_16_bits_are_refused_where_they_cannot_be_written(
    trained: Path, tmp_path: Path, channels: int, what: str
) -> None:
    write_png(torch.randint(0, 256, (channels, 20, 24)).byte(), tmp_path / "x.png")
    with pytest.raises(RecipeError, match=f"x.png: has {what}; only grey images"):
        list(
            upscale_files(str(trained), [tmp_path / "x.png"], tmp_path / "o", 64, "last", "cpu", 16)
        )
