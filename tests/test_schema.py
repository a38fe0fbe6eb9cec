"""The schema of recipes, as the programs behind editors read it: Tombi and Taplo."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_wrong_recipes import GOOD, SLIPS

from ganlab.cli import main
from ganlab.commands import describe
from ganlab.commands.schema import recipe_schema
from ganlab.recipe import discovery
from ganlab.recipe.model import load_recipe, resolved

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example_plugin"
PROGRAMS = ["tombi", "taplo"]
Findings = dict[str, list[tuple[int, str]]]
"""File name -> line and message of each fault."""

# recipes that a schema could easily take for wrong
GOOD_ONES = {
    "third_party": "iterations = 1\n[plugins]\ngradient_difference = { weight = 0.5 }\n",
    "schedule": "iterations = 1\n[plugins]\nr1 = { weight = { from = 1, to = 0.5, over = 10 } }\n",
    "part_of_a_schedule": 'extends = "x.toml"\n[plugins]\nr1 = { weight = { to = 2 } }\n',
    "part_of_a_plugin": 'extends = "x.toml"\n[plugins]\npretraining = { losses = ["l1"] }\n',
    "part_of_a_named_one": 'extends = "x.toml"\n[plugins]\nl1 = { weight = 2 }\nl2 = false\n',
    "dropped": 'extends = "x.toml"\n[plugins]\nema = false\n',
    "named": 'iterations = 1\n[plugins]\nl1 = { use = "pixel_loss", kind = "l1" }\n',
    "by_its_own_name": 'iterations = 1\n[plugins]\nr1 = { use = "r1", weight = 1 }\n',
    "a_file": 'iterations = 1\n[plugins]\nidea = { use = "./my_idea.py", strength = 2 }\n',
    "a_file_under_a_known_name": 'iterations = 1\n[plugins]\nema = { use = "./e.py", x = 2 }\n',
    "another_under_a_known_name": 'iterations = 1\n[plugins]\nr1 = { use = "r2", weight = 1 }\n',
    "tables": "iterations = 1\n[plugins.gradient_penalty]\nweight = 1\none_sided = true\n",
}
WRONG_ONES = {
    "third_party": ("gradient_difference = { weigth = 0.5 }", "weigth"),
    "third_party_limit": ("gradient_difference = { weight = -1 }", "-1"),
    "named": ('l1 = { use = "pixel_loss", kid = "l1" }', "kid"),
    "named_so_by_nobody": ('l1 = { use = "pixel_los" }', ""),
    "another_under_a_known_name": ('ema = { use = "r2", decay = 0.5 }', "decay"),
    "a_pair_of_three": ("adam = { betas = [0, 0.5, 0.5] }", ""),
    "drop_of_nothing": ("ema = false", ""),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the schema of all installed plugins, a third-party one among them."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLE / "ganlab_gradient_difference.py", site)
    info = site / "ganlab_gradient_difference-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: ganlab-gradient-difference\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        "[ganlab]\ngradient_difference = ganlab_gradient_difference:GradientDifference\n"
    )
    folder = tmp_path_factory.mktemp("project")
    (folder / "recipes").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.chdir(folder)
        _look_for_plugins_again()
        assert invoke("schema", "--write").exit_code == 0
    _look_for_plugins_again()
    return folder


def _look_for_plugins_again() -> None:
    for kept in (discovery.installed, discovery.clashes, discovery.offered):
        kept.cache_clear()
    describe.broken_plugins.cache_clear()
    recipe_schema.cache_clear()


@pytest.fixture(scope="module")
def schema(project: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((project / ".ganlab" / "recipe.schema.json").read_text())
    return made


def program(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def lint(name: str, project: Path, recipes: dict[str, str]) -> Findings:
    """What a program finds in recipes, which lie in the project's recipes/ meanwhile."""
    command = program(name)
    files = {recipe: project / "recipes" / f"{recipe}.toml" for recipe in recipes}
    for recipe, file in files.items():
        file.write_text(recipes[recipe], encoding="utf-8")
    try:
        found = (_tombi if name == "tombi" else _taplo)(command, project)
    finally:
        for file in files.values():
            file.unlink()
    return {recipe: found.get(recipe, []) for recipe in recipes}


