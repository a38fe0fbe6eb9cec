"""A received run folder that attacks in every way, and what each command does with it.

A row of a table is a command, its exit code, and words that it says. After each command, whatever
it says: no code of the folder has run, no file outside has changed, no text from outside is in the
output or in a written page, and nothing that a terminal obeys is printed.
"""

import json
import os
import shutil
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import odd_files
import pytest
import torch
from click.testing import CliRunner, Result
from marks import posix
from safetensors.torch import load_file, save_file
from tiny import TINY

from ganlab.cli import main
from ganlab.images.files import write_png
from ganlab.recipe import trust
from ganlab.runs.record import of_recipe
from ganlab.tensor_files import read_safetensors, seal

SECRET = "a7e1c0ffee"
RECIPE = TINY.replace(
    "dead_leaves = { crop = 16, num_images = 2, size = 32 }",
    'image_folder = { path = "photos", evaluation_path = "held", crop = 16 }',
).replace("evaluate_every = 100", "evaluate_every = 2\nreport_every = 1\nwatch_every = 1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, as their maker has them."""
    folder = tmp_path_factory.mktemp("made")
    rng = torch.Generator().manual_seed(0)
    for part in ("photos", "held"):
        (folder / part).mkdir()
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=rng)
        write_png(image, folder / part / "a.png")
    (folder / "r.toml").write_text(RECIPE)
    for number in (0, 1):
        change = f"pixel_loss.weight={number + 1}"
        words = [
            "run",
            folder / "r.toml",
            "--set",
            change,
            "--runs",
            folder,
            "--name",
            f"r{number}",
        ]
        result = CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return folder


class Victim:
    """A user's folder with a received run in it, a run of the user's own, and a secret."""

    def __init__(self, made: Path, folder: Path) -> None:
        self.folder = folder
        self.run = shutil.copytree(made / "r1", folder / "received")
        shutil.copytree(made / "r0", folder / "mine")
        shutil.copytree(made / "held", folder / "photos")
        self.secret = folder / "home" / "secret.toml"
        self.secret.parent.mkdir()
        self.secret.write_text(f'password = "{SECRET}"\n')
        self.before = self.secret.stat().st_mtime_ns
        self.trace = folder / "home" / "RAN"

    def write(self, name: str, change: Callable[[str], str]) -> None:
        file = self.run / name
        file.write_text(change(file.read_text()))
        if name == "recipe.toml":  # an attacker's digests fit
            self.record(of_recipe(file.read_text()))

    def record(self, more: dict[str, Any]) -> None:
        """Add to the manifest."""
        file = self.run / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))

    def strange_code(self) -> str:
        return f"open({str(self.trace)!r}, 'w').close()\n# {uuid.uuid4()}\n{PLUGIN}"

    def does(self, command: str) -> Result:
        """What a command does; the attack has failed, whatever it was."""
        words = command.replace("RUN", str(self.run)).split(" ")
        result = CliRunner().invoke(main, words)
        problem = f"{command}: {result.output}"
        assert result.exception is None or isinstance(result.exception, SystemExit), problem
        assert "Traceback" not in result.output, problem
        assert not self.trace.exists(), problem
        assert self.secret.stat().st_mtime_ns == self.before, problem
        assert [path.name for path in self.secret.parent.iterdir()] == ["secret.toml"], problem
        assert SECRET not in result.output, problem
        assert not [c for c in result.output if ord(c) < 32 and c not in "\n"], problem
        for page in self.folder.rglob("*"):
            if page.suffix in (".html", ".zip") and page.is_file() and not page.is_symlink():
                assert SECRET.encode() not in page.read_bytes(), problem
        return result

    def expect(self, table: str) -> None:
        """Check a table: a command, its exit code, and words that it says."""
        for row in filter(str.strip, table.splitlines()):
            command, codes, words = (part.strip() for part in row.split("|"))
            result = self.does(command)
            assert str(result.exit_code) in codes.split(" or "), f"{row}\n{result.output}"
            assert words in result.output, f"{row}\n{result.output}"


