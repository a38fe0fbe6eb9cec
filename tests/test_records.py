"""A run folder read back: figures, scores of each image, the crops that it keeps."""

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.images.files import read_image, write_png
from ganlab.plugin import EvaluatedImage
from ganlab.runs.pictures import KEPT, KINDS, keep_pictures, picture, read_crops
from ganlab.runs.records import RunRecord, read_run

RECIPE = """\
iterations = 6
batch_size = 2
evaluate_every = 2
checkpoint_every = 3
watch_every = 2
report_every = 1

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = {}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    generator = torch.Generator().manual_seed(0)
    for part in ("photos", "held_out"):
        (folder / part).mkdir()
        for name in ("a", "b"):
            image = torch.randint(0, 256, (3, 240, 48), dtype=torch.uint8, generator=generator)
            write_png(image, folder / part / f"{name}.png")
    (folder / "game.toml").write_text(RECIPE)
    command = ["run", str(folder / "game.toml"), "--runs", str(folder), "--name", "one"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "one"


@pytest.fixture(scope="module")
def record(folder: Path) -> RunRecord:
    return read_run(folder)


def test_a_run_is_read_back_whole(record: RunRecord) -> None:
    assert (record.seed, record.state, record.sign) == (0, "done", 1)
    assert [e.iteration for e in record.evaluations] == [2, 4, 6]
    assert [*record.series["D/adversarial"].iterations] == [1, 2, 3, 4, 5, 6]
    # every second, and 1, 2 and 4 iterations after the game began
    assert [*record.series["gradient/G/pixel_loss"].iterations] == [2, 3, 4, 5, 6]
    assert not any(name.startswith("evaluation/") for name in record.series)
    assert record.recipe["plugins"]["bicubic"]["scale"] == 4
    assert record.status["peak_memory"] > 1e6
    assert len(record.manifest["code"]) == 64


def test_the_mean_over_images_is_the_figure_of_the_evaluation(record: RunRecord) -> None:
    for evaluation in record.evaluations:
        assert len(evaluation.images) == 2
        for name in ("psnr_y", "ssim_y", "hf_ratio"):
            mean = sum(scores[name] for scores in evaluation.images.values()) / 2
            assert mean == pytest.approx(evaluation.figures[name], rel=1e-8)
    assert record.bicubic.keys() == record.evaluations[0].images.keys()
    psnr = sum(scores["psnr_y"] for scores in record.bicubic.values()) / 2
    assert psnr == pytest.approx(record.status["bicubic"]["psnr_y"], rel=1e-8)


def test_an_evaluation_knows_its_training_time(record: RunRecord) -> None:
    times = [evaluation.seconds for evaluation in record.evaluations]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] <= record.status["seconds"] + 0.1


def test_the_best_evaluation_is_the_best_by_the_recipes_metric(record: RunRecord) -> None:
    best = max(record.evaluations, key=lambda e: e.figures["psnr_y"])
    assert record.best is best
    assert record.status["best"][0] == best.iteration
    assert record.last is record.evaluations[-1]


def test_a_figure_that_was_not_finite_is_nan(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes((folder / "recipe.toml").read_bytes())
    (tmp_path / "stats.jsonl").write_text('{"iteration": 1, "G/x": null}\n{"iteration": 2, "G')
    record = read_run(tmp_path)
    assert [*map(math.isnan, record.series["G/x"].values)] == [True]
    assert record.last is record.best is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a run folder"):
        read_run(tmp_path)


def test_the_crops_are_cut_from_the_images_and_the_weights(folder: Path, record: RunRecord) -> None:
    assert len(record.crops) == 2
    for number, crop in enumerate(record.crops):
        assert (crop.height, crop.width, crop.scale) == (192, 48, 4)
        assert crop.top % 4 == crop.left % 4 == 0
        images = {k: read_image(picture(folder / "pictures", number, k)) for k in KINDS}
        photograph = read_image(next((folder.parent / "held_out").glob(f"{Path(crop.name).stem}*")))
        rows = slice(crop.top, crop.top + crop.height)
        assert torch.equal(images["hr"], photograph[:, rows, crop.left : crop.left + crop.width])
        assert images["lr"].shape == (3, 48, 12)
        assert images["sr"].shape == images["bicubic"].shape == images["hr"].shape
        assert not torch.equal(images["sr"], images["bicubic"])


def evaluated(name: str, size: int = 16, quality: float = 30.0, sr: int = 0) -> EvaluatedImage:
    hr = torch.zeros(3, size, size, dtype=torch.uint8)
    lr = hr[:, ::4, ::4]
    answer = torch.full_like(hr, sr)
    return EvaluatedImage(name, hr, lr, answer, hr, {}, {"psnr_y": quality})


def test_the_crop_is_where_the_contrast_is(tmp_path: Path) -> None:
    hr = torch.zeros(3, 400, 400, dtype=torch.uint8)
    hr[:, 300:340:2, 8:48] = 255
    keep_pictures(
        tmp_path, [EvaluatedImage("x", hr, hr[:, ::4, ::4], hr, hr, {}, {"psnr_y": 1.0})], 4
    )
    (crop,) = read_crops(tmp_path)
    assert crop.top <= 300
    assert crop.top + crop.height >= 340
    assert crop.left <= 8


def test_of_many_images_the_worst_of_bicubic_are_kept(tmp_path: Path) -> None:
    images = [evaluated(f"{i}", quality=float(i)) for i in reversed(range(KEPT + 5))]
    keep_pictures(tmp_path, images, 4)
    assert [crop.name for crop in read_crops(tmp_path)] == [str(i) for i in range(KEPT)]


def test_a_later_evaluation_rewrites_the_answers_alone(tmp_path: Path) -> None:
    keep_pictures(tmp_path, [evaluated("x", sr=1)], 4)
    before = picture(tmp_path, 0, "hr").stat().st_mtime_ns
    keep_pictures(tmp_path, [evaluated("x", sr=2)], 4)
    assert read_image(picture(tmp_path, 0, "sr")).unique().tolist() == [2]
    assert picture(tmp_path, 0, "hr").stat().st_mtime_ns == before
