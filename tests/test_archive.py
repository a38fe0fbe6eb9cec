"""The file of a packed run comes from a stranger: nothing in it is believed."""

import io
import json
import random
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from packed import changed_json, forged

from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.runs import archive as archives
from ganlab.runs.archive import unpack

Change = Callable[[zipfile.ZipFile], None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a small run."""
    from tiny import TINY

    folder = tmp_path_factory.mktemp("packed")
    (folder / "tiny.toml").write_text(TINY)
    for command in (
        ["run", folder / "tiny.toml", "--runs", folder, "--name", "r"],
        ["pack", folder / "r", "-o", folder / "r.zip"],
    ):
        result = CliRunner().invoke(main, [str(a) for a in command], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return folder / "r.zip"


def refusal(file: Path) -> str:
    """The message of `ganlab verify`, which must be one line, with exit code 2."""
    result = CliRunner().invoke(main, ["verify", str(file)], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(str(file)), line
    assert line.isprintable()
    return line


def member(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def add(name: str, mode: int = stat.S_IFREG | 0o644, content: bytes = b"x") -> Change:
    def change(opened: zipfile.ZipFile) -> None:
        opened.writestr(member(name, mode), content)

    return change


def bomb(opened: zipfile.ZipFile) -> None:
    opened.writestr(member("status.json"), bytes(2**20 + 1), zipfile.ZIP_DEFLATED)


def many(opened: zipfile.ZipFile) -> None:
    for number in range(300):
        opened.writestr(member(f"a{number}.py"), b"")


def lzma(opened: zipfile.ZipFile) -> None:
    opened.writestr(member("other.py"), b"x", zipfile.ZIP_LZMA)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (add("../evil.py"), "no such file belongs into it"),
        (add("/etc/evil.py"), "no such file belongs into it"),
        (add("..\\evil.py"), "no such file belongs into it"),
        (add("C:evil.py"), "no such file belongs into it"),
        (add("folder/"), "no such file belongs into it"),
        (add("checkpoint.pt"), "no such file belongs into it"),
        (add("a\x1b]0;evil\x07.py"), "no such file belongs into it"),
        (add("evil.py", stat.S_IFLNK | 0o777, b"/etc/passwd"), "a link or another special file"),
        (add("evil.py", stat.S_IFIFO | 0o644), "a link or another special file"),
        (add("Recipe.toml"), "no such file belongs into it"),
        (add("stats.jsonl"), "twice"),
        (add("evil.py"), "differ in 'evil.py'"),
        (bomb, "1048577 bytes; at most 1048576"),
        (many, "at most 256"),
        (lzma, "compressed in a way that is not allowed"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_anything_else_in_it_is_refused_before_anything_is_written(
    packed: Path, tmp_path: Path, change: Change, fault: str
) -> None:
    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(hostile, "w") as target:
        for info in source.infolist():
            if not (change is bomb and info.filename == "status.json"):
                target.writestr(info, source.read(info))
        change(target)
    assert fault in refusal(hostile)
    (tmp_path / "inner").mkdir()
    with pytest.raises(RecipeError):
        unpack(hostile, tmp_path / "inner")
    if "differ in" not in fault:
        assert not any((tmp_path / "inner").iterdir())


@pytest.mark.parametrize("name", ["pack.json", "recipe.toml", "manifest.json", "stats.jsonl"])
def test_an_archive_that_lacks_a_file_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for info in source.infolist():
            if info.filename != name:
                target.writestr(info, source.read(info))
    assert f"it lacks {name}" in refusal(tmp_path / "a.zip")


def test_what_is_no_archive_is_refused(packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    assert "no such file" in refusal(file)
    for content in (b"", b"PK", b"not a zip", packed.read_bytes()[:1000]):
        file.write_bytes(content)
        assert "not a zip file" in refusal(file)
    assert "it is a folder" in refusal(tmp_path)  # a folder


def test_an_encrypted_member_is_refused(packed: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    for match in re.finditer(b"PK\x01\x02", content):
        content[match.start() + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "pack.json is encrypted" in refusal(tmp_path / "a.zip")


def test_a_member_that_is_larger_than_it_says_is_not_read_on(packed: Path, tmp_path: Path) -> None:
    """The sizes in the directory of the archive are forged; a megabyte is hidden behind them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(stream, "w") as target:
        for info in source.infolist():
            content = bytes(2**24) if info.filename == "status.json" else source.read(info)
            target.writestr(member(info.filename), content, zipfile.ZIP_DEFLATED)
    content = bytearray(stream.getvalue())
    for match in re.finditer(b"PK\x01\x02", content):
        at = match.start()
        (size,) = struct.unpack_from("<I", content, at + 24)
        struct.pack_into("<I", content, at + 24, 10 if size == 2**24 else size)
    (tmp_path / "a.zip").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "a.zip")