PLUGIN = '''
from ganlab import Plugin, hookimpl


class Idea(Plugin):
    """A loss."""

    @hookimpl
    def generator_loss(self, fake, real):
        return {"G/idea": 0.1 * (fake - real).abs().mean()}
'''


@pytest.fixture
def victim(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Victim:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_consented", set())
    return Victim(made, tmp_path)


OPEN = [
    "resume RUN", "report RUN", "pack RUN", "checkpoints RUN", "diff mine RUN",
    "compare mine RUN", "upscale RUN photos/a.png", "eval RUN --data photos",
]  # fmt: skip


@pytest.mark.parametrize("command", OPEN)
def test_a_link_at_any_place_is_refused(victim: Victim, command: str) -> None:
    places = [path for path in victim.run.rglob("*") if path.name != "recipe.toml"]
    names = {path.relative_to(victim.run) for path in places}
    new = {"checkpoints/0000009.pt", "samples/0000009.png", "idea.py", "x.tmp", ".lock"}
    for name in sorted({str(name) for name in names} | new):
        place, aside = victim.run / name, victim.folder / "aside"
        if there := place.exists():
            place.rename(aside)
        place.symlink_to(victim.secret.parent if aside.is_dir() else victim.secret)
        victim.expect(f"{command} | 2 | {name} is a link")
        place.unlink()
        if there:
            aside.rename(place)
    victim.expect("runs --runs . | 0 | received")


def test_a_link_in_the_place_of_the_recipe_shows_nothing_of_it(victim: Victim) -> None:
    (victim.run / "recipe.toml").unlink()
    (victim.run / "recipe.toml").symlink_to(victim.secret)
    victim.expect("""
        report RUN               | 2 | is a link
        explain RUN/recipe.toml  | 2 | secret
        check RUN/recipe.toml    | 2 |
        run RUN/recipe.toml      | 2 |
    """)


@posix
@pytest.mark.parametrize("name", ["stats.jsonl", "samples/x.png", "idea.py", "status.json"])
def test_a_pipe_does_not_hang_a_command(victim: Victim, name: str) -> None:
    place = victim.run / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    for command in OPEN[:6]:
        victim.expect(f"{command} | 2 | is a pipe")


CODE = """
    resume RUN                     | 2 | --trust-code
    check RUN/recipe.toml          | 2 | idea.py
    explain RUN/recipe.toml        | 2 | --trust-code
    trace RUN/recipe.toml          | 2 | --trust-code
    bench RUN/recipe.toml          | 2 | --trust-code
    run RUN/recipe.toml            | 2 | --trust-code
    bisect mine RUN --plan         | 2 | --trust-code
    report RUN                     | 0 | page:
    diff mine RUN                  | 0 | plugins.idea
    compare mine RUN               | 0 | page:
    runs --runs .                  | 0 | received
    checkpoints RUN                | 0 | sound
    checkpoints RUN 4              | 0 | tensors
    upscale RUN photos/a.png -o up | 0 | left out: idea
    eval RUN --data photos         | 0 | left out: idea
    pack RUN -o p.zip              | 0 | idea.py
    verify p.zip                   | 2 | --trust-code
"""


def test_code_runs_at_no_command(victim: Victim) -> None:
    (victim.run / "idea.py").write_text(victim.strange_code())
    victim.write("recipe.toml", lambda text: f'{text}\n[plugins.idea]\nuse = "./idea.py"\n')
    manifest = json.loads((victim.run / "manifest.json").read_text())
    mine = {"idea": {"hooks": ["generator_loss"], "paths": [], "sha256": ""}}
    victim.record({"plugins": manifest["plugins"] | mine})
    unfinished = {"state": "stopped", "iteration": 2, "of": 4}
    (victim.run / "status.json").write_text(json.dumps(unfinished))
    (victim.run / "torch.py").write_text(victim.strange_code())  # is never taken for torch
    (victim.run / "conftest.py").write_text(victim.strange_code())
    victim.expect(CODE)


@pytest.mark.parametrize("base", ["../home/secret.toml", "/etc/passwd", "recipe2.toml"])
def test_a_recipe_of_a_run_reads_no_other_recipe(victim: Victim, base: str) -> None:
    (victim.run / "recipe2.toml").write_text(RECIPE)
    victim.write("recipe.toml", lambda text: f'extends = "{base}"\n{text}')
    victim.expect("""
        resume RUN              | 2 | extends is not allowed
        explain RUN/recipe.toml | 2 | extends is not allowed
        diff mine RUN           | 2 | extends is not allowed
        pack RUN                | 2 | extends is not allowed
    """)


@pytest.mark.parametrize("use", ["../home/x.py", "/home/x.py", "./a/../../home/x.py"])
def test_code_outside_the_folder_is_not_named(victim: Victim, use: str) -> None:
    victim.write("recipe.toml", lambda text: f'{text}\n[plugins.idea]\nuse = "{use}"\n')
    victim.expect("resume RUN | 2 | \n explain RUN/recipe.toml | 2 | outside the folder")


@pytest.mark.parametrize("odd", ["code", "bomb", "cyclic", "alias", "deep", "text", "nan", "meta"])
def test_an_odd_checkpoint_is_one_line(victim: Victim, odd: str) -> None:
    from ganlab.checkpoint import checkpoint_file
    from ganlab.runs.data import file_sha256

    path = checkpoint_file(victim.run / "checkpoints", 4)
    path.write_bytes(odd_files.pickles(victim.trace)[odd])
    path.with_suffix(".sha256").write_text(f"{file_sha256(path)}  {path.name}\n")
    (victim.run / "status.json").write_text('{"state": "stopped", "iteration": 4, "of": 8}')
    victim.expect(
        """
        checkpoints RUN   | 0 | sound
        checkpoints RUN 4 | 1 | not a checkpoint that ganlab wrote
        resume RUN        | 1 | not a checkpoint that ganlab wrote
        report RUN        | 0 | page
    """
    )


@pytest.mark.parametrize("digest", [b"", b"\xff" * 300, b"../../home/secret.toml", b"0" * 10**6])
def test_an_odd_digest_is_a_damaged_checkpoint(victim: Victim, digest: bytes) -> None:
    (victim.run / "checkpoints" / "0000004.sha256").write_bytes(digest)
    (victim.run / "checkpoints" / "\u00b2.sha256").write_bytes(digest)
    victim.expect("checkpoints RUN | 0 | damaged \n checkpoints RUN 4 | 1 | damaged")


def test_weights_that_are_not_finite_are_refused(victim: Victim) -> None:
    file = victim.run / "generator.safetensors"
    tensors, about = read_safetensors(file)
    name = next(iter(tensors))
    tensors = load_file(file)
    tensors[name].view(-1)[0] = torch.inf
    told = json.loads(about["ganlab"])
    del told["sha256"]
    save_file(tensors, file, seal(tensors, told))  # an attacker's digest fits
    victim.expect(
        """
        upscale RUN photos/a.png  | 1 | generator.safetensors: damaged: its tensor
        eval RUN --data photos    | 1 | generator.safetensors: damaged: its tensor
        pack RUN                  | 1 | generator.safetensors: damaged: its tensor
        pack RUN --weights        | 1 | generator.safetensors: damaged: its tensor
        report RUN                | 0 | page
    """
    )


@pytest.mark.parametrize("odd", [*odd_files.safetensors_files()])
def test_odd_weights_are_one_line(victim: Victim, odd: str) -> None:
    file = victim.run / "generator.safetensors"
    file.write_bytes(odd_files.safetensors_files()[odd])
    victim.expect("upscale RUN photos/a.png | 1 | generator.safetensors \n pack RUN | 1 |")


HTML = f"<script>alert('{SECRET}')</script>"


@pytest.mark.parametrize(
    "content",
    [HTML.encode(), b"<svg>%s</svg>" % HTML.encode(), b"\x89PNG\r\n\x1a\n" + HTML.encode(), b"",
     b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)],
    ids=["html", "svg", "png in name", "empty", "bomb"],
)  # fmt: skip
def test_a_picture_that_is_another_file_is_in_no_page(victim: Victim, content: bytes) -> None:
    for folder in ("samples", "pictures"):
        for picture in (victim.run / folder).glob("*.png"):
            picture.write_bytes(content)
    victim.expect("report RUN | 0 | page \n compare mine RUN -o c.html | 0 | page")


