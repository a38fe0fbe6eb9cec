"""Odd files of tensors give one line: no code runs, and memory stays within the file."""

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import odd_files
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tiny import TINY

from ganlab import tensor_files
from ganlab.checkpoint import checkpoint_file, read_state
from ganlab.cli import main
from ganlab.errors import GanlabError, RecipeError
from ganlab.files import write_text
from ganlab.images.files import write_png
from ganlab.plugin import Plugin
from ganlab.runs.data import file_sha256
from ganlab.tensor_files import OddFile, read_safetensors, seal
from ganlab.toolbox.weights import read_weights

PICKLES = [*odd_files.pickles(Path("trace"))]
SAFETENSORS = [*odd_files.safetensors_files()]
ARRAYS = [*odd_files.arrays(Path("trace"))]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


class Reader(Plugin):
    """Reads weights."""


def refused(file: Path) -> str:
    with pytest.raises(RecipeError) as raised:
        read_weights(Reader(), file)
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert str(file) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("odd", PICKLES)
def test_an_odd_file_of_torch_is_one_line_for_weights(tmp_path: Path, odd: str) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(odd_files.pickles(tmp_path / "ran")[odd])
    said = refused(file)
    assert not (tmp_path / "ran").exists()
    if "code" in odd:
        assert "weights_only" not in said  # torch's advice to switch the safety off


@pytest.mark.parametrize("odd", PICKLES)
def test_an_odd_checkpoint_is_one_line_though_its_digest_fits(tmp_path: Path, odd: str) -> None:
    path = checkpoint_file(tmp_path, 7)
    path.write_bytes(odd_files.pickles(tmp_path / "ran")[odd])
    with pytest.raises(GanlabError, match="not a checkpoint that ganlab wrote") as raised:
        read_state(path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("odd", SAFETENSORS)
def test_an_odd_file_of_safetensors_is_one_line(tmp_path: Path, odd: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(odd_files.safetensors_files()[odd])
    refused(file)


@pytest.mark.parametrize("odd", ARRAYS)
def test_an_odd_file_of_arrays_is_one_line(tmp_path: Path, odd: str) -> None:
    file = tmp_path / "w.npz"
    file.write_bytes(odd_files.arrays(tmp_path / "ran")[odd])
    refused(file)
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", None)
    file = tmp_path / "w.pt"
    file.write_bytes(odd_files.pickles(tmp_path)["bomb"])
    assert "compressed" in refused(file)
    monkeypatch.setattr(tensor_files, "MOST_ARRAYS", 1000)
    file = tmp_path / "w.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2000))
    assert "unpacks to 2,000 bytes" in refused(file)


def test_sound_files_are_read_as_before(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(3, 4), "count": torch.tensor(3), "b": torch.ones(2).half()}
    torch.save({"params_ema": weights, "other": [1]}, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "w.safetensors")
    for name in ("zip.pth", "old.pth", "w.safetensors"):
        found = read_weights(Reader(), tmp_path / name)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], value) for key, value in weights.items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_nan_is_found_in_any_kind_of_number(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.ones(70)
    value[-1] = torch.nan
    save_file({"sound": torch.ones(3), "layer.weight": value.to(dtype)}, tmp_path / "w.safetensors")
    assert "layer.weight" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "about", ["[" * 50_000, '{"iteration": 1e999}', '{"iteration": "x"}', "[1]", "3", "{}"]
)
def test_odd_metadata_is_one_line(tmp_path: Path, about: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, file, {"ganlab": about})
    with pytest.raises(OddFile, match="does not say its iteration"):
        tensor_files.iteration_in(read_safetensors(file)[1])


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "r.toml").write_text(TINY)
    for words in (["--max-iterations", 2],):
        invoke("run", folder / "r.toml", "--runs", folder, "--name", "r", *words)
    (folder / "photos").mkdir()
    write_png(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), folder / "photos" / "a.png")
    return folder / "r"


@pytest.fixture
def spoiled(run: Path) -> Iterator[Path]:
    """The weights of the run with one nan; they are put back afterwards."""
    file = run / "generator.safetensors"
    whole = file.read_bytes()
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    (_, about) = read_safetensors(file)
    told = json.loads(about["ganlab"])
    del told["sha256"]
    save_file(tensors, file, seal(tensors, told))  # an attacker's digest fits
    yield file
    file.write_bytes(whole)


