"""A recipe with a slip does not start: one message with file, place, fault and remedy, exit 2."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab.cli import main

GOOD = """\
iterations = 4
batch_size = 2
d_steps = 1

[plugins]
dead_leaves = { crop = 32, num_images = 2, size = 64 }
bicubic = { scale = 4 }
encoder_decoder = { width = 8 }
patch_discriminator = { width = 8, num_layers = 2 }
wasserstein = {}
gradient_penalty = { weight = 10.0 }
pixel_loss = { weight = 1.0 }
"""

# (what is wrong, text to replace, its replacement, line of the message, words it must contain)
SLIPS = [
    ("typo in a setting", "d_steps = 1", "d_step = 1", 3, ["'d_step'", "'d_steps'"]),
    ("setting of the wrong type", "= 4\n", '= "4"\n', 1, ["iterations", "whole number"]),
    ("fraction for a count", "batch_size = 2", "batch_size = 2.5", 2, ["whole number"]),
    ("true for a number", "batch_size = 2", "batch_size = true", 2, ["batch_size = true"]),
    ("count of zero", "iterations = 4", "iterations = 0", 1, ["at least 1"]),
    ("negative count", "d_steps = 1", "d_steps = -1", 3, ["at least 0"]),
    ("no iterations at all", "iterations = 4\n", "", None, ["'iterations' is missing"]),
    ("a count that would take days", "d_steps = 1", "d_steps = 100_000", 3, ["at most 1000"]),
    ("images that would take days", "num_images = 2", "num_images = 1_000_000_000", 6, ["at most"]),
    ("unknown precision", "d_steps = 1", 'precision = "fp16"', 3, ["precision", "'bfloat16'"]),
    ("nan", "weight = 1.0", "weight = nan", 12, ["not a finite number"]),
    ("infinity", "weight = 10.0", "weight = inf", 11, ["not a finite number"]),
    ("a date", "d_steps = 1", "d_steps = 2026-01-01", 3, ["date"]),
    ("broken TOML", "{ scale = 4 }", "{ scale = 4", 7, ["not valid TOML"]),
    ("the same key twice", "batch_size = 2", "iterations = 5", 2, ["not valid TOML"]),
    ("a doubled plugin", "wasserstein = {}", "bicubic = {}", 10, ["not valid TOML"]),
    ("plugins is no table", GOOD[GOOD.index("[plugins]") :], "plugins = 3\n", 5, ["[plugins]"]),
    ("unknown plugin", "gradient_penalty", "gradient_penalti", 11, ["'gradient_penalty'"]),
    ("unknown plugin, nothing near", "wasserstein = {}", "qqq = {}", 10, ["`ganlab plugins`"]),
    ("plugin outside [plugins]", "d_steps = 1", "ema = {}", 3, ["under [plugins]"]),
    ("plugin is no table", "wasserstein = {}", "wasserstein = true", 10, ["table of options"]),
    ("drop of what is not there", "wasserstein = {}", "wasserstien = false", 10, ["nothing"]),
    ("typo in an option", "weight = 10.0", "weigth = 10.0", 11, ["'weigth'", "'weight'"]),
    ("option out of range", "weight = 10.0", "weight = -1", 11, ["weight", "at least 0"]),
    ("option of the wrong type", "scale = 4", 'scale = "4"', 7, ["scale", "whole number"]),
    ("option below its minimum", "width = 8 }", "width = 0 }", 8, ["width = 0", "at least 1"]),
    ("unknown choice", "weight = 1.0", 'kind = "l3"', 12, ["kind", "'l1'"]),
    ("use is no name", "wasserstein = {}", "w = { use = 3 }", 10, ["use"]),
    ("typo in a schedule", "weight = 10.0", "weight = { from = 1, too = 2 }", 11, ["'to'"]),
    ("half a schedule", "weight = 10.0", "weight = { from = 1 }", 11, ["to"]),
    ("schedule below zero", "weight = 1.0", "weight = { from = 1, to = -1 }", 12, ["at least 0"]),
    ("missing option", "wasserstein = {}", "pretraining = {}", 10, ["'iterations' is missing"]),
    ("no generator", "encoder_decoder = { width = 8 }\n", "", None, ["make_generator", "no plugin provides it"]),
    (
        "two generators",
        "wasserstein = {}",
        "wasserstein = {}\nsrresnet = {}",
        None,
        ["encoder_decoder and srresnet both provide it"],
    ),
    ("two data sources", "wasserstein = {}", "wasserstein = {}\nbuiltin = {}", None, ["sample_real"]),
    ("no data", "dead_leaves = { crop = 32, num_images = 2, size = 64 }\n", "", None, ["sample_real"]),
    ("no discriminator", "patch_disc", "#", None, ["make_discriminator", "d_steps"]),
    ("no adversarial loss", "wasserstein = {}\n", "", None, ["discriminator_loss"]),
    ("two adversarial losses", "wasserstein = {}", "wasserstein = {}\nbce = {}", None, ["both provide it"]),
    (
        "discriminator without D steps",
        "d_steps = 1",
        "d_steps = 0",
        9,
        ["no effect", "d_steps = 1"],
    ),
    (
        "label smoothing beside wasserstein",
        "pixel_loss",
        "label_smoothing = {}\npixel_loss",
        12,
        ["labels", "wasserstein", "remove"],
    ),
    (
        "batch norm under a gradient penalty",
        "num_layers = 2 }",
        'num_layers = 2, norm = "batch" }',
        11,
        ["gradient_penalty needs a discriminator without batch norm", 'norm = "none"'],
    ),
    ("crop larger than the images", "size = 64", "size = 16", 6, ["crop", "size"]),
    ("crop not divisible by the scale", "crop = 32", "crop = 34", None, ["multiple"]),
    (
        "folder that does not exist",
        "dead_leaves = { crop = 32, num_images = 2, size = 64 }",
        'image_folder = { path = "nowhere" }',
        6,
        ["nowhere", "no such folder"],
    ),
    (
        "folder without images",
        "dead_leaves = { crop = 32, num_images = 2, size = 64 }",
        'image_folder = { path = "." }',
        6,
        ["image"],
    ),
    (
        "pretraining without content loss",
        "pixel_loss = { weight = 1.0 }",
        "pretraining = { iterations = 2 }",
        12,
        ["content loss", "pixel_loss"],
    ),
    (
        "pretraining longer than the run",
        "wasserstein = {}",
        "wasserstein = {}\npretraining = { iterations = 9 }",
        11,
        ["9", "longer"],
    ),
    ("extends nothing", "iterations", 'extends = "bass.toml"\niterations', 1, ["no such file"]),
    ("extends itself", "iterations", 'extends = "slip.toml"\niterations', 1, ["circle"]),
    ("extends a number", "iterations", "extends = 7\niterations", 1, ["file name"]),
    ("plugin file that is not there", "wasserstein = {}", 'w = {use = "./w.py"}', 10, ["no file"]),
    ("plugin file outside", "wasserstein = {}", 'w = {use = "../w.py"}', 10, ["outside"]),
    ("plugin file without plugin", "wasserstein = {}", 'w = {use = "./empty.py"}', 10, ["exactly"]),
    ("plugin file with an error", "wasserstein = {}", 'w = {use = "./broken.py"}', 10, ["oops"]),
    ("plugin with a misspelt hook", "wasserstein = {}", 'w = {use = "./hook.py"}', 10, ["'penalty'"]),
    ("plugin with a wrong argument", "wasserstein = {}", 'w = {use = "./arg.py"}', 10, ["reel"]),
    ("a key without end", "wasserstein = {}", "a" + ".a" * 40 + " = 1", 10, ["at most"]),
    ("a name that is a path", "wasserstein = {}", '"../x" = { use = "wasserstein" }', 10, ["'../x'"]),
    ("a metric that nobody computes", "d_steps = 1", 'best_metric = "pnsr_y"', None, ["psnr_y"]),
    ("two optimizers", "wasserstein = {}", "wasserstein = {}\nadam = {}\na = { use = 'adam' }", None, ["at most one", "make_optimizer"]),
    ("two terms of one name", "pixel_loss", "adversarial = { use = 'pixel_loss' }\npixel_loss", None, ["two plugins returned G/adversarial"]),
]  # fmt: skip

FILES = {
    "empty.py": "x = 1\n",
    "broken.py": "raise RuntimeError('oops')\n",
    "hook.py": "from ganlab import Plugin, hookimpl\n\n\nclass Hook(Plugin):\n"
    "    @hookimpl\n    def penality(self, real):\n        return {}\n",
    "arg.py": "from ganlab import Plugin, hookimpl\n\n\nclass Arg(Plugin):\n"
    "    @hookimpl\n    def penalty(self, reel):\n        return {}\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def complaint(*arguments: str) -> str:
    """The message of a command that must refuse, checked for what holds of every message."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 2, result.output
    lines = [ln for ln in result.stderr.splitlines() if not ln.startswith("runs code from")]
    message = "\n".join(lines)
    assert "Traceback" not in message
    assert "pydantic" not in message
    assert len(message.splitlines()) == 1, message
    return message


