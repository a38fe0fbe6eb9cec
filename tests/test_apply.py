"""Photographs enlarged several at once, files read and written beside it."""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child
from click.testing import CliRunner
from PIL import Image

from ganlab.cli import main
from ganlab.commands import many, upscale
from ganlab.commands.apply import evaluate_folder
from ganlab.commands.upscale import upscale_files
from ganlab.commands.upscale_jobs import jobs_of
from ganlab.images import png, resampling
from ganlab.images.files import ImageError, read_image, split_alpha, write_png
from ganlab.images.png import Packed
from ganlab.images.resampling import resize, to_float, to_uint8, to_uint16
from ganlab.system import begin_peak_memory, peak_memory

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


def enlarging(trained: Path, files: list[Path], output: Path, tile: int) -> Iterator[str]:
    return upscale_files(str(trained), jobs_of(files, output), output, tile, "last", "cpu")


def enlarged(trained: Path, files: list[Path], output: Path, tile: int = 256) -> list[str]:
    return list(enlarging(trained, files, output, tile))


def nearest(images: torch.Tensor) -> torch.Tensor:
    """A generator x4."""
    return images.repeat_interleave(4, 2).repeat_interleave(4, 3)


def use(monkeypatch: pytest.MonkeyPatch, generator: Callable[..., torch.Tensor]) -> None:
    """Use another generator than that of the run."""
    load = upscale.load_for_use
    monkeypatch.setattr(upscale, "load_for_use", lambda *a: (load(*a)[0], generator, None))


@pytest.mark.parametrize(("pixels", "batches"), [(256 * 256, [3, 1, 1]), (15_360, [2, 1, 1, 1])])
def test_photographs_enlarged_together_are_those_enlarged_alone(
    trained: Path,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixels: int,
    batches: list[int],
) -> None:
    monkeypatch.setitem(upscale.TOGETHER, "cpu", pixels)
    shown = []
    bands = upscale.bands

    def spied(generator: object, images: list[torch.Tensor], *rest: int) -> object:
        if len(images[0]) == 3:  # alpha comes alone
            shown.append(len(images))
        return bands(generator, images, *rest)

    monkeypatch.setattr(upscale, "bands", spied)
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


