"""The gallery of failures gets its verdicts; healthy runs get none."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab.cli import main

ROOT = Path(__file__).parents[1]
GALLERY = sorted((ROOT / "recipes" / "failures").glob("*.toml"))
QUICK = ("unstable",)  # the others take 7 to 20 s each


def run(recipe: Path, folder: Path, *arguments: str) -> tuple[int, Path]:
    command = ["run", str(recipe), "--runs", str(folder), "--name", "run", *arguments]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    return result.exit_code, folder / "run"


def names(folder: Path) -> list[str]:
    lines = (folder / "verdicts.jsonl").read_text().splitlines()
    return [json.loads(line)["name"] for line in lines]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(f, id=f.stem, marks=[] if f.stem in QUICK else [pytest.mark.long])
        for f in GALLERY
    ],
)
def test_a_failure_gets_the_verdict_that_its_recipe_names(recipe: Path, tmp_path: Path) -> None:
    expected = re.search(r"^# Reaches: the verdict (\w+)\.$", recipe.read_text(), re.MULTILINE)
    assert expected, "a recipe of the gallery says which verdict it must get"
    exit_code, folder = run(recipe, tmp_path)
    assert exit_code == (3 if recipe.stem == "unstable" else 0)
    assert expected[1] in names(folder)
    status = json.loads((folder / "status.json").read_text())
    assert len(status["verdicts"]) == len(names(folder))


@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        pytest.param(
            "wgan_gp.toml",
            ["pretraining.iterations=60", "batch_size=4"],
            marks=pytest.mark.long,  # 14 s
        ),
        ("toy/ring_r1.toml", []),
    ],
    ids=["wgan_gp", "ring_r1"],
)
def test_a_healthy_beginning_gets_no_verdict(
    recipe: str, arguments: list[str], tmp_path: Path
) -> None:
    short = ["iterations=120", "evaluate_every=40", "watch_every=5", *arguments]
    changes = [part for change in short for part in ("--set", change)]
    exit_code, folder = run(ROOT / "recipes" / recipe, tmp_path, *changes)
    assert exit_code == 0
    assert names(folder) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.parametrize(
    "recipe",
    ["wgan_gp", "r3gan", "sngan", "bce_gan", "seed", "toy/ring_gan", "toy/ring_r1",
     "toy/ring_r3gan", "toy/ring_wgan_gp"],
)  # fmt: skip
def test_a_healthy_run_gets_no_verdict(recipe: str, seed: str, tmp_path: Path) -> None:
    exit_code, folder = run(ROOT / "recipes" / f"{recipe}.toml", tmp_path, "--seed", seed)
    assert exit_code == 0
    assert names(folder) == []
