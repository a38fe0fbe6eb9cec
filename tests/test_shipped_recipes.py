"""Every recipe in recipes/ starts: checked, and a step taken at both ends of the run."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.images import write_png

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for part in ("train", "valid"):
        (folder / part).mkdir()
        image = torch.randint(0, 256, (3, 120, 140), dtype=torch.uint8)
        write_png(image, folder / part / "a.png")
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: str(f.relative_to(ROOT / "recipes")))
def test_a_recipe_passes_check(recipe: Path, photographs: Path) -> None:
    arguments = ["check", str(recipe)]
    if recipe.parent.name == "div2k":
        for option, part in (("path", "train"), ("evaluation_path", "valid")):
            arguments += ["--set", f"image_folder.{option}={photographs / part}"]
        arguments += ["--set", "srresnet={ width = 8, num_blocks = 1 }"]
        discriminator = "vgg" if recipe.stem == "srgan" else "patch"
        arguments += ["--set", f"{discriminator}_discriminator.width=8"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("ok\n")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: str(f.relative_to(ROOT / "recipes")))
def test_a_recipe_is_short_and_headed_by_what_it_is(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 36
    assert lines[0].startswith("# ")


def test_seed_toml_takes_its_documented_gradient_penalty() -> None:
    recipe = ROOT / "recipes" / "seed.toml"
    penalty = "gradient_penalty={ weight = 10.0 }"
    refused = CliRunner().invoke(main, ["check", str(recipe), "--set", penalty])
    assert refused.exit_code == 2
    assert 'norm = "none"' in refused.stderr
    norm = "patch_discriminator.norm=none"
    arguments = ["check", str(recipe), "--set", penalty, "--set", norm]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