def test_a_file_is_told_once_it_is_written(
    trained: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = upscale.write_strips

    def full(path: Path, height: int, packed: Iterable[Packed], profile: bytes | None) -> None:
        if path.name == "b.png":
            raise ImageError(f"{path}: cannot be written: No space left on device")
        whole(path, height, packed, profile)

    monkeypatch.setattr(upscale, "write_strips", full)
    lines = []
    with pytest.raises(ImageError, match=r"b\.png: cannot be written"):
        for line in enlarging(trained, files, tmp_path / "out", 256):
            assert Path(line.partition(":")[0]).is_file()
            lines.append(line)
    assert len(lines) == 1


def test_no_more_files_are_read_ahead_than_told() -> None:
    read: list[int] = []
    beside = many.beside(lambda number: read.append(number) or number, range(20))
    for number in range(20):
        assert next(beside) == number
        assert len(read) <= number + 1 + many.AHEAD


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
        (3, torch.uint8, 16, "RGB"),
        (4, torch.uint8, 16, "RGBA"),
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
    use(monkeypatch, nearest)
    for dtype, most in ((torch.uint8, 256), (torch.uint16, 65536)):
        image = torch.randint(0, most, (1, 20, 24)).int().to(dtype)
        write_png(image, tmp_path / f"{most}.png")
        enlarged(trained, [tmp_path / f"{most}.png"], tmp_path / "out")
        _, values = seen(tmp_path / "out" / f"{most}.png")
        assert torch.equal(values[::4, ::4], image[0].int())


@pytest.mark.parametrize(
    ("channels", "bits"), [(1, 8), (2, 8), (3, 8), (4, 8), (1, 16), (2, 16), (3, 16), (4, 16)]
)
@pytest.mark.parametrize("size", [(150, 20), (20, 150), (65, 130)])
def test_a_picture_enlarged_in_bands_is_the_whole_picture(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    bits: int,
    size: tuple[int, int],
) -> None:
    use(monkeypatch, nearest)
    image = torch.randint(0, 2**bits, (channels, *size))
    image = image.to(torch.uint8 if bits == 8 else torch.uint16)
    parts = [png.pack(strip) for strip in png.strips([image])]
    png.write_strips(tmp_path / "x.png", size[0], parts)
    enlarged(trained, [tmp_path / "x.png"], tmp_path / "out", tile=70)
    colour, alpha = split_alpha(tmp_path / "out" / "x.png", keep_grey=True, keep_16_bits=True)
    has_alpha = channels in (2, 4)
    assert torch.equal(colour.int(), nearest(image[None, : channels - has_alpha].int())[0])
    assert (alpha is not None) == has_alpha
    if alpha is not None:
        rounded = to_uint8 if bits == 8 else to_uint16
        whole = rounded(resize(to_float(image[None, -1:]), (4 * size[0], 4 * size[1])))[0]
        assert (alpha.int() - whole.int()).abs().max() <= 1
        assert (alpha != whole).float().mean() < (1e-3 if bits == 8 else 0.1)


@pytest.mark.parametrize(("fault", "kept"), [(RuntimeError, ["a.png"]), (KeyboardInterrupt, [])])
def test_a_fault_in_the_middle_of_a_picture_leaves_no_half_file(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: type[BaseException],
    kept: list[str],
) -> None:
    shown = []

    def failing(images: torch.Tensor) -> torch.Tensor:
        shown.append(len(images))
        if len(shown) == 4:  # the picture before has one tile, this one has five
            raise fault
        return nearest(images)

    use(monkeypatch, failing)
    for name, height in (("a", 20), ("b", 200)):
        write_png(torch.randint(0, 256, (3, height, 30)).byte(), tmp_path / f"{name}.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    lines = []
    with pytest.raises(fault):
        for line in enlarging(trained, files, tmp_path / "out", 64):
            lines.append(line)
    assert len(lines) == len(kept)
    assert [path.name for path in (tmp_path / "out").iterdir()] == kept


@pytest.mark.parametrize(("tile", "advised"), [(96, True), (64, False)])
def test_too_large_a_tile_is_told(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int, advised: bool
) -> None:
    use(monkeypatch, lambda images: images.expand(2**40, -1, -1, -1).clone())
    write_png(torch.zeros(3, 100, 100, dtype=torch.uint8), tmp_path / "x.png")
    command = ["upscale", trained, tmp_path / "x.png", "-o", tmp_path / "out", "--tile", tile]
    result = CliRunner().invoke(main, [*map(str, command)], catch_exceptions=False)
    assert result.exit_code == 1
    assert result.stderr.startswith("out of memory")
    assert ("tiles of 96 pixels: a smaller --tile needs less" in result.stderr) == advised
    assert not list((tmp_path / "out").iterdir())


def test_a_file_grows_while_its_picture_is_computed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "STRIP", 2**12)
    sizes = []

    def watching(images: torch.Tensor) -> torch.Tensor:
        sizes.append(sum(file.stat().st_size for file in (tmp_path / "out").iterdir()))
        return nearest(images)

    use(monkeypatch, watching)
    write_png(torch.randint(0, 256, (3, 300, 30)).byte(), tmp_path / "x.png")
    enlarged(trained, [tmp_path / "x.png"], tmp_path / "out", tile=64)
    whole = (tmp_path / "out" / "x.png").stat().st_size
    assert sizes[0] == 0 and sizes == sorted(sizes)
    assert sizes[-1] > 0.5 * whole


def test_pictures_of_many_sizes_leave_no_matrices_behind(trained: Path, tmp_path: Path) -> None:
    before = dict(resampling._MATRICES)
    files = []
    for side in range(30, 40):  # with alpha, and a generator that contains a bicubic enlargement
        files.append(tmp_path / f"{side}.png")
        write_png(torch.randint(0, 256, (4, side, 2 * side)).byte(), files[-1])
    enlarged(trained, files, tmp_path / "out")
    evaluate_folder(str(trained), tmp_path / "out", "last", "cpu")
    assert resampling._MATRICES.keys() == before.keys()


def enlarge_a_megapixel(trained: str, file: str, output: str) -> None:
    """Prints by how many bytes the peak of memory grows."""
    load = upscale.load_for_use
    upscale.load_for_use = lambda *a: (load(*a)[0], nearest, None)  # type: ignore[assignment]
    small = Path(file).with_name("small.png")
    enlarged(Path(trained), [small], Path(output) / "small")
    begin_peak_memory()
    before = peak_memory()
    enlarged(Path(trained), [Path(file)], Path(output), tile=64)
    print(peak_memory() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="counts peak memory from a moment on")
def test_memory_does_not_grow_with_the_picture(trained: Path, tmp_path: Path) -> None:
    write_png(torch.zeros(3, 16, 16, dtype=torch.uint8), tmp_path / "small.png")
    write_png(torch.zeros(3, 1000, 1000, dtype=torch.uint8), tmp_path / "x.png")
    child = Child(
        trained, tmp_path / "x.png", tmp_path / "out", cwd=tmp_path, function=enlarge_a_megapixel
    )
    assert child.wait() == 0, child.stderr
    # the result takes 48 MB in 8 bits, and 192 in float32
    assert int(child.stdout) < 120e6
