"""`ganlab bisect`: the change between two recipes that makes a figure worse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compare import recipe, run  # noqa: F401

from ganlab.compare.bisection import Bisection, Trial, lines
from ganlab.compare.difference import check_two
from ganlab.compare.mixing import Mixtures, arranged, spans
from ganlab.images.files import write_png
from ganlab.recipe.model import load_recipe, resolved
from ganlab.report.statistics import Interval

pytestmark = pytest.mark.usefixtures("few_samples")

# a figure that depends on the options alone, and a little on the seed
QUALITY = '''\
from ganlab import Plugin, hookimpl


class Quality(Plugin):
    """A figure that is 1, and worse when both options are true."""

    first: bool = False
    second: bool = False

    @hookimpl
    def evaluate(self, run):
        harm = float(self.first and self.second)
        return {"quality": 1 - harm * (1 + run.recipe.seed / 100)}
'''
GAME = """\
iterations = 8
batch_size = 2
evaluate_every = 8
watch_every = 0

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
encoder_decoder = { width = 4, num_blocks = 1 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = { weight = 1.0 }
ema = { decay = 0.5 }
adam = { learning_rate = 1e-3 }
quality = { use = "./quality.py" }
"""


def extending(recipe: Path, name: str, text: str) -> Path:  # noqa: F811
    settings, _, plugins = text.partition("[plugins]")
    file = recipe.with_name(f"{name}.toml")
    file.write_text(f'extends = "{recipe.name}"\n{settings}\n[plugins]\n{plugins}\n')
    return file


@pytest.fixture
def good(recipe: Path) -> Path:  # noqa: F811
    (recipe.parent / "quality.py").write_text(QUALITY)
    recipe.write_text(GAME)
    return recipe


QUICK = ("--set", "best_metric=quality", "--set", "iterations=1")


def found_in(
    good: Path, bad: object, *more: object, seeds: str = "0..1", code: int = 0
) -> tuple[dict[str, Any], str]:
    runs = good.parent / "runs"
    command = ("bisect", good, bad, "--seeds", seeds, "--runs", runs, *more)
    ended, stdout, stderr = run(*command, "--json")
    assert ended == code, stderr
    return json.loads(stdout), stderr


EIGHT = """\
report_every = 3
checkpoint_every = 500
[plugins]
ema = { decay = 0.49 }
pixel_loss = { weight = 1.01 }
adam = { learning_rate = 1e-1, eps = 2e-8 }
label_smoothing = { real_label = 0.99 }
quality = { second = true }
"""


def test_a_slip_among_eight_harmless_differences_is_found_in_few_runs(good: Path) -> None:
    bad = extending(good, "bad", EIGHT)
    found, stderr = found_in(good, bad, seeds="0..2")
    assert len(found["changes"]) == 8
    (number,) = found["found"]
    assert found["changes"][number - 1] == "plugins.adam.learning_rate: 0.001 -> 0.1"
    assert found["alone"]["numbers"] == [number]
    assert found["alone"]["bad"] and 0.5 < found["share"] < 1.5
    # the two recipes, three halvings, and the change alone
    assert len(found["trials"]) <= 6
    assert found["made"] == 3 * len(found["trials"])
    assert "plan: at most 6 recipes x 3 seeds = 18 runs" in stderr
    assert "at most 18 to be made" in stderr

    # one run is lost; the same command makes that one again, and finds the same
    runs = good.parent / "runs"
    lost = Path(found["trials"][2]["runs"][1])
    lost.rename(lost.with_name("away"))
    (runs / "away" / "recipe.toml").unlink()
    again, _ = found_in(good, bad, seeds="0..2")
    assert (again["made"], again["reused"]) == (1, found["made"] - 1)
    assert again["found"] == found["found"] and again["share"] == found["share"]

    # runs in place of recipes are the same, and so is a comparison
    folders = [found["trials"][n]["runs"][0] for n in (0, 1)]
    of_runs, _ = found_in(good, folders[1], seeds="0..2")
    assert of_runs["made"] == 0 and of_runs["found"] == found["found"]
    assert "6 exist" in run("compare", good, bad, "--seeds", "0..2", "--runs", runs, "--plan")[2]


def test_two_changes_that_harm_only_together_are_both_found(good: Path) -> None:
    text = "report_every = 4\n[plugins]\nquality = { first = true, second = true }\n" \
           "ema = { decay = 0.49 }\npixel_loss = { weight = 1.01 }\n"  # fmt: skip
    found, stderr = found_in(good, extending(good, "bad", text), *QUICK)
    words = [found["changes"][number - 1] for number in found["found"]]
    assert words == [
        "plugins.quality.first: false -> true",
        "plugins.quality.second: false -> true",
    ]
    assert found["share"] == pytest.approx(1)
    assert "not bad by itself" in stderr


def test_a_plugin_file_with_other_code_is_a_change_that_is_walked(good: Path) -> None:
    away = good.parent / "away"
    away.mkdir()
    for part in ("photos", "held_out"):
        (away / part).symlink_to(good.parent / part)
    worse = QUALITY.replace("1 - harm", "-5 - harm").replace("/ 100", "/ 50")
    (away / "quality.py").write_text(worse.replace("* (1 +", "- run.recipe.seed / 90 * (1 +"))
    bad = away / "bad.toml"
    bad.write_text(good.read_text().replace("decay = 0.5 ", "decay = 0.49 "))
    found, _ = found_in(good, bad, *QUICK)
    (words,) = [found["changes"][number - 1] for number in found["found"]]
    assert words.startswith("plugins.quality: code ")
    assert found["alone"]["difference"]["mean"] < -5


def test_a_bad_recipe_that_diverges_is_bad_too(good: Path) -> None:
    text = "report_every = 4\n[plugins]\nema = { decay = 0.8 }\nadam = { learning_rate = 1e35 }\n"
    found, _ = found_in(good, extending(good, "bad", text))
    assert [found["changes"][n - 1] for n in found["found"]] == [
        "plugins.adam.learning_rate: 0.001 -> 1e+35"
    ]
    assert found["alone"]["lost"] == 2
    assert found["share"] is None


def test_recipes_without_held_out_images_are_refused_before_any_run(good: Path) -> None:
    without = ', evaluation_path = "held_out"', ", held_out_share = 0.0"
    good.write_text(good.read_text().replace(*without))
    bad = extending(good, "bad", "[plugins]\nema = { decay = 0.8 }")
    code, _, stderr = run("bisect", good, bad, "--runs", good.parent / "runs")
    assert code == 2
    assert "game has no held-out images, so there is no psnr_y" in stderr
    assert not (good.parent / "runs").exists()


def test_the_answer_in_words_names_the_change_and_its_share() -> None:
    good, bad = (Interval(value, value - 0.1, value + 0.1, 3, "t") for value in (0.0, -2.0))
    trials = [
        Trial("good", (), good, 0, False, True, ()),
        Trial("bad", (1, 2), bad, 0, True, True, ()),
        Trial("good-to-bad-2", (2,), bad, 0, True, False, ()),
    ]
    changes = ["a: 1 -> 2", "b: 1 -> 2"]
    found = Bisection("good", "bad", "psnr_y", True, [0, 1, 2], changes, [], trials, (2,))
    found.alone, found.share = trials[2], 1.0
    assert list(lines(found))[2:] == [
        "  no change: the good one",
        "  changes 1 to 2: psnr_y -2.00 [-2.10, -1.90]: bad",
        "  change 2: psnr_y -2.00 [-2.10, -1.90]: bad (not sure)",
        "found:",
        "  2. b: 1 -> 2",
        "by itself the change makes 100% of the whole difference: psnr_y -2.00 [-2.10, -1.90]",
        "0 runs made, 0 reused",
    ]


def test_a_recipe_not_shown_to_be_worse_ends_the_search_with_the_seeds_to_run(good: Path) -> None:
    bad = extending(good, "bad", "report_every = 4\n[plugins]\npixel_loss = { weight = 0.999 }\n")
    found, _ = found_in(good, bad, code=1)
    assert len(found["trials"]) == 2 and not found["found"]
    assert "bad is not shown to be worse than game" in found["notes"][0]
    code, stdout, _ = run("bisect", good, bad, "--seeds", "0..1", "--runs", good.parent / "runs")
    assert code == 1
    assert "show a difference of" in stdout and "4 reused" in stdout


def test_the_plan_runs_nothing(good: Path) -> None:
    code, stdout, stderr = run(
        "bisect", good, extending(good, "bad", EIGHT), "--runs", good.parent / "r", "--plan"
    )
    assert (code, stdout) == (0, "")
    assert "8 changes from game to bad:" in stderr
    assert "plan: at most 6 recipes x 3 seeds = 18 runs" in stderr
    assert "from a few timed iterations" in stderr
    assert not (good.parent / "r").exists()


@pytest.mark.parametrize(
    ("text", "more", "complaint"),
    [
        ("", [], "are the same recipe"),
        ("[plugins]\nema = { decay = 0.5 }", ["--seeds", "3"], "one seed has no interval"),
        ("[plugins]\nema = { decay = 0.5 }", ["--figure", "fid"], "it is not known whether"),
        ("[plugins]\nema = { decya = 0.5 }", [], "did you mean 'decay'"),
        ("[plugins]\nwasserstein = {}", [], "discriminator_loss must be provided by exactly one"),
        ("[plugins]\nimage_folder = { evaluation_path = 'others' }", [], "different held-out"),
    ],
)
def test_a_search_in_vain_is_refused_before_any_run(
    good: Path, text: str, more: list[str], complaint: str
) -> None:
    (good.parent / "others").mkdir()
    other = torch.randint(256, (3, 64, 64)).byte()
    write_png(other, good.parent / "others" / "other.png")
    runs = good.parent / "runs"
    code, _, stderr = run("bisect", good, extending(good, "bad", text), "--runs", runs, *more)
    assert code == 2
    assert complaint in stderr
    assert not runs.exists()


# --- mixtures ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(good: Path, tmp_path: Path) -> Callable[[Path], Mixtures]:
    folder = tmp_path / "mixtures"
    folder.mkdir()
    return lambda bad: Mixtures(*check_two(good, bad), folder)


def test_changes_that_make_no_recipe_without_each_other_are_one(
    good: Path, mixed: Callable[[Path], Mixtures]
) -> None:
    text = """[plugins]
ema = { decay = 0.8 }
bce = false
wasserstein = {}
gradient_penalty = {}
encoder_decoder = false
srresnet = { width = 4, num_blocks = 1 }
"""
    shifts = mixed(extending(good, "bad", text)).shifts
    keys = sorted(sorted(change.key for change in shift.changes) for shift in shifts)
    assert keys == [
        ["plugins.bce", "plugins.wasserstein"],
        ["plugins.ema.decay"],
        ["plugins.encoder_decoder", "plugins.srresnet"],
        ["plugins.gradient_penalty"],
    ]


def test_all_changes_of_one_place_end_in_the_bad_recipe_and_none_in_the_good_one(
    good: Path, mixed: Callable[[Path], Mixtures]
) -> None:
    bad = extending(good, "bad", EIGHT)
    of = mixed(bad)
    for numbers, file in (((), good), (range(1, 9), bad)):
        assert resolved(of.variant(numbers).recipe(0)) == resolved(load_recipe(file))
    between = [resolved(of.variant(range(1, n + 1)).recipe(0)) for n in range(9)]
    assert len(set(between)) == 9


def test_an_order_that_matters_is_a_change_of_its_own(
    good: Path, mixed: Callable[[Path], Mixtures]
) -> None:
    text = good.read_text()
    noise, color = "instance_noise = {}\n", "diff_augment = {}\n"
    good.write_text(text + noise + color)
    bad = good.with_name("bad.toml")
    bad.write_text(text + color + noise)
    of = mixed(bad)
    assert [str(shift) for shift in of.shifts] == [
        "order of augment: instance_noise -> diff_augment -> diff_augment -> instance_noise"
    ]
    assert list(of.variant({1}).recipe(0).plugins)[-2:] == ["diff_augment", "instance_noise"]


def test_a_new_name_comes_after_its_forerunner() -> None:
    assert arranged({"a", "b", "x", "y"}, ["a", "b"], ["a", "x", "y", "b"]) == ["a", "x", "y", "b"]
    assert arranged({"b", "x"}, ["a", "b"], ["x", "b"]) == ["x", "b"]


def test_numbers_in_words() -> None:
    assert spans([1, 2, 3, 7]) == "1 to 3, 7"
    assert spans({5}, "-", "+") == "5"
