"""A score that is not finite on an image spoils no mean, no best generator and no comparison."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from ganlab import session
from ganlab.commands.apply import evaluate_folder
from ganlab.commands.score import score_files
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.report.model import Arm
from ganlab.report.statistics import interval
from ganlab.report.tables import compare
from ganlab.runs.folder import RunFolder
from ganlab.runs.means import is_better, left_out, means, means_of_all, told
from ganlab.runs.reading import Log
from ganlab.runs.records import read_run
from ganlab.words import summary

NAN, INF = math.nan, math.inf
OURS = {"a": {"psnr": 30.0}, "b": {"psnr": INF}, "c": {"psnr": 20.0}}
BICUBIC = {"a": {"psnr": 28.0}, "b": {"psnr": 25.0}, "c": {"psnr": NAN}}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([OURS], {"psnr": ["b"]}),
        ([OURS, BICUBIC], {"psnr": ["b", "c"]}),
        ([{"a": {"x": 1.0}}], {}),
        # who has no finite value at all decides about no image
        ([OURS, {name: {"psnr": NAN} for name in "abc"}], {"psnr": ["b"]}),
        ([{name: {"psnr": -INF} for name in "abc"}], {}),
    ],
)
def test_all_means_are_over_the_images_that_all_have(rows: list, expected: dict) -> None:
    assert left_out(*rows) == expected


def test_a_mean_is_over_finite_scores_and_absent_where_there_is_none() -> None:
    assert means(OURS) == {"psnr": 25.0}
    assert means(OURS, {"psnr": ["b", "c"]}) == {"psnr": 30.0}
    assert means(OURS, {"psnr": ["a", "b", "c"]}) == {"psnr": 25.0}
    assert means({"a": {"x": NAN}}) == means({}) == {}
    assert math.isnan(means_of_all({"a": {"x": NAN}}, {})["x"])


def test_what_is_left_out_is_told_by_name_and_count() -> None:
    assert told({"psnr": ["b"], "ssim": ["b"], "mine": []}, 5) == (
        "psnr, ssim: 1 of 5 images (b); mine"
    )
    assert told({"psnr": list("abcde")}) == "psnr: 5 images (a, b, c and 2 more)"


@pytest.mark.parametrize(
    ("figure", "scores", "best", "of_best", "sign", "better"),
    [
        (2.0, {}, 1.0, {}, 1, True),
        (2.0, {}, 1.0, {}, -1, False),
        (NAN, {}, 1.0, {}, 1, False),
        (INF, {}, 1.0, {}, 1, False),
        (-INF, {}, 1.0, {}, -1, False),
        # the best one had an easy image more, and is worse on the others
        (30.0, {"a": 30.0}, 59.5, {"a": 29.0, "b": 90.0}, 1, True),
        (30.0, {"a": 30.0}, 20.0, {"a": 31.0, "b": 9.0}, 1, False),
        (30.0, {"a": 30.0}, 20.0, {"b": 20.0}, 1, True),
    ],
)
def test_the_best_is_found_among_finite_figures_over_the_same_images(
    figure: float, scores: dict, best: float, of_best: dict, sign: int, better: bool
) -> None:
    assert is_better(figure, scores, best, of_best, sign) == better


PLUGIN = '''\
import math

import torch

from ganlab import Plugin, hookimpl


class Odd(Plugin):
    """Has scores and figures that are not finite now and then; one held-out image is flat."""

    flat: int = 1
    never: str = "nan"

    @hookimpl
    def evaluation_images(self):
        drawn = torch.Generator().manual_seed(0)
        images = {f"image{n}": torch.randint(256, (3, 32, 32), generator=drawn,
                  dtype=torch.uint8) for n in range(3)}
        return images | {f"flat{n}": torch.zeros(3, 32, 32, dtype=torch.uint8)
                         for n in range(self.flat)}

    @hookimpl
    def score_images(self, run, sr, hr):
        return {"never": float(self.never), "now_and_then": run.iteration if run.iteration > 2
                else math.inf, "not_of_bicubic": sr.float().mean() if run.progress.bicubic
                else torch.tensor(torch.nan)}

    @hookimpl
    def evaluate(self, run):
        return {"figure": [math.nan, math.inf, 4.0, 3.0, -math.inf][run.iteration - 1]}
'''
RECIPE = """\
iterations = 5
batch_size = 2
evaluate_every = 1
checkpoint_every = 2
watch_every = 0
best_metric = "figure"
best_is = "lowest"

