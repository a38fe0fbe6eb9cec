"""`ganlab score`: pictures against their originals, without a run."""

import json
import os
from pathlib import Path

import pytest
import torch
from children import fresh
from click.testing import CliRunner, Result
from marks import posix
from torch import Tensor

from ganlab.cli import main
from ganlab.commands.score import score_files
from ganlab.errors import RecipeError
from ganlab.images.files import read_image, write_png
from ganlab.images.metrics import psnr, ssim
from ganlab.images.resampling import resize, to_float, to_uint8


def ganlab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def picture(seed: int, *shape: int) -> Tensor:
    """A smooth picture, uint8."""
    coarse = torch.rand(1, shape[0], 6, 6, generator=torch.Generator().manual_seed(seed))
    return to_uint8(resize(coarse, (shape[1], shape[2])))[0]


def noisy(image: Tensor, step: int = 3) -> Tensor:
    return (image.int() + step * (torch.arange(image.shape[-1]) % 2)).clamp(0, 255).byte()


def write(folder: Path, pictures: dict[str, Tensor]) -> Path:
    for name, image in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(image, folder / name)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run, and photographs beside it."""
    folder = tmp_path_factory.mktemp("score")
    write(folder / "hr", {"a.png": picture(0, 3, 64, 72), "b.png": picture(1, 3, 61, 67),
                          "grey.png": picture(2, 1, 48, 48)})  # fmt: skip
    recipe = folder / "tiny.toml"
    recipe.write_text(
        "iterations = 2\nbatch_size = 2\nd_steps = 0\n[plugins]\n"
        "dead_leaves = { crop = 16, num_images = 2, size = 32 }\nradial_spectrum = {}\n"
        "bicubic = {}\nencoder_decoder = { width = 4 }\npixel_loss = {}\n"
    )
    assert ganlab("run", recipe, "--runs", folder / "runs", "--name", "done").exit_code == 0
    return folder


def test_the_scores_of_files_are_those_of_eval(trained: Path) -> None:
    small = {}
    for path in sorted((trained / "hr").iterdir()):
        image = read_image(path)
        size = tuple(side // 4 for side in image.shape[-2:])
        image = image[:, : 4 * size[0], : 4 * size[1]]
        small[f"{path.stem}_x4.png"] = to_uint8(resize(to_float(image[None]), size))[0]
    lr = write(trained / "lr", small)
    run, sr, hr = trained / "runs" / "done", trained / "sr", trained / "hr"
    assert ganlab("upscale", run, *lr.iterdir(), "-o", sr).exit_code == 0
    of_run = json.loads(ganlab("eval", run, "--data", hr, "--json").stdout)
    command = ("score", sr, hr, "--lr", lr, "--recipe", trained / "tiny.toml", "--json")
    of_files = json.loads(ganlab(*command).stdout)
    assert of_files["scale"] == of_files["shave"] == 4
    assert of_files["images"].keys() == {"a.png", "b.png", "grey.png"}
    for name, row in of_run["images"].items():
        assert of_files["images"][name]["SR"] == pytest.approx(row["generator"], rel=1e-12), name
        assert of_files["images"][name]["bicubic"] == pytest.approx(row["bicubic"], rel=1e-12)
    assert of_files["mean"]["SR"] == pytest.approx(of_run["mean"]["generator"], rel=1e-12)
    assert "radial_spectrum" in of_files["mean"]["SR"]


def test_bicubic_of_the_published_lr_images_has_the_published_figures(shared_data: Path) -> None:
    hr = shared_data / "Set5"
    found = score_files(hr, hr, shared_data / "golden" / "Set5" / "x4")
    assert found["mean"]["bicubic"]["psnr_y"] == pytest.approx(28.43, abs=0.01)
    assert found["mean"]["bicubic"]["ssim_y"] == pytest.approx(0.811, abs=0.001)


def test_two_files_are_scored_with_the_shave_that_is_asked_for(tmp_path: Path) -> None:
    image = picture(0, 3, 40, 44)
    write(tmp_path, {"hr.png": image, "anything.png": noisy(image)})
    found = score_files(tmp_path / "anything.png", tmp_path / "hr.png", shave=5)
    scores = found["mean"]["SR"]
    one, other = noisy(image)[None], image[None]
    assert scores["psnr_y"] == psnr(one, other, 5).item()
    assert scores["ssim_rgb"] == ssim(one, other, 5, "rgb").item()
    assert scores.keys() == {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"}
    shown = ganlab("score", tmp_path / "anything.png", tmp_path / "hr.png", "--scale", 2)
    assert "mean of 1" in shown.stdout
    assert f"hr.png: {tmp_path / 'anything.png'}" in shown.stdout


def test_the_psnr_of_equal_pictures_is_null_in_json(tmp_path: Path) -> None:
    write(tmp_path, {"hr.png": picture(0, 3, 40, 44)})
    shown = ganlab("score", tmp_path / "hr.png", tmp_path / "hr.png", "--scale", 2, "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(shown.stdout, parse_constant=refuse)
    assert found["mean"]["SR"]["psnr_y"] is None and found["mean"]["SR"]["ssim_y"] == 1


@pytest.mark.parametrize(
    ("original", "enlarged"),
    [
        ("baby.png", "baby.png"),
        ("baby.png", "baby_x4.png"),
        ("0801.png", "0801x4.png"),
        ("img_001_SRF_4_HR.png", "img_001_SRF_4_SR.png"),
        ("img_001_SRF_4_HR.png", "img_001.png"),
        ("baby_GT.png", "baby_out.png"),
        ("baby.png", "baby_ESRGAN_SRx4_official.png"),
        ("city/baby.png", "city/baby-SR.png"),
    ],
)
def test_usual_endings_do_not_part_a_picture_from_its_original(
    tmp_path: Path, original: str, enlarged: str
) -> None:
    right, wrong = picture(0, 3, 32, 32), picture(1, 3, 32, 32)
    hr = write(tmp_path / "hr", {original: right, "bab.png": wrong, "img_00.png": wrong})
    sr = write(tmp_path / "sr", {enlarged: right, "bab.png": wrong, "img_00.png": wrong})
    found = score_files(sr, hr, scale=4, metrics=["psnr_y"])
    assert found["files"][original] == str(sr / enlarged)
    assert all(row["SR"] == {"psnr_y": float("inf")} for row in found["images"].values())


def test_names_that_differ_in_what_looks_like_an_ending_stay_apart(tmp_path: Path) -> None:
    pictures = {f"fox{n}.png": picture(n, 3, 32, 32) for n in (1, 2, 3)}
    pictures |= {"a.png": picture(4, 3, 32, 32), "a_b.png": picture(5, 3, 32, 32)}
    hr = write(tmp_path / "hr", pictures)
    sr = write(tmp_path / "sr", {n.replace(".", "_NET_x4."): p for n, p in pictures.items()})
    found = score_files(sr, hr, scale=4)
    assert all(row["SR"]["psnr_y"] == float("inf") for row in found["images"].values())


def test_a_name_that_several_originals_could_have_belongs_to_none(tmp_path: Path) -> None:
    hr = write(tmp_path / "hr", {f"fox{n}.png": picture(n, 3, 32, 32) for n in (1, 2)})
    sr = write(tmp_path / "sr", {n: picture(1, 3, 32, 32) for n in ("fox1.png", "fo.png")})
    with pytest.raises(RecipeError, match=r"no picture for .*fox2.png.*no original for .*fo.png"):
        score_files(sr, hr, scale=4)


@pytest.mark.parametrize(
    ("sr", "options", "message"),
    [
        (["a.png"], {}, "no picture for {hr}/b.png"),
        (["a.png", "b.png", "c.png"], {}, "no original for {sr}/c.png"),
        (["a.png", "a_x4.png", "b.png"], {}, "{sr}/a_x4.png and {sr}/a.png are both of {hr}/a.png"),
        (["a.png", "b.png"], {"scale": None}, "give --scale N"),
        (["a.png", "b.png"], {"metrics": ["psnr"]}, "--metric psnr: not computed"),
        (["a.png", "b.png"], {"metrics": ["lr_psnr"]}, "(it needs --lr)"),
        (["a.png", "b.png"], {"shave": 12}, "a.png: too small to score with 12 pixels"),
        (["a.png", "b.png"], {"scale": 5}, None),
        (["a.png", "cut/b.png"], {}, "no picture for {hr}/b.png"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_message(
    tmp_path: Path, sr: list[str], options: dict, message: str | None
) -> None:
    folders = {"hr": tmp_path / "hr", "sr": tmp_path / "sr"}
    write(folders["hr"], {name: picture(0, 3, 32, 32) for name in ("a.png", "b.png")})
    write(folders["sr"], {name: picture(0, 3, 32, 32) for name in sr})
    if message is None:  # pictures of the whole size need no crop
        assert score_files(folders["sr"], folders["hr"], **options)["scale"] == 5
        return
    with pytest.raises(RecipeError) as caught:
        score_files(folders["sr"], folders["hr"], **({"scale": 4} | options))
    assert message.format(**folders) in str(caught.value)


def test_sizes_that_differ_are_told_with_both_files(tmp_path: Path) -> None:
    hr = write(tmp_path / "hr", {"a.png": picture(0, 3, 33, 32)})
    sr = write(tmp_path / "sr", {"a.png": picture(0, 3, 32, 28)})
    result = ganlab("score", sr, hr, "--scale", 4)
    assert result.exit_code == 2
    assert f"{sr / 'a.png'}: 28x32 pixels, but {hr / 'a.png'} has 32x32 after cropping" in (
        result.stderr
    )
    lr = write(tmp_path / "lr", {"a.png": picture(0, 3, 8, 9)})
    write_png(picture(0, 3, 32, 32), sr / "a.png")
    wrong = ganlab("score", sr, hr, "--lr", lr, "--scale", 4)
    assert f"{lr / 'a.png'}: 9x8 pixels, which x4 do not make the 32x32" in wrong.stderr
    assert "folders only or files only" in ganlab("score", sr / "a.png", hr, "--scale", 4).stderr


def test_a_picture_of_other_colours_is_scored_as_its_original_is(tmp_path: Path) -> None:
    grey = picture(0, 1, 32, 32)
    coloured = grey.expand(3, -1, -1)
    write(tmp_path, {"grey.png": grey, "coloured.png": coloured})
    for sr, hr in (("grey", "coloured"), ("coloured", "grey")):
        found = score_files(tmp_path / f"{sr}.png", tmp_path / f"{hr}.png", scale=2)
        (image,) = found["images"].values()
        assert image["SR"]["psnr_rgb"] == float("inf")


@posix
def test_a_name_that_is_no_utf_8_is_printed_with_escapes(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(0, 3, 24, 24)})
    name = os.fsdecode(b"f\xfcr.png")
    try:
        (tmp_path / "a.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    done = fresh("score", ".", ".", "--scale", 2, cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0, done.stderr
    assert r"f\udcfcr.png" in done.stdout
