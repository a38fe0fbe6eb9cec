"""Names of files, runs and plugins are shown as they are; a terminal obeys none of them."""

import io
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.table import Table
from tiny import TINY

from ganlab.cli import main
from ganlab.cli.output import Lasting
from ganlab.errors import printable
from ganlab.images.files import write_png
from ganlab.names import check_name
from ganlab.terminal import Terminal, visible


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run and pictures of odd names."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "odd" / "q[").mkdir(parents=True)
    for name in ("[red]x.png", "q[/b].png", "[link=http:a]y.png", ":smile:.png", "\x1b[31mz.png"):
        image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
        write_png(image, folder / "odd" / name)
    (folder / "t.toml").write_text(TINY.replace("iterations = 4", "iterations = 1"))
    result = CliRunner().invoke(main, ["run", str(folder / "t.toml"), "--runs", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def ganlab(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_of_pictures_are_no_markup(here: Path) -> None:
    result = ganlab("eval", "t-1", "--data", "odd")
    assert result.exit_code == 0, result.output
    for name in ("[red]x.png", "q[/b].png", "[link=http:a]y.png", ":smile:.png", r"\x1b[31mz.png"):
        assert name in result.stdout, result.stdout
    assert "\x1b" not in result.output
    made = ganlab("upscale", "t-1", *sorted((here / "odd").rglob("*.png")), "-o", "large")
    assert made.exit_code == 0 and r"large/\x1b[31mz.png" in made.stdout, made.output


REFUSED = ["con", "NUL.txt", "com1", "a\nb", "\x1b[31mq", "--help", "-n", "[red]q", "q.", "q ",
           " q", "x" * 300, "a\0b", "\udcff", "Mu\u0308ller", "..", ".", "", "../q", "a/b", "a\\b",
           "C:", "C:q", "~", "a*b", "\u202eq", "q\u200b", ".hidden", "a|b", "<b>",
           "\U0001f600"]  # fmt: skip
TAKEN = ["t-1", "wgan_gp x4", "2024-01-31", "M\u00fcller", "\u65e5\u672c\u8a9e",
         "\u0939\u093f\u0902", "a.b", "lr=1e-4,seed=0", "console", "nulls", "_x",
         "v1.0 (final)", "x" * 100]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_is_no_folder_everywhere_is_refused_in_one_line(here: Path, name: str) -> None:
    result = ganlab("run", "t.toml", f"--name={name}", "--runs", "runs")
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("--name ") and line.isprintable()
    assert sorted(p.name for p in here.iterdir() if p.is_dir()) in (
        ["odd", "t-1"],
        ["large", "odd", "t-1"],
    )


@pytest.mark.parametrize("name", TAKEN, ids=ascii)
def test_a_name_that_people_use_is_taken(name: str) -> None:
    assert check_name(name, "--name") == name


def test_a_recipe_of_any_name_can_be_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    odd = tiny.rename(tiny.parent / ("[red]\n\x1b" + "x" * 200 + ".toml"))
    result = ganlab("run", odd.name, "--set", "iterations=1")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    (run,) = Path("runs").iterdir()
    assert run.name == "[red]__" + "x" * 93 + "-1"


HOSTILE = [
    "[red]x",
    "[/]",
    "[link=http://a]b[/link]",
    ":smile:",
    "\x1b[31m",
    "a\rb",
    "\x9b31m",
    "\u202eb",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_table_shows_a_name_as_it_is(text: str) -> None:
    stream = io.StringIO()
    console = Terminal(file=stream, width=200, force_terminal=True, color_system="standard")
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    console.print(text, style="bold")
    shown = stream.getvalue()
    for style in re.findall(r"\x1b\[[\d;]*m", shown):  # those of the table itself
        shown = shown.replace(style, "")
    assert shown.count(printable(text)) == 4 and visible(shown) == shown


def test_what_is_printed_is_obeyed_by_no_terminal_but_for_the_colours_of_tables() -> None:
    stream = io.StringIO()
    output = Lasting(stream)
    print("a\x1b[31mb\tc\nd", file=output)
    assert stream.getvalue() == "a\\x1b[31mb\tc\nd\n"
    Terminal(file=output, force_terminal=True, color_system="standard").print("e", style="red")
    assert stream.getvalue().endswith("\x1b[31me\x1b[0m\n")


def test_a_hostile_name_of_a_loss_or_figure_ends_no_command(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    Path("odd.py").write_text(
        'from ganlab import Plugin, hookimpl\n\n\nclass Odd(Plugin):\n    """[red]Odd[/]."""\n\n'
        "    @hookimpl\n    def generator_loss(self, fake):\n"
        "        return {'G/[/b]\x1b[31m': fake.mean()}\n\n"
        "    @hookimpl\n    def evaluate(self, run, generator):\n"
        "        return {'[/]:smile:\x1b[31m': 1.0}\n"
    )
    tiny.write_text(tiny.read_text() + 'odd = { use = "./odd.py" }\n')
    for words in (["check"], ["run", "--name", "r"], ["trace"], ["explain"], ["bench"]):
        result = ganlab(words[0], tiny.name, *words[1:])
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_output_of_any_encoding_shows_names_of_any_bytes(
    here: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("M\u00fcller \u65e5", os.fsdecode(b"M\xfcller")):
        (here / "many" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "t-1" / "recipe.toml", here / "many" / name)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, errors="strict"))
    with pytest.raises(SystemExit) as end:
        main(["runs", "--runs", "many"])
    assert end.value.code == 0
    assert rb"\udcfc" in written.getvalue()
