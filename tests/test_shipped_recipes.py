"""Every recipe in recipes/ passes `ganlab check`, and trains."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.images.files import write_png
from ganlab.recipe.discovery import find_plugin
from ganlab.recipe.file import Origin, read_recipe

ROOT = Path(__file__).parents[1]
# those that fail on purpose are in test_failures.py
RECIPES = sorted(f for f in (ROOT / "recipes").rglob("*.toml") if f.parent.name != "failures")

AS_THEY_ARE = [ROOT / "recipes" / f"{name}.toml" for name in ("smoke", "wgan_gp")]

pytestmark = pytest.mark.usefixtures("seeded_weights", "small_photographs", "few_samples")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for part in ("train", "valid"):
        (folder / part).mkdir()
        image = torch.randint(0, 256, (3, 120, 140), dtype=torch.uint8)
        write_png(image, folder / part / "a.png")
    return folder


def small(recipe: Path, photographs: Path) -> list[str]:
    """What to --set so that a recipe, whatever it is, takes a blink on a CPU."""
    plugins = read_recipe(recipe).values["plugins"]
    smaller: dict[str, object] = {"batch_size": 2}
    for name, options in plugins.items():
        use = options.get("use", name)
        fields = find_plugin(use, Origin(None, text=use))[0].model_fields
        sizes = {"width": 12, "growth": 4, "num_blocks": 1, "num_features": 8, "size": 4}
        sizes["crop"] = 64 if any(n.endswith("_degradation") for n in plugins) else 32
        wanted = {"pair_pool": {"size"}}.get(use, set(sizes) - {"size"})
        smaller |= {f"{name}.{option}": sizes[option] for option in wanted if option in fields}
    if "image_folder" in plugins:
        for option, part in (("path", "train"), ("evaluation_path", "valid")):
            smaller[f"image_folder.{option}"] = str(photographs / part)
    return [part for key, value in smaller.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: str(f.relative_to(ROOT / "recipes")))
def test_a_recipe_passes_check(recipe: Path, photographs: Path) -> None:
    # made small, but those that the README begins with
    changes = [] if recipe in AS_THEY_ARE else small(recipe, photographs)
    result = CliRunner().invoke(main, ["check", str(recipe), *changes], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("ok\n")
    notes = [line for line in result.stdout.splitlines() if line.startswith("note:")]
    assert [note for note in notes if not note.startswith("note: image_folder: ")] == []
    assert "warning:" not in result.stdout


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            file,
            id=str(file.relative_to(ROOT / "recipes")),
            # 5 s each, for blur, noise and JPEG
            marks=[pytest.mark.long] if file.stem in ("bsrgan", "real_esrgan") else [],
        )
        for file in RECIPES
    ],
)
def test_a_recipe_trains_20_iterations_through_each_phase(
    recipe: Path, photographs: Path, tmp_path: Path
) -> None:
    arguments = ["run", str(recipe), "--runs", str(tmp_path), "--name", "run", "--device", "cpu"]
    arguments += [*small(recipe, photographs), "--set", "iterations=20"]
    if "pretraining" in read_recipe(recipe).values["plugins"]:
        arguments += ["--set", "pretraining.iterations=10"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    assert losses[-1]["iteration"] == 20
    assert (tmp_path / "run" / "generator.safetensors").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: str(f.relative_to(ROOT / "recipes")))
def test_a_recipe_is_short_and_headed_by_what_it_is(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 36
    assert lines[0].startswith("# ")


def test_seed_toml_takes_its_documented_gradient_penalty(photographs: Path) -> None:
    recipe = ROOT / "recipes" / "seed.toml"
    changes = small(recipe, photographs)
    penalty = "gradient_penalty={ weight = 10.0 }"
    refused = CliRunner().invoke(main, ["check", str(recipe), "--set", penalty])
    assert refused.exit_code == 2
    assert 'norm = "none"' in refused.stderr
    norm = "patch_discriminator.norm=none"
    arguments = ["check", str(recipe), *changes, "--set", penalty, "--set", norm]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
