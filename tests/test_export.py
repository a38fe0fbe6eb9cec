"""Exports open elsewhere, and give the generator's pictures there; what does not is not kept."""

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from ganlab_plugins.compact import Compact
from ganlab_plugins.edsr import EDSR
from ganlab_plugins.encoder_decoder import EncoderDecoder
from ganlab_plugins.espcn import ESPCN
from ganlab_plugins.fsrcnn import FSRCNN
from ganlab_plugins.rrdb import RRDB
from ganlab_plugins.span import SPAN
from ganlab_plugins.srcnn import SRCNN
from ganlab_plugins.srresnet import SRResNet
from ganlab_plugins.swinir_light import SwinIRLight
from safetensors.torch import load_file
from tiny import TINY
from torch import Tensor, nn

from ganlab import api, session
from ganlab.cli import main
from ganlab.errors import GanlabError, RecipeError
from ganlab.export import formats
from ganlab.export.comparison import Difference, difference, photographs
from ganlab.export.formats import FORMATS, Opened, Safetensors, Source
from ganlab.export.program import AnySize, program_of
from ganlab.images.resampling import resize
from ganlab.images.upscaling import upscale
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.tensor_files import about_in, metadata_in


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose generator is quick to export."""
    file = tmp_path_factory.mktemp("export") / "tiny.toml"
    file.write_text(TINY.replace("encoder_decoder = { width = 4 }", "espcn = {}"))
    folder, _ = session.start(load_recipe(file), "cpu", Limits(None, None), file.parent, "mine")
    return folder.path


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def files_in(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_weights_leave_with_recipe_scale_licence_and_a_card(run: Path, tmp_path: Path) -> None:
    done = export(run, "--to", "safetensors", "--license", "MIT")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "exported" / "mine"
    assert files_in(folder) == ["README.md", "mine-x4.safetensors"]
    written, made = (
        load_file(folder / "mine-x4.safetensors"),
        load_file(run / "generator.safetensors"),
    )
    assert all(torch.equal(written[name], value) for name, value in made.items())
    about = about_in(metadata_in(folder / "mine-x4.safetensors"))
    assert (about["scale"], about["licence"], about["iteration"]) == (4, "MIT", 4)
    assert about["recipe"] == (run / "recipe.toml").read_text()
    assert 'license: "mit"' in (folder / "README.md").read_text()
    assert "differs from the generator by nothing" in done.output


def test_a_number_that_json_does_not_have_is_none(run: Path) -> None:
    done = export(run, "--to", "safetensors", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["levels"] == 0 and found["psnr"] is None


def test_a_file_of_weights_is_exported_as_its_run_is(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "friend.safetensors"
    moved.write_bytes((run / "generator.safetensors").read_bytes())
    for source, name in ((run / "generator.safetensors", "mine"), (moved, "friend")):
        found = api.export(source, "safetensors", "out")
        assert found.files == (Path(f"out/{name}-x4.safetensors"),)
    mine, friends = (load_file(f"out/{name}-x4.safetensors") for name in ("mine", "friend"))
    assert all(torch.equal(friends[name], value) for name, value in mine.items())


def test_a_file_that_is_there_stays_until_overwrite(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "mine-x4.safetensors"
    target.parent.mkdir()
    target.write_text("precious")
    (tmp_path / "out" / "README.md").write_text("my words")
    done = export(run, "--to", "safetensors", "-o", "out")
    assert done.exit_code == 2 and "exists; give --overwrite" in done.output
    assert target.read_text() == "precious"
    target.unlink()
    assert (
        "it was there already and is kept" in export(run, "--to", "safetensors", "-o", "out").output
    )
    assert (tmp_path / "out" / "README.md").read_text() == "my words"
    assert export(run, "--to", "safetensors", "-o", "out", "--overwrite").exit_code == 0
    assert "my words" not in (tmp_path / "out" / "README.md").read_text()


def test_a_file_with_other_pictures_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Safetensors.open

    def shifted(self: Safetensors, *files: Path) -> Opened:
        opened = true(self, *files)
        network = opened.network
        opened.network = lambda lr: network(lr) + 1 / 255
        return opened

    monkeypatch.setattr(Safetensors, "open", shifted)
    done = export(run, "--to", "safetensors")
    assert done.exit_code == 1
    assert "does not give the generator's pictures in ganlab: a file in float32 may" in done.output
    assert "the file was not kept" in done.output
    assert files_in(tmp_path) == []
    assert not (tmp_path / "exported" / "mine").exists()


def test_the_command_offers_the_formats_that_there_are() -> None:
    (to,) = (option for option in main.commands["export"].params if option.name == "to")
    assert isinstance(to.type, click.Choice) and [*to.type.choices] == [*FORMATS]


@pytest.mark.parametrize(
    ("to", "missing", "extra"), [("onnx", "onnxscript", "export"), ("ncnn", "pnnx", "ncnn")]
)
def test_a_missing_package_is_named_with_its_extra(
    to: str, missing: str, extra: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda n: None if n == missing else find_spec(n))
    done = export(run, "--to", to)
    assert done.exit_code == 2
    assert done.output == f"--to {to} needs {missing}: pip install 'ganlab[{extra}]'\n"


def test_without_spandrel_weights_leave_and_it_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda n: None if n == "spandrel" else find_spec(n))
    done = export(run, "--to", "safetensors")
    assert done.exit_code == 0 and "pip install 'ganlab[export]'" in done.output


def test_what_cannot_be_exported_is_refused_in_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export(run, "--to", "safetensors", "--weights", "best")
    assert done.exit_code == 2 and "the run has not written these weights yet" in done.output
    done = export(run, "--to", "onnxx")
    assert done.exit_code == 2 and "'onnxx' is not one of" in done.output
    with pytest.raises(RecipeError, match="to = 'onnxx': one of safetensors, onnx, pt2, ncnn"):
        api.export(run, "onnxx")  # type: ignore[arg-type]
    strange = tmp_path / "strange.safetensors"
    strange.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    done = export(strange, "--to", "safetensors")
    assert done.exit_code == 2 and "name the run folder instead" in done.output
    toy = load_recipe(Path("toy/ring_r3gan"), ["iterations=1"])
    folder, _ = session.start(toy, "cpu", Limits(None, None), tmp_path, "toy")
    done = export(folder.path, "--to", "safetensors")
    assert done.exit_code == 2 and "it enlarges no images" in done.output
    assert not (tmp_path / "exported").exists()


def test_no_code_runs_because_a_file_of_weights_names_it(run: Path, tmp_path: Path) -> None:
    from ganlab.generator_weights import write_weights

    code = tmp_path / "evil.py"
    code.write_text("from pathlib import Path\nPath('ran').touch()\n")
    about = about_in(metadata_in(run / "generator.safetensors"))
    about.pop("sha256")
    about["recipe"] = about["recipe"].replace(
        "espcn = {}", f'espcn = {{use = "{code.as_posix()}"}}'
    )
    write_weights((load_file(run / "generator.safetensors"), about), tmp_path / "w.safetensors")
    done = export("w.safetensors", "--to", "safetensors")
    assert done.exit_code == 2 and "no installed plugin makes its generator" in done.output
    assert not (tmp_path / "ran").exists()


def test_the_best_generator_has_a_name_of_its_own(run: Path, tmp_path: Path) -> None:
    best = run / "best.safetensors"
    best.write_bytes((run / "generator.safetensors").read_bytes())
    try:
        for source, options in ((run, {"weights": "best"}), (best, {})):
            found = api.export(source, "safetensors", overwrite=True, **options)
            assert found.files == (Path("exported/mine-best/mine-best-x4.safetensors"),)
    finally:
        best.unlink()


class Unreadable(nn.Module):
    def forward(self, lr: Tensor) -> Tensor:
        return lr * float(lr.mean())


def test_a_network_that_is_no_graph_is_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match=r"cannot read this generator as one graph.*--to safe"):
        program_of(Unreadable(), 1, 3, half=False)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_graph_names_no_folder_and_no_line_of_code_of_this_machine(
    to: str, run: Path, tmp_path: Path
) -> None:
    for package in FORMATS[to].packages:
        pytest.importorskip(package)
    (file,) = api.export(run, to, "out").files  # type: ignore[arg-type]
    content = file.read_bytes()
    assert b"espcn" in content
    assert not re.findall(rb"\w*espcn\.py|program\.py|return self", content)


def test_an_onnx_file_takes_every_size_and_says_what_it_is(run: Path, tmp_path: Path) -> None:
    *_, onnxruntime = [pytest.importorskip(package) for package in FORMATS["onnx"].packages]
    done = export(run, "--to", "onnx", "-o", ".", "--license", "cc0-1.0")
    assert done.exit_code == 0, done.output
    session = onnxruntime.InferenceSession("mine-x4.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["ganlab"])
    assert (about["scale"], about["licence"]) == (4, "cc0-1.0")
    for height, width in ((7, 100), (64, 3)):
        lr = np.zeros((1, 3, height, width), np.float32)
        assert session.run(["sr"], {"lr": lr})[0].shape == (1, 3, 4 * height, 4 * width)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 7)])
def test_resize_as_a_convolution_is_the_same_enlargement(
    scale: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(2, 3, *size)
    expected = resize(images, (scale * size[0], scale * size[1]))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found = resize(images, (scale * size[0], scale * size[1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="whole number"):
        resize(images, (scale * size[0] + 1, scale * size[1]))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 30)])
def test_any_size_gives_what_upscale_gives(size: tuple[int, int]) -> None:
    def halving(images: Tensor) -> Tensor:
        assert images.shape[-2] % 8 == images.shape[-1] % 8 == 0
        return nn.functional.interpolate(nn.functional.max_pool2d(images, 8), scale_factor=16)

    network = nn.Module()
    network.forward = halving  # type: ignore[method-assign]
    lr = -torch.rand(1, 3, *size)  # a zero beyond the edge would be the maximum
    assert torch.equal(AnySize(network, 2)(lr), upscale(halving, lr, 2))


def test_a_difference_is_told_in_levels_and_in_db() -> None:
    pictures = photographs(3)
    found = difference(lambda lr: lr + 1 / 255, lambda lr: lr, pictures)
    assert found.levels == pytest.approx(1, abs=1e-4)
    assert found.psnr == pytest.approx(20 * math.log10(255), abs=1e-3)
    assert found.fault(half=False) and found.fault(half=True)
    assert not Difference(0.1, 80).fault(half=False)
    assert not Difference(2.0, 50).fault(half=True)
    assert str(found) == "at most 1 of 255 levels, PSNR 48.1 dB"
    assert str(difference(lambda lr: lr, lambda lr: lr, pictures)) == "nothing"
    with pytest.raises(GanlabError, match="not finite"):
        difference(lambda lr: lr * math.nan, lambda lr: lr, pictures)
    with pytest.raises(GanlabError, match=r"it makes \[1, 3, 64, 64\] in the place of \[1, 3, 128"):
        difference(lambda lr: lr, lambda lr: lr.repeat(1, 1, 2, 2), pictures)


def test_the_photographs_have_several_sizes_and_as_many_channels_as_the_generator_sees() -> None:
    sizes = [tuple(picture.shape[-2:]) for picture in photographs(3)]
    assert len({*sizes}) == 3 and any(h % 2 and w % 2 for h, w in sizes)
    assert all(len(picture[0]) == 4 and picture.std() > 0.05 for picture in photographs(4))


NETWORKS: dict[str, tuple[Any, int, set[str]]] = {
    "compact": (Compact(width=8, num_layers=2), 4, {"spandrel", "ncnn"}),
    "rrdb": (RRDB(width=8, num_blocks=1), 4, {"spandrel", "ncnn"}),
    "rrdb x2": (RRDB(width=8, num_blocks=1), 2, {"spandrel"}),
    "span": (SPAN(width=8), 4, {"spandrel", "ncnn"}),
    "swinir_light": (SwinIRLight(width=12, num_layers=2, num_blocks=2), 4, {"spandrel"}),
    "srresnet": (SRResNet(width=8, num_blocks=2), 4, {"ncnn"}),
    "edsr": (EDSR(width=8, num_blocks=2), 4, {"ncnn"}),
    "espcn": (ESPCN(), 3, {"ncnn"}),
    "fsrcnn": (FSRCNN(), 3, {"ncnn"}),
    "srcnn": (SRCNN(), 3, set()),
    "encoder_decoder": (EncoderDecoder(width=8), 4, set()),
    "encoder_decoder nearest": (EncoderDecoder(width=8, depth=2, global_skip="nearest"), 4, set()),
}


@pytest.mark.long
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")  # of torch's exporters
def test_every_generator_leaves_in_every_format_that_has_it(
    name: str, to: str, half: bool, tmp_path: Path
) -> None:
    plugin, scale, known = NETWORKS[name]
    for package in FORMATS[to].packages:
        pytest.importorskip(package)
    torch.manual_seed(0)
    generator = plugin.make_generator((3, 8, 8), (3, 8 * scale, 8 * scale)).eval()
    if isinstance(plugin, SPAN):  # untrained, its numbers are up to 30; those of a picture up to 1
        generator.upsampler[0].weight.data.mul_(0.03)
    made = FORMATS[to](Source(generator, scale, 3, {"iteration": 1}, half))
    files = [tmp_path / f"net{suffix}" for suffix in made.suffixes]
    if to == "ncnn" and to not in known:
        with pytest.raises(RecipeError):
            made.write(*files)
            made.open(*files)
        return
    made.write(*files)
    opened = made.open(*files)
    found = difference(opened.network, opened.expected, photographs(3))
    assert not found.fault(half)
    if to == "safetensors":
        assert opened.by.startswith("spandrel") == ("spandrel" in known)
