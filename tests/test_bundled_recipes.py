"""The recipes that come with ganlab: found by name, listed, copied, and in the wheel."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.commands.recipes import copy_bundled, describe_bundled
from ganlab.errors import RecipeError
from ganlab.recipe import bundled as bundles
from ganlab.recipe.bundled import bundled, find_recipe
from ganlab.recipe.file import read_recipe
from ganlab.recipe.model import load_recipe, resolved
from ganlab.runs.reference import names_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is outside the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_found_by_name_where_no_file_has_that_name(elsewhere: Path) -> None:
    assert find_recipe("wgan_gp") == ROOT / "recipes" / "wgan_gp.toml"
    assert load_recipe("toy/ring_gan").name == "ring_gan"
    (elsewhere / "wgan_gp").mkdir()  # a folder is no recipe
    assert find_recipe("wgan_gp") == ROOT / "recipes" / "wgan_gp.toml"
    (elsewhere / "smoke").write_text("iterations = 3\n")
    assert load_recipe("smoke").iterations == 3


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("wgan_pg", "wgan_pg: no such recipe file; did you mean 'wgan_gp'?"),
        ("ring_gan", "did you mean 'toy/ring_gan'?"),
        ("zebra", "`ganlab recipes` lists those that come with ganlab"),
        ("wgan_gp.toml", "`wgan_gp`, without the ending, is the recipe that comes with ganlab"),
        ("recipes/toy/dirac.toml", "`toy/dirac`, without the ending"),
        ("mine.tom", "did you mean 'mine.toml'?"),
        ("no\0name", "no such recipe file"),
        ("x" * 5000, "no such recipe file"),
    ],
)
def test_a_name_that_is_none_is_told_what_may_have_been_meant(
    elsewhere: Path, name: str, complaint: str
) -> None:
    (elsewhere / "mine.toml").write_text("iterations = 1\n")
    with pytest.raises(RecipeError) as told:
        load_recipe(name)
    assert complaint in str(told.value)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    "command",
    [
        ["run", "toy/dirac", "--dry-run"],
        ["explain", "smoke", "ema", "--no-cost"],
        ["diff", "smoke", "wgan_gp"],
        ["ablate", "toy/dirac", "--without", "r1", "--seeds", "0..1", "--plan"],
        ["compare", "toy/dirac", "toy/ring_gan", "--seeds", "0..1", "--plan"],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_take_a_recipe_take_a_name(command: list[str]) -> None:
    result = invoke(*command)
    assert "no such recipe" not in result.stderr
    assert result.exit_code == 0, result.output
    if command[0] in ("run", "explain", "diff"):
        assert "next: ganlab" in result.stderr
        assert str(ROOT) not in result.stderr


def test_the_whole_name_of_a_run_counts_more_than_that_of_a_recipe(elsewhere: Path) -> None:
    assert names_recipe("smoke")
    run = elsewhere / "runs" / "smoke"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text("iterations = 1\n")
    assert not names_recipe("smoke")
    assert names_recipe("wgan_gp")
    run.rename(run.with_name("wgan_gp-1"))
    assert names_recipe("wgan_gp")  # it is the beginning of a run's name too


@pytest.mark.parametrize("recipe", describe_bundled(), ids=lambda recipe: recipe.name)
def test_the_head_of_every_recipe_says_what_it_is_reaches_and_needs(recipe) -> None:
    assert recipe.what.endswith((".", ".)"))
    assert recipe.reaches.endswith(".")
    assert recipe.needs.endswith(".")
    text = recipe.what + recipe.reaches + recipe.needs
    assert not any(label in text for label in ("Paper:", "Reaches:", "Needs:"))


def test_the_list_has_every_recipe_with_what_it_reaches_and_needs() -> None:
    shown = invoke("recipes").stdout
    (one,) = (one for one in json.loads(invoke("recipes", "--json").stdout)
              if one["name"] == "toy/ring_gan")  # fmt: skip
    assert one["reaches"].startswith("8 of 8 modes, KL of the mode histogram 0.0246")
    assert one["needs"] == "29 s on one CPU core (AMD EPYC, torch 2.15.0, 2026-11-23)."
    assert one["paper"] == "Goodfellow et al. 2014, arXiv:1406.2661."
    for name in bundled():
        assert f"\n{name}\n" in f"\n{shown}"
    assert "Reaches: the verdict collapsed." in shown


@pytest.mark.parametrize("name", bundled())
def test_a_copy_is_the_same_recipe_and_needs_no_file_but_the_copies(
    elsewhere: Path, name: str
) -> None:
    folder = elsewhere / "copy"
    recipe, *others = copy_bundled(name, folder)
    assert recipe.name == f"{Path(name).name}.toml"
    assert read_recipe(recipe).values == read_recipe(bundled()[name]).values
    assert sorted(folder.rglob("*.*")) == sorted([recipe, *others])


def test_a_copied_plugin_file_lies_beside_its_recipe(elsewhere: Path) -> None:
    recipe, *others = copy_bundled("failures/leak", elsewhere)
    assert [str(path.relative_to(elsewhere).as_posix()) for path in others] == [
        "failures/same_crops.py",
        "smoke.toml",
        "wgan_gp.toml",
    ]
    assert resolved(load_recipe(recipe)) == resolved(load_recipe("failures/leak"))


def test_a_copy_leaves_equal_files_and_overwrites_no_others(elsewhere: Path) -> None:
    assert invoke("recipes", "copy", "r3gan").stdout == "r3gan.toml\nwgan_gp.toml\n"
    assert invoke("recipes", "copy", "sngan").exit_code == 0
    changed = elsewhere / "wgan_gp.toml"
    changed.write_text(changed.read_text() + "# mine\n")
    before = changed.read_bytes()
    refused = invoke("recipes", "copy", "bce_gan")
    assert refused.exit_code == 2
    assert "exists and differs" in refused.stderr
    assert changed.read_bytes() == before
    assert not (elsewhere / "bce_gan.toml").exists()
    assert invoke("recipes", "copy", "bce_gan", "new/folder").exit_code == 0
    assert "did you mean 'sngan'?" in invoke("recipes", "copy", "sgnan").stderr


def test_data_of_an_installed_recipe_lie_in_the_current_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = elsewhere / "site" / "ganlab" / "recipes"
    shutil.copytree(ROOT / "recipes", package)
    recipe = package / "div2k" / "srgan.toml"
    data = Path("data", "DIV2K_train_HR")
    assert load_recipe(recipe).plugins["image_folder"].path == package.parent / data
    monkeypatch.setattr(bundles, "INSTALLED", package)
    assert load_recipe(recipe).plugins["image_folder"].path == elsewhere / data


@pytest.mark.long  # it builds a wheel and starts a new Python
def test_the_wheel_has_the_recipes_and_finds_them_by_name(elsewhere: Path) -> None:
    build = (
        "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel;"
        "print(build_wheel(sys.argv[2]))"
    )
    command = [sys.executable, "-c", build, str(ROOT), str(elsewhere)]
    wheel = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    shutil.unpack_archive(elsewhere / wheel, elsewhere / "site", "zip")
    ask = (
        f"import sys; sys.path.insert(0, {str(elsewhere / 'site')!r});"
        "from ganlab.recipe.bundled import bundled; import ganlab.runs.environment as e;"
        "from ganlab.recipe.model import load_recipe;"
        "assert load_recipe('failures/leak').plugins;"
        "print(*bundled(), e.code_digest(), bundled()['smoke'])"
    )
    found = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    *names, digest, file = found.stdout.split()
    assert names == list(bundled())
    assert Path(file) == elsewhere / "site" / "ganlab" / "recipes" / "smoke.toml"
    from ganlab.runs.environment import code_digest

    assert digest == code_digest()  # an installed ganlab goes on with the runs of a checkout


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)
