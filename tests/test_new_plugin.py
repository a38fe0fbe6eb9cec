"""`ganlab plugins new` writes a distribution that is right as it is, and `plugins check` judges."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ganlab.cli import main
from ganlab.commands.check_plugin import plugins_of
from ganlab.commands.new_plugin import examples, new_plugin
from ganlab.plugin import hooks_of
from ganlab.testing import RULES, offering
from ganlab.testing.experiment import SLOTS

HOOKS = list(examples())


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["plugins", *map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_new_plugin_implements_its_hook_and_is_what_its_distribution_offers(
    hook: str, tmp_path: Path
) -> None:
    folder = new_plugin("an-idea", hook, tmp_path)
    assert folder == tmp_path / "ganlab-an-idea"
    (kind,) = plugins_of(str(folder / "ganlab_an_idea.py"))
    assert kind.__name__ == "AnIdea"
    assert hook in hooks_of(kind)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["ganlab"] == {"an_idea": "ganlab_an_idea:AnIdea"}
    recipe = tomllib.loads((folder / "recipe.toml").read_text())["plugins"]
    can_be_left_out = hook not in SLOTS - {"make_optimizer"}
    assert ("--without an_idea" in (folder / "README.md").read_text()) is can_be_left_out
    assert ("an_idea" in recipe) and len(recipe) == (7 if can_be_left_out else 6)


@pytest.mark.parametrize("hook", HOOKS)
def test_its_code_is_in_the_usual_form(hook: str, tmp_path: Path) -> None:
    folder = new_plugin("an_idea", hook, tmp_path)
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    assert ruff
    for words in (["check", "--select", "E,F,I,B,UP"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *words, "--no-cache", "--line-length", "100", "."],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def own_tests(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize("hook", HOOKS)
def test_its_own_tests_pass_at_once(hook: str, tmp_path: Path) -> None:
    done = own_tests(new_plugin("an_idea", hook, tmp_path), "-n", "0")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.long
def test_its_own_tests_fail_when_its_term_is_made_a_sum(tmp_path: Path) -> None:
    folder = new_plugin("an_idea", "generator_loss", tmp_path)
    file = folder / "ganlab_an_idea.py"
    file.write_text(file.read_text().replace(".abs().mean()", ".abs().sum()"))
    done = own_tests(folder, "-n", "0")
    assert done.returncode == 1
    assert "takes_a_batch_in_parts" in done.stdout and "test_its_value_is_known" in done.stdout


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    assert invoke("new", "idea", "--hook", "labels", "--into", tmp_path).exit_code == 0
    before = (tmp_path / "ganlab-idea" / "README.md").read_text()
    result = invoke("new", "idea", "--hook", "penalty", "--into", tmp_path)
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert (tmp_path / "ganlab-idea" / "README.md").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["ganlab-idea"]


@pytest.mark.parametrize("name", ["2nd", "Idea", "a/b", "../idea", "class", "", "a" * 99])
def test_a_name_that_no_module_can_have_is_refused(name: str, tmp_path: Path) -> None:
    result = invoke("new", "--hook", "labels", "--into", tmp_path, "--", name)
    assert result.exit_code == 2
    assert "cannot name a plugin and its module" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gradient_penalty", "a plugin 'gradient_penalty' is installed already"),
        ("plugins", "a module 'ganlab_plugins' is installed already"),
        ("path", "the plugin's files import another Path"),
        ("tensor", "the plugin's files import another Tensor"),
    ],
)
def test_a_name_that_would_hide_another_is_refused(name: str, words: str, tmp_path: Path) -> None:
    result = invoke("new", name, "--hook", "penalty", "--into", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == f"{words}; take another name\n"
    assert not list(tmp_path.iterdir())


def test_a_hook_that_is_misspelt_is_refused_with_the_near_one(tmp_path: Path) -> None:
    result = invoke("new", "idea", "--hook", "penalti", "--into", tmp_path)
    assert result.exit_code == 2
    assert "did you mean 'penalty'?" in " ".join(result.stderr.split())


WRONG = '''\
from ganlab import Plugin, hookimpl


class Wrong(Plugin):
    """Adds a term without a gradient (2026)."""

    @hookimpl
    def generator_loss(self, fake):
        return {f"G/{self.name}": fake.detach().square().mean()}
'''


def test_check_names_each_rule_that_a_file_breaks(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    result = invoke("check", tmp_path / "wrong.py")
    assert result.exit_code == 1
    told = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert told.keys() == {rule.name for rule in RULES}
    assert "BROKEN  G/wrong has no gradient on G" in told["trains_its_own_network"]
    assert told["says_what_it_is"].endswith("  holds")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("gradient_penaltie", "did you mean 'gradient_penalty'?"),
        ("json", "it defines no class derived from Plugin"),
        ("missing.py", "ganlab plugins check: no file 'missing.py'\n"),
    ],
)
def test_what_cannot_be_checked_is_told(module: str, words: str) -> None:
    result = invoke("check", module)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_link_to_a_file_stands_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "wrong.py").write_text(WRONG)
    try:
        (tmp_path / "link.py").symlink_to(tmp_path / "there" / "wrong.py")
    except OSError:
        pytest.skip("this system makes no links for this user")
    (kind,) = plugins_of(str(tmp_path / "link.py"))
    assert kind.__name__ == "Wrong"


@pytest.mark.long
def test_an_installed_plugin_is_checked_by_its_name() -> None:
    result = invoke("check", "label_smoothing", "--json")
    assert result.exit_code == 0, result.stdout
    (found,) = json.loads(result.stdout)
    assert found["plugin"] == "label_smoothing"
    assert {f["rule"] for f in found["findings"]} == {rule.name for rule in RULES}


def test_a_name_after_plugins_still_shows_the_plugin() -> None:
    assert invoke("label_smoothing").stdout == invoke("show", "label_smoothing").stdout
    assert "arXiv:1606.03498" in invoke("label_smoothing").stdout
    assert {"check", "new", "show"} <= set(invoke("--help").stdout.split())


def test_what_is_offered_for_a_time_is_gone_after_it(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(WRONG)
    (kind,) = plugins_of(str(tmp_path / "right.py"))
    with offering({"for_a_time": kind}):
        assert plugins_of("for_a_time") == [kind]
    assert "no installed plugin" in invoke("check", "for_a_time").stderr