def test_the_recipe_that_the_slips_are_made_from_is_good(folder: Path) -> None:
    (folder / "good.toml").write_text(GOOD)
    result = CliRunner().invoke(main, ["check", "good.toml"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("old", "new", "line", "words"), [slip[1:] for slip in SLIPS], ids=[slip[0] for slip in SLIPS]
)
def test_a_slip_is_refused_with_its_place_and_remedy(
    folder: Path, old: str, new: str, line: int | None, words: list[str]
) -> None:
    assert old in GOOD
    (folder / "slip.toml").write_text(GOOD.replace(old, new, 1))
    message = complaint("check", "slip.toml")
    place = f"slip.toml:{line}: " if line else "slip.toml"
    assert message.startswith(place), message
    for word in words:
        assert word in message


def test_there_are_at_least_forty_slips() -> None:
    assert len(SLIPS) >= 40


def test_text_that_is_not_utf8_is_refused_at_its_line(folder: Path) -> None:
    (folder / "slip.toml").write_bytes(GOOD.encode() + b"# caf\xe9\n")
    assert complaint("check", "slip.toml").startswith("slip.toml:13: not UTF-8")


def test_a_recipe_that_is_not_there_is_refused_with_a_near_name(folder: Path) -> None:
    (folder / "good.toml").write_text(GOOD)
    assert "did you mean 'good.toml'?" in complaint("run", "god.toml")


def test_a_circle_of_two_files_is_named(folder: Path) -> None:
    (folder / "a.toml").write_text('extends = "b.toml"\n')
    (folder / "b.toml").write_text('extends = "a.toml"\n')
    assert re.search("circle: a.toml -> b.toml -> a.toml", complaint("check", "a.toml"))


def test_a_fault_in_a_value_laid_over_a_base_is_placed_where_it_was_written(folder: Path) -> None:
    (folder / "base.toml").write_text(GOOD)
    (folder / "child.toml").write_text(
        'extends = "base.toml"\n[plugins]\ngradient_penalty = { weight = -1 }\n'
    )
    assert complaint("check", "child.toml").startswith("child.toml:3: ")


def test_a_held_out_image_too_small_to_score_is_refused_before_training(folder: Path) -> None:
    import torch

    from ganlab.images.files import write_png

    for name, side in (("train", 64), ("valid", 20)):
        (folder / name).mkdir()
        write_png(torch.zeros(3, side, side, dtype=torch.uint8), folder / name / "a.png")
    data = 'image_folder = { path = "train", evaluation_path = "valid", crop = 32 }'
    old = "dead_leaves = { crop = 32, num_images = 2, size = 64 }"
    (folder / "slip.toml").write_text(GOOD.replace(old, data))
    assert "a.png is held out, and too small to score" in complaint("check", "slip.toml")


def test_a_discriminator_that_mixes_is_found_at_batch_size_one_and_behind_a_zero_layer(
    folder: Path,
) -> None:
    (folder / "mixing.py").write_text(
        "from torch import nn\nfrom ganlab import Plugin, hookimpl\n\n\n"
        "class Mixing(Plugin):\n    @hookimpl\n    def make_discriminator(self):\n"
        "        last = nn.Conv2d(3, 1, 1)\n        nn.init.zeros_(last.weight)\n"
        "        return nn.Sequential(nn.BatchNorm2d(3), last)\n"
    )
    text = GOOD.replace("batch_size = 2", "batch_size = 1")
    old = "patch_discriminator = { width = 8, num_layers = 2 }"
    (folder / "slip.toml").write_text(text.replace(old, 'd = { use = "./mixing.py" }'))
    assert "without batch norm, and d has 1" in complaint("check", "slip.toml")


def test_a_fault_in_an_extended_file_is_placed_there(folder: Path) -> None:
    (folder / "base.toml").write_text(GOOD.replace("weight = 10.0", "weight = -1"))
    (folder / "child.toml").write_text('extends = "base.toml"\niterations = 3\n')
    assert complaint("check", "child.toml").startswith("base.toml:11: ")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("iteratons=3", ["'iterations'"]),
        ("gradient_penalty.weigth=3", ["'weight'"]),
        ("gradient_penalti.weight=3", ["'gradient_penalty'"]),
        ("gradient_penalty.weight=-3", ["at least 0"]),
        ("gradient_penalty.weight=nan", ["finite"]),
        ("gradient_penalty", ["key=value"]),
        ("plugins=3", ["one plugin at a time"]),
        ("ema=false", ["ema"]),
        ("gradient_penalty.weight.from=1", ["not a table", "gradient_penalty.weight={ from = 1"]),
    ],
)
def test_a_wrong_override_is_refused_and_named(
    folder: Path, override: str, words: list[str]
) -> None:
    (folder / "good.toml").write_text(GOOD)
    message = complaint("check", "good.toml", "--set", override)
    assert message.startswith(f"--set {override}: "), message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "good.toml", "--device", "cuda:99"],
        ["run", "good.toml", "--device", "tpu"],
        ["run", "good.toml", "--name", "a/b"],
        ["resume", "nowhere"],
        ["eval", "nowhere", "--data", "."],
        ["upscale", "nowhere", "x.png"],
        ["plugins", "gradient_penalti"],
        ["plugins", "--hook", "penality"],
    ],
)
def test_wrong_usage_is_refused_in_one_line(folder: Path, arguments: list[str]) -> None:
    (folder / "good.toml").write_text(GOOD)
    complaint(*arguments)


def test_nothing_is_left_behind_by_a_run_that_does_not_start(folder: Path) -> None:
    (folder / "slip.toml").write_text(GOOD.replace("weight = 10.0", "weight = -1"))
    complaint("run", "slip.toml")
    assert not (folder / "runs").exists()