def test_a_file_that_was_changed_after_packing_is_found(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename == "stats.jsonl":
                content = content.replace(b"1", b"2", 1)
            target.writestr(info, content)
    assert "stats.jsonl was changed after the run was packed" in refusal(tmp_path / "a.zip")


def test_any_flipped_byte_is_refused_or_without_effect(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    (tmp_path / "sound").mkdir()
    unpack(packed, tmp_path / "sound")
    sound = {file.name: file.read_bytes() for file in (tmp_path / "sound").iterdir()}
    draws = random.Random(0)
    file, refused = tmp_path / "a.zip", 0
    for number in range(300):
        content = bytearray(whole)
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unpack(file, folder)
        except RecipeError:
            refused += 1
        else:
            assert {one.name: one.read_bytes() for one in folder.iterdir()} == sound
    assert refused > 200


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("recipe.toml", "extends = '../../other.toml'", "extends is not allowed here"),
        ("recipe.toml", "a = [", "recipe.toml: not valid TOML"),
        ("recipe.toml", "plugins = 3", "plugins must be a table"),
        ("recipe.toml", "iterations = 1\n[plugins]\na = 3", "plugins.a = 3"),
        ("recipe.toml", "[plugins]\nadam = { use = './../adam.py' }", "is not in the file"),
        ("recipe.toml", "[plugins]\n'../x' = { use = './../x.py' }", "is not in the file"),
        ("recipe.toml", "iterations = 1\n[plugins]\nnowhere = {}", "no plugin named 'nowhere'"),
        ("manifest.json", "{", "manifest.json: damaged: "),
        ("manifest.json", "[" * 100_000, "manifest.json: damaged: "),
        ("manifest.json", '{"versions": {"torch": {}}}', "versions: torch: "),
        ("manifest.json", '{"threads": "many"}', "threads"),
        ("status.json", "[1]", "status.json: damaged: "),
        ("status.json", '{"a": ' * 50_000, "status.json: damaged: "),
        ("stats.jsonl", "", "nothing to verify"),
        ("stats.jsonl", '{"iteration": 0, "a": 1}', "nothing to verify"),
        ("stats.jsonl", '{"iteration": 1, "a": "high"}', "stats.jsonl:1: not a line of figures"),
        ("stats.jsonl", '{"a": 1}', "stats.jsonl:1: not a line of figures"),
        ("stats.jsonl", '{"iteration": NaN}', "stats.jsonl:1: not a line of figures"),
        ("scores.jsonl", '{"iteration": {"a": {"b": 1}}}', "scores.jsonl:1: not a line of scores"),
        ("data.json", '{"training": 3}', "data.json: damaged: "),
    ],
)
def test_wrong_contents_are_one_message_each(
    packed: Path, tmp_path: Path, name: str, text: str, fault: str
) -> None:
    assert fault in refusal(forged(packed, tmp_path / "a.zip", name, lambda _: text))


def test_a_terminal_obeys_nothing_in_a_file(packed: Path, tmp_path: Path) -> None:
    odd = forged(packed, tmp_path / "a.zip", "status.json", changed_json("state", "\x1b[2J"))
    result = CliRunner().invoke(main, ["verify", str(odd)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(r"run r: \x1b[2J at iteration 4 of 4")


def test_another_format_is_named(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename == "pack.json":
                content = json.dumps(json.loads(content) | {"format": 2}).encode()
            target.writestr(info, content)
    assert "format 2; this ganlab reads format 1" in refusal(tmp_path / "a.zip")


def test_an_archive_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(archives, "_add", broken)
    contents = archives.Contents(format=1, name="a", files={})
    with pytest.raises(OSError, match="disk full"):
        archives.write_archive(tmp_path / "a.zip", contents, {"recipe.toml": b""})
    assert not any(tmp_path.iterdir())


def test_an_archive_that_cannot_be_written_is_refused_in_words(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("ganlab.commands.pack.write_archive", refuse)
    result = CliRunner().invoke(
        main, ["pack", str(packed.parent / "r"), "-o", str(tmp_path / "a.zip")]
    )
    assert result.exit_code == 2
    assert "a.zip: cannot be written: Permission denied; choose another -o" in result.output
