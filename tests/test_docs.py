"""What the documents show is true: recipes load, plugins work, commands exist."""

import ast
import inspect
import re
import textwrap
import typing
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import ganlab
from ganlab import hookspecs
from ganlab.cli import main
from ganlab.commands.describe import HOOKS, describe_plugins
from ganlab.recipe.model import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def parts(language: str) -> list[tuple[str, str]]:
    """The blocks of all pages, but those that are whole files: test_commands_shown uses them."""
    found = [(page.name, text) for page in PAGES for text in blocks(page, language)]
    return [(name, text) for name, text in found if not re.match(r"# [\w./-]+\.(toml|py)\n", text)]


TOML = parts("toml")
PYTHON = [(name, text) for name, text in parts("python") if "(Plugin)" in text]


@pytest.mark.parametrize(("page", "text"), TOML)
def test_a_recipe_shown_loads(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "my_idea.py").write_text(
        "from ganlab import Plugin\n\n\nclass Idea(Plugin):\n    strength: float = 1\n"
    )
    for recipe in (ROOT / "recipes").glob("*.toml"):
        (tmp_path / recipe.name).write_text(recipe.read_text())
    if "[plugins]" not in text:  # lines from the middle of a recipe
        text = f"iterations = 1\n[plugins]\n{text}"
    (tmp_path / "shown.toml").write_text(text)
    assert load_recipe(tmp_path / "shown.toml").plugins


@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_a_plugin_shown_computes_a_loss(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(text)
    (tmp_path / "r.toml").write_text('iterations = 1\n[plugins]\nx = { use = "./shown.py" }\n')
    plugin = load_recipe(tmp_path / "r.toml").plugins["x"]
    sr = torch.rand(2, 3, 8, 8, requires_grad=True)
    (term,) = plugin.generator_loss(fake=sr, real=torch.rand(2, 3, 8, 8)).values()
    term.backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0


FRAGMENTS = [
    (page.name, text)
    for page in PAGES
    for text in blocks(page, "python")
    if "import" not in text and not text.startswith((" ", "@"))
]


@pytest.mark.parametrize(("page", "text"), FRAGMENTS)
def test_lines_shown_of_a_plugin_are_the_body_of_one(page: str, text: str) -> None:
    names = {name: getattr(ganlab, name) for name in dir(ganlab)} | vars(typing)
    exec(f"class Shown(Plugin):\n{textwrap.indent(text, '    ')}", names)
    assert names["Shown"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_is_python(page: Path) -> None:
    for text in blocks(page, "python"):
        ast.parse(textwrap.dedent(text))


def test_every_command_shown_exists_with_its_options() -> None:
    shown = [
        line
        for page in PAGES
        for text in blocks(page, "sh")
        for line in text.splitlines()
        if "ganlab " in line
    ]
    assert len(shown) > 5
    for line in shown:
        words = line.partition("#")[0].partition("ganlab ")[2].split()
        command = main.get_command(click.Context(main), words[0])
        assert command, line
        if isinstance(command, click.Group):  # `ganlab plugins NAME` is `plugins show NAME`
            word = words[1] if words[1:] else ""
            command = command.commands.get(word) or command.commands.get("show", command)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_recipe_named_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"recipes/[\w/]+\.toml", page.read_text()):
            assert (ROOT / name).is_file(), (page.name, name)


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_every_test_that_a_page_names_is_there() -> None:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    known = {file.stem for file in tests}
    known.update(*(re.findall(r"^def (test_\w+)", f.read_text(), re.MULTILINE) for f in tests))
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`(test_\w+)`", page.read_text())
    }
    assert len(named) > 10
    assert {(page, name) for page, name in named if name not in known} == set()


def test_every_setting_of_a_recipe_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "recipes.md").read_text()
    for name, field in Recipe.model_fields.items():
        default = "required" if field.is_required() else f"{field.default}"
        default = default.lower() if isinstance(field.default, bool) else default
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, flags=re.MULTILINE)
        assert row, name
        assert default in row[1], name


def test_every_hook_says_when_it_is_called_and_how_answers_combine() -> None:
    for name in HOOKS:
        text = inspect.getdoc(getattr(hookspecs, name)) or ""
        assert re.search(r"One|First|Chained|Collected|All plugins", text), name


def test_the_slip_of_the_readme_gets_the_message_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "README.md").read_text()
    (recipe,) = [text for text in blocks(ROOT / "README.md", "toml") if "weight = 10.0" in text]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slip.toml").write_text(recipe.replace("weight = 10.0", "weigth = 10.0"))
    result = CliRunner().invoke(main, ["check", "slip.toml"])
    assert result.stderr.strip() in page


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "uv run pytest" in blocks(ROOT / "README.md", "sh")[1]
    assert re.search(r"^uv run pytest$", script, flags=re.MULTILINE)


def test_every_plugin_stands_in_the_list_of_methods_and_nothing_else_does() -> None:
    page = (ROOT / "docs" / "reference" / "methods.md").read_text()
    tables = page[page.index("## Objectives") :]
    listed = re.findall(r"^\| `(\w+)` \|", tables, flags=re.MULTILINE)
    ours = [p["name"] for p in describe_plugins() if p["distribution"] == "ganlab"]
    assert sorted(listed) == sorted(ours)


def test_a_link_to_a_line_of_code_finds_the_function_it_is_about() -> None:
    links = re.findall(r"\]\(([\w/]+\.py)#L(\d+)\)", (ROOT / "README.md").read_text())
    lines = [(ROOT / file).read_text().splitlines()[int(number) - 1] for file, number in links]
    assert [line.partition("(")[0] for line in lines] == ["def iterate"]