[plugins]
dead_leaves = { crop = 16, num_images = 2, size = 32 }
bicubic = { scale = 4 }
encoder_decoder = { width = 4 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = {}
odd = { use = "./odd.py" }
"""


def made(folder: Path, *overrides: str) -> RunFolder:
    (folder / "odd.py").write_text(PLUGIN)
    file = folder / "odd.toml"
    file.write_text(RECIPE)
    run, code = session.start(load_recipe(file, overrides), "cpu", Limits(), folder / "runs")
    assert code == 0
    return run


def refused(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")


def test_a_flat_image_and_odd_figures_spoil_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path)
    status = json.loads(folder.status.read_text(), parse_constant=refused)
    assert status["best"] == [4, 3.0]
    assert all(math.isfinite(value) for value in status["scores"].values())
    assert math.isfinite(status["bicubic"]["psnr_y"])
    assert "never" not in status["scores"] | status["bicubic"]
    assert status["scores"]["now_and_then"] == 5
    assert "not_of_bicubic" not in status["bicubic"]
    assert status["left_out"]["hf_ratio"] == ["flat0"]
    assert status["left_out"]["figure"] == []
    for name in ("stats", "scores"):
        for line in getattr(folder, name).read_text().splitlines():
            json.loads(line, parse_constant=refused)
    (first, *_) = [line for line in list(Log(folder.stats)) if "evaluation/figure" in line]
    assert first["evaluation/figure"] is None
    err = capsys.readouterr().err
    assert "left out of the means: psnr_y, psnr_rgb, hf_ratio, lr_psnr: 1 of 4 images" in err
    told = summary(folder)
    assert "left out of the means" in told
    assert "nan" not in told.replace("not finite", "")
    record = read_run(folder.path)
    assert record.best.iteration == 4


def test_every_image_may_be_without_a_score(tmp_path: Path) -> None:
    folder = made(tmp_path, "best_metric=never", "best_is=highest", "patience=9")
    status = folder.read_status()
    assert status["best"] is None
    assert not folder.weights("best").is_file()
    assert sorted(status["left_out"]["never"]) == ["flat0", "image0", "image1", "image2"]


def test_arms_are_compared_over_the_images_that_all_their_runs_have(tmp_path: Path) -> None:
    ours, base = made(tmp_path, "iterations=1"), made(tmp_path, "iterations=1", "seed=0")
    lines = list(Log(ours.scores))
    scores = {name: lines[0]["images"][name]["psnr_y"] for name in ("image0", "image1", "image2")}
    lines[0]["images"]["image2"]["psnr_y"] = None  # as if it were infinite in one arm
    ours.scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = [Arm("base", (read_run(base.path),)), Arm("ours", (read_run(ours.path),))]
    found = compare("", arms, ["psnr_y"])
    rows = found.tables[0].rows
    expected = interval([(scores["image0"] + scores["image1"]) / 2 for _ in range(1)])
    flat = lines[0]["images"]["flat0"]["psnr_y"]
    if flat is not None:
        values = [scores["image0"], scores["image1"], flat]
        expected = interval([sum(values) / 3])
    assert rows[0].value.mean == pytest.approx(expected.mean)
    assert rows[1].difference.mean == 0
    assert any("image2" in note and "left out of the means" in note for note in found.notes)
    assert all(math.isfinite(row.scores["ours"].mean) for row in found.images.rows)


def test_eval_and_score_leave_a_black_picture_out_and_tell_it(tmp_path: Path) -> None:
    folder = made(tmp_path, "iterations=1")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32)).save(pictures / "black.png")
    drawn = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
    Image.fromarray(drawn).save(pictures / "noise.png")
    found = evaluate_folder(str(folder.path), pictures, "last", "cpu")
    assert found["left_out"]["hf_ratio"] == ["black.png"]
    assert (
        found["mean"]["generator"]["hf_ratio"]
        == (found["images"]["noise.png"]["generator"]["hf_ratio"])
    )
    scored = score_files(pictures, pictures, scale=4)
    assert scored["images"]["black.png"]["SR"]["psnr_y"] == INF
    assert math.isnan(scored["mean"]["SR"]["psnr_y"])  # of no picture: they are all equal
    assert scored["mean"]["SR"]["ssim_y"] == 1