def test_weights_that_are_not_finite_are_refused_by_the_tensor(spoiled: Path) -> None:
    run, photos = spoiled.parent, spoiled.parents[1] / "photos"
    first = next(iter(load_file(spoiled)))
    (run.parent / "i.toml").write_text(
        f"{TINY}initial_weights = {{ generator = {json.dumps(str(spoiled))} }}\n"
    )
    for words in (
        ["eval", run, "--data", photos],
        ["upscale", run, photos / "a.png", "-o", run.parent / "out"],
        ["pack", run, "-o", run.parent / "p.zip"],
        ["run", run.parent / "i.toml", "--dry-run"],
    ):
        result = invoke(*words)
        assert result.exit_code in (1, 2), result.output
        assert f"its tensor {first} holds a number that is not finite" in result.stderr
    assert not (run.parent / "p.zip").exists()


def test_weights_of_other_shapes_are_refused_before_they_are_read(run: Path) -> None:
    file = run / "generator.safetensors"
    whole = file.read_bytes()
    shape = {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}
    try:
        header = json.dumps({"a": shape}).encode()
        with file.open("wb") as opened:
            opened.write(struct.pack("<Q", len(header)) + header)
            opened.truncate(8 + len(header) + 2**34)  # 16 GiB of nothing
        result = invoke("upscale", run, run.parent / "photos" / "a.png", "-o", run.parent / "out")
        assert result.exit_code == 1
        assert "weights of another network" in result.stderr
    finally:
        file.write_bytes(whole)


def put(run: Path, state: object) -> None:
    path = checkpoint_file(run / "checkpoints", 2)
    torch.save(state, path)
    write_text(path.with_suffix(".sha256"), f"{file_sha256(path)}  {path.name}\n")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("iteration", 3, "no state of iteration 2"),
        ("iteration", "2", "no state of iteration 2"),
        ("networks", [1], "its networks are missing"),
        ("plugins", None, "its plugins are missing"),
        ("best", "x", "its best is wrong"),
        ("scores", {"psnr_y": "x"}, "its scores is wrong"),
        ("threads", None, "its threads is wrong"),
        ("device", 3, "its device is wrong"),
        ("options", 3, "its options is wrong"),
        ("options", {"G_optimizer": [3]}, "its options is wrong"),
        ("networks.G", {"a": 1}, "other than the weights"),
        ("networks.G_optimizer", {"state": 1}, "is of another network"),
        ("networks.G_optimizer", {"state": {}, "param_groups": [3]}, "is of another network"),
        ("networks.G", {}, "is of another network"),
    ],
)
def test_a_checkpoint_of_another_form_is_refused(
    run: Path, key: str, value: object, words: str
) -> None:
    path = checkpoint_file(run / "checkpoints", 2)
    whole, digest = path.read_bytes(), path.with_suffix(".sha256").read_bytes()
    state = torch.load(path, weights_only=True)
    place, *name = key.split(".")
    if name:
        state[place][name[0]] = value
    else:
        state[place] = value
    try:
        put(run, state)
        result = invoke("resume", run)
        assert result.exit_code == 1, result.output
        assert words in result.stderr
        assert "Traceback" not in result.stderr
    finally:
        path.write_bytes(whole)
        path.with_suffix(".sha256").write_bytes(digest)


@pytest.mark.parametrize("name", ["²", "٣", "9" * 5000, "x", "-1"])
def test_an_odd_name_of_a_digest_is_passed_over(run: Path, name: str, tmp_path: Path) -> None:
    from ganlab.checkpoint import checkpoints_of

    (tmp_path / f"{name[:200]}.sha256").write_text("x")
    assert checkpoints_of(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 2**20, b"x  y\n"])
def test_an_odd_digest_is_a_damaged_checkpoint(run: Path, content: bytes) -> None:
    file = checkpoint_file(run / "checkpoints", 2).with_suffix(".sha256")
    whole = file.read_bytes()
    try:
        file.write_bytes(content)
        result = invoke("checkpoints", run, "--json")
        assert [one["sound"] for one in json.loads(result.stdout)["checkpoints"]] == [False]
    finally:
        file.write_bytes(whole)