def _tombi(command: str, project: Path) -> Findings:
    report = project / "findings.jsonl"
    form = ["--diagnostics-format", "json-lines", "--diagnostics-file", str(report)]
    subprocess.run([command, "lint", "--offline", *form], cwd=project, capture_output=True)
    found: Findings = {}
    for line in report.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        place = told["range"]["start"]["line"], told["message"]
        found.setdefault(Path(told["path"]).stem, []).append(place)
    return found


def _taplo(command: str, project: Path) -> Findings:
    done = subprocess.run(
        [command, "lint", "--colors", "never"],
        cwd=project, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    found: Findings = {}
    for message, file, line in re.findall(r"error: (.*)\n *┌─ (.*?):(\d+):\d+", done.stderr):
        found.setdefault(Path(file).stem, []).append((int(line), message))
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_good_recipe_is_marked(name: str, project: Path) -> None:
    shipped = {
        f"{file.parent.name}-{file.stem}": file.read_text()
        for file in (ROOT / "recipes").rglob("*.toml")
    }
    assert len(shipped) > 25
    run = {"of_a_run": resolved(load_recipe(ROOT / "recipes" / "wgan_gp.toml"))}
    assert "from" not in run["of_a_run"]
    found = lint(name, project, shipped | GOOD_ONES | run)
    assert {recipe: faults for recipe, faults in found.items() if faults} == {}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_option_is_marked_at_its_line(name: str, project: Path) -> None:
    recipes = {k: f"iterations = 1\n\n[plugins]\n{line}\n" for k, (line, _) in WRONG_ONES.items()}
    for recipe, faults in lint(name, project, recipes).items():
        assert {line for line, _ in faults} == {4}, (recipe, faults)
        word = WRONG_ONES[recipe][1]
        assert any(word in message for _, message in faults), (recipe, faults)


@pytest.fixture(scope="module")
def slips(project: Path) -> Callable[[str], Findings]:
    recipes = {slip[0]: GOOD.replace(slip[1], slip[2], 1) for slip in SLIPS}
    known: dict[str, Findings] = {}

    def found(name: str) -> Findings:
        if name not in known:
            numbered = {f"slip{number}": text for number, text in enumerate(recipes.values())}
            faults = lint(name, project, numbered)
            known[name] = dict(zip(recipes, faults.values(), strict=True))
        return known[name]

    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_editor_and_check_name_the_same_line(
    name: str, slips: Callable[[str], Findings]
) -> None:
    for slip, _, _, line, _ in SLIPS:
        faults = slips(name)[slip]
        if line and faults:
            # Taplo puts a key that is not allowed at each line of its table, this one too
            assert line in {place for place, _ in faults}, (slip, faults)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_says_which_slips_an_editor_finds(
    name: str, slips: Callable[[str], Findings]
) -> None:
    page = (ROOT / "docs" / "how-to" / "editors.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (yes|) *\| (yes|) *\|$", page, flags=re.MULTILINE)
    told = {row[0]: row[1 + PROGRAMS.index(name)] == "yes" for row in rows}
    assert told == {slip: bool(faults) for slip, faults in slips(name).items()}


def test_every_option_says_what_it_means_its_limits_and_its_paper(schema: dict[str, Any]) -> None:
    plugins = {name: table for name, table in schema["definitions"].items() if name != "_used"}
    assert len(plugins) > 80
    for name, table in plugins.items():
        assert "\n\nhooks: " in table["description"], name
        for option, part in table["properties"].items():
            assert part["description"], (name, option)
            if option != "use":
                assert f"\n\n{name}: " in part["description"], (name, option)
    weight = plugins["gradient_penalty"]["properties"]["weight"]
    meaning, facts, paper = weight["description"].split("\n\n")
    assert meaning == "The paper's lambda."
    assert facts == "at least 0; default 10.0; may be a schedule"
    assert "[arXiv:1704.00028](https://arxiv.org/abs/1704.00028)" in paper
    assert "gradient-difference 0.1.0" in plugins["gradient_difference"]["description"]
    assert "at least 1" in schema["properties"]["batch_size"]["description"]


class LanguageServer:
    """Tombi, as an editor talks to it."""

    def __init__(self, project: Path) -> None:
        self.process = subprocess.Popen(
            [program("tombi"), "lsp", "--offline"], cwd=project,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.number = 0
        self.ask("initialize", {"rootUri": project.as_uri(), "capabilities": {}})
        self.send({"method": "initialized", "params": {}})

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        length = 0
        while line := self.process.stdout.readline().strip():
            if line.lower().startswith(b"content-length"):
                length = int(line.partition(b":")[2])
        message: dict[str, Any] = json.loads(self.process.stdout.read(length))
        return message

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        self.number += 1
        self.send({"id": self.number, "method": method, "params": params})
        while (answer := self.read()).get("id") != self.number or "method" in answer:
            if "id" in answer:  # a question to the editor
                self.send({"id": answer["id"], "result": None})
        return answer.get("result")

    def at(self, file: Path, text: str, method: str) -> Any:
        """Ask about the place of "|" in a text, again and again until the file is read."""
        before, _, after = text.partition("|")
        place = {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}
        document = {"uri": file.as_uri(), "languageId": "toml", "version": 1}
        opened = document | {"text": before + after}
        self.send({"method": "textDocument/didOpen", "params": {"textDocument": opened}})
        for _ in range(200):
            params = {"textDocument": {"uri": file.as_uri()}, "position": place}
            if answer := self.ask(f"textDocument/{method}", params):
                return answer
        raise AssertionError(f"no answer to {method} in {text}")


@pytest.fixture
def server(project: Path) -> Iterator[LanguageServer]:
    started = LanguageServer(project)
    yield started
    started.process.kill()
    started.process.communicate()


def test_an_editor_offers_and_explains_options(server: LanguageServer, project: Path) -> None:
    head = "iterations = 1\n[plugins]\n"
    file = project / "recipes" / "a.toml"
    hover = server.at(file, head + "gradient_penalty = { wei|ght = 3 }\n", "hover")
    shown = json.dumps(hover)
    assert "The paper's lambda." in shown
    assert "at least 0" in shown
    assert "arXiv:1704.00028" in shown

    def offered(name: str, text: str) -> set[str]:
        found = server.at(project / "recipes" / name, head + text, "completion")
        items = found if isinstance(found, list) else found["items"]
        return {item["label"] for item in items}

    assert {"ema", "gradient_difference"} <= offered("b.toml", "|\n")
    assert {"weight", "target"} <= offered("c.toml", "gradient_penalty = { | }\n")
    assert {'"l1"', '"mse"'} <= offered("d.toml", "pixel_loss = { kind = | }\n")
    assert {"delta", "kind"} <= offered("e.toml", 'l1 = { use = "pixel_loss", | }\n')


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ganlab.commands.schema.recipe_schema", lambda: {"title": "recipe"})
    monkeypatch.setattr("ganlab.commands.describe.broken_plugins", dict)
    return tmp_path


def test_schema_prints_json_and_writes_nothing(here: Path) -> None:
    assert json.loads(invoke("schema").stdout) == {"title": "recipe"}
    assert list(here.iterdir()) == []


def test_the_first_line_of_a_recipe_names_the_schema_once(here: Path) -> None:
    (here / "mine").mkdir()
    recipe = here / "mine" / "r.toml"
    recipe.write_bytes(b"\xef\xbb\xbf# mine\r\niterations = 1\r\n")
    for _ in range(2):
        assert invoke("schema", "--write", recipe).exit_code == 0
        assert recipe.read_bytes() == (
            b"\xef\xbb\xbf#:schema ../.ganlab/recipe.schema.json\r\n\r\n"
            b"# mine\r\niterations = 1\r\n"
        )
    assert load_recipe(recipe).iterations == 1


def test_a_recipe_is_changed_only_on_request_and_that_of_a_run_never(here: Path) -> None:
    run = here / "runs" / "r-1"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text("iterations = 1\n")
    (run / "manifest.json").write_text("{}")
    for arguments in (["schema", run / "recipe.toml"], ["schema", "--write", run / "recipe.toml"]):
        assert invoke(*arguments).exit_code == 2
    assert (run / "recipe.toml").read_text() == "iterations = 1\n"
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_configurations_of_the_users_own_are_kept_and_told(here: Path) -> None:
    (here / "tombi.toml").write_text("# mine\n")
    done = invoke("schema", "--write")
    assert "tombi.toml is kept as it is" in done.stderr
    assert (here / "tombi.toml").read_text() == "# mine\n"
    assert ".taplo.toml" in done.stdout
    again = invoke("schema", "--write")
    assert ".taplo.toml" not in again.stdout + again.stderr
