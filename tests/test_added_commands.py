"""A plugin adds a command by an entry point, which is imported when it is used, and not before."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ganlab.cli import added, main
from ganlab.cli.completion import _Bash
from ganlab.images.files import read_image
from ganlab.published import data_sets


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Offers commands, each as (name, value of its entry point)."""

    def offer(*commands: tuple[str, str]) -> None:
        points = [EntryPoint(name, value, added.GROUP) for name, value in commands]
        monkeypatch.setattr(added, "entry_points", lambda group: points)
        added.added.cache_clear()
        added.load.cache_clear()

    return offer


@pytest.fixture(autouse=True)
def _as_before() -> object:
    yield
    added.added.cache_clear()
    added.load.cache_clear()


def test_a_first_party_plugin_paints_a_folder_by_a_command_of_its_own(tmp_path: Path) -> None:
    done = invoke("dead-leaves", tmp_path / "leaves", "--count", 2, "--size", 32)
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "leaves").iterdir())
    assert [file.name for file in files] == ["leaves-0000.png", "leaves-0001.png"]
    images = [read_image(file) for file in files]
    assert all(image.shape == (3, 32, 32) for image in images)
    assert not images[0].equal(images[1])
    assert "dead-leaves" in invoke("--help").stdout


def test_help_names_a_command_and_does_not_import_it(
    offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "added_words.py").write_text(
        "import click\n\n@click.command()\n@click.argument('word')\n"
        "def say(word):\n    click.echo(f'said {word}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    offer(("say", "added_words:say"))
    assert "say" in [line.split()[0] for line in invoke("--help").stdout.splitlines() if line]
    assert "added_words" not in sys.modules
    assert invoke("say", "hello").stdout == "said hello\n"
    assert "--traceback" in invoke("say", "--help").stdout
    sys.modules.pop("added_words")


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ([("odd", "no_such_module_at_all:x")], "cannot be imported: ModuleNotFoundError"),
        ([("odd", "json:dumps")], "(json:dumps) is no click command"),
        ([("odd", "json:dumps"), ("odd", "json:loads")], "two distributions add it; uninstall one"),
    ],
)
def test_a_command_that_cannot_be_had_is_told_in_one_line(
    offer: Callable[..., None], commands: list[tuple[str, str]], words: str
) -> None:
    offer(*commands)
    done = invoke("odd")
    assert done.exit_code == 1
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_command_of_ganlab_keeps_its_name(offer: Callable[..., None]) -> None:
    offer(("check", "json:dumps"))
    assert main.get_command(click.Context(main), "check") is main.commands["check"]


def test_a_distribution_with_a_damaged_record_stops_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "torn-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Name: torn\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[ganlab.commands]\nnonsense\n")
    monkeypatch.syspath_prepend(tmp_path)
    added.added.cache_clear()
    listed = invoke("--help")
    assert "dead-leaves" in listed.stdout
    assert listed.stderr.startswith("the entry points of torn cannot be read: TypeError")
    assert "No such command 'nosuch'" in invoke("nosuch").stderr
    monkeypatch.setenv("COMP_WORDS", "ganlab plugins gradient_p")
    assert _Bash(main, {}, "ganlab", "X").complete() == "plain,gradient_penalty"
    assert "Set5" in data_sets()