MARKUP = "[bold red]x[/] <script>alert(1)</script> \x1b[31m \u202e \n{{7*7}}"
RECORDS = {
    "status.json": [
        '{"state": "done", "iteration": "x", "scores": [1]}', "[]", "{", "null", '"x"',
        '{"state": {"a": 1}, "best": 3, "verdicts": 7, "message": 3}', "[" * 10_000,
        json.dumps({"state": MARKUP, "message": MARKUP, "verdicts": [MARKUP],
                    "scores": {MARKUP: 1.0}, "iteration": 4, "of": 4}),
        '{"state": "done", "iteration": ' + "9" * 5000 + "}",
    ],
    "stats.jsonl": [
        "[1]\n", "{}\n", '{"iteration": "x"}\n', "\x00\n", '{"iteration": 1, "a": {"b": 1}}\n',
        json.dumps({"iteration": 1, MARKUP: 1.0, f"evaluation/{MARKUP}": 2.0}) + "\n",
        '{"iteration": 1e400, "D/x": 1}\n', '{"iteration": -1, "D/x": "y"}\n', "[" * 10_000 + "\n",
    ],
    "scores.jsonl": [
        "3\n", '{"iteration": 2}\n', '{"bicubic": 3}\n', '{"iteration": 2, "images": {"a": 3}}\n',
        json.dumps({"iteration": 2, "images": {MARKUP: {"psnr_y": 1}}}) + "\n",
    ],
    "timing.jsonl": ["3\n", '{"iteration": 2, "seconds": "x"}\n'],
    "verdicts.jsonl": ["3\n", '{"verdict": 3}\n', json.dumps({"verdict": MARKUP}) + "\n"],
    "manifest.json": [
        "[]", "{", '{"plugins": 3, "data": 3, "versions": 3}',
        '{"plugins": {"a": 3}, "real_shape": "x", "condition_shape": 3}',
        json.dumps({"device_name": MARKUP, "platform": MARKUP, "versions": {MARKUP: MARKUP}}),
    ],
    "data.json": ["[]", "{", '{"training": 3}'],
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_odd_records_are_one_line_and_shown_as_they_are(victim: Victim, name: str) -> None:
    for content in RECORDS[name]:
        (victim.run / name).write_text(content)
        for command in ("runs --runs .", "report RUN", "diff mine RUN", "checkpoints RUN",
                        "compare mine RUN -o c.html", "pack RUN -o p.zip"):  # fmt: skip
            result = victim.does(command)
            assert result.exit_code in (0, 1, 2), command
            Path("p.zip").unlink(missing_ok=True)
        for page in (victim.run / "report.html", Path("c.html")):
            if page.exists():
                assert "<script>alert" not in page.read_text(encoding="utf-8")


@posix
def test_a_hostile_name_of_a_run_is_shown_as_it_is(victim: Victim) -> None:
    name = "[bold red]x[\x1b[31m\n<script>alert(1)<"
    victim.run.rename(victim.folder / name)
    victim.run = victim.folder / name
    for words in (["runs", "--runs", "."], ["report", name], ["checkpoints", name],
                  ["diff", "mine", name], ["compare", "mine", name, "-o", "c.html"]):  # fmt: skip
        result = CliRunner().invoke(main, words)
        assert result.exit_code in (0, 2), result.output
        assert "\x1b" not in result.output, words
        assert not result.exception or isinstance(result.exception, SystemExit)
    assert "<script>alert" not in (victim.run / "report.html").read_text(encoding="utf-8")
