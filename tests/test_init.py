"""`ganlab init`: a project with a recipe and a plugin file to change."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.commands import project
from ganlab.recipe.model import load_recipe


@pytest.fixture(autouse=True)
def editors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders for which files for editors were asked; making them takes seconds."""
    monkeypatch.chdir(tmp_path)
    asked: list[Path] = []

    def write(folder: Path) -> tuple[list[Path], list[Path]]:
        asked.append(folder)
        return [folder / "tombi.toml"], []

    monkeypatch.setattr(project, "write_editor_files", write)
    return asked


def test_a_project_has_a_recipe_that_loads_its_plugin_file(editors: list[Path]) -> None:
    result = invoke("init", "mine")
    assert result.exit_code == 0, result.output
    assert editors == [Path("mine")]
    recipe = load_recipe("mine/recipes/first.toml")
    assert recipe.sources["edges"].file == Path("mine/recipes/edges.py").resolve()
    base = load_recipe("wgan_gp")
    assert recipe.plugins.keys() - base.plugins.keys() == {"edges"}
    assert recipe.iterations == base.iterations
    made = [Path(line) for line in result.stdout.splitlines()]
    assert Path("mine", "photographs") in made
    assert Path("mine", "tombi.toml") in made
    assert all(path.exists() for path in made if path.name != "tombi.toml")


def test_the_recipe_names_the_schema_that_lies_in_the_project() -> None:
    invoke("init", "mine")
    first = Path("mine/recipes/first.toml").read_text().splitlines()[0]
    assert first == "#:schema ../.ganlab/recipe.schema.json"


def test_git_leaves_out_what_ganlab_makes_and_the_photographs() -> None:
    invoke("init", "mine")
    ignored = Path("mine/.gitignore").read_text().splitlines()
    assert {"/runs/", "/upscaled/", "/photographs/", "/.ganlab/"} <= set(ignored)


def test_it_ends_with_the_command_to_type_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke("init", "mine")
    *_, told = result.stderr.splitlines()
    assert told == "next: ganlab run recipes/first.toml --data photographs"
    monkeypatch.chdir("mine")
    words = told.removeprefix("next: ganlab ").split()
    refused = invoke(*words)  # the folder is empty yet
    assert (refused.exit_code, "no image in it" in refused.stderr) == (2, True)


def test_nothing_is_overwritten(editors: list[Path]) -> None:
    Path("mine/recipes").mkdir(parents=True)
    kept = Path("mine/recipes/edges.py")
    kept.write_text("mine")
    result = invoke("init", "mine")
    assert result.exit_code == 2
    assert "edges.py exists, and nothing is overwritten" in result.stderr
    assert [path for path in Path("mine").rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"
    assert editors == []


def test_a_folder_that_exists_is_used(editors: list[Path]) -> None:
    Path("photographs").mkdir()
    assert invoke("init", ".").exit_code == 0
    assert Path("recipes/first.toml").is_file()


@pytest.mark.long  # 10 s
def test_the_recipe_of_a_project_passes_check() -> None:
    invoke("init", "mine")
    result = invoke("check", "mine/recipes/first.toml")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stdout
    assert result.stdout.endswith("ok\n")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)
