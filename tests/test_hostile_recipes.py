"""Any text is a recipe or one message of one line; size and depth are capped before any work."""

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ganlab.cli import main
from ganlab.errors import RecipeError
from ganlab.recipe.file import MAX_BYTES, MOST_FILES, Origin, RecipeTable, read_recipe
from ganlab.recipe.model import load_recipe

FULL = MAX_BYTES - 200
HOSTILE = {
    "a huge hexadecimal number": "iterations = 0x" + "f" * 4000,
    "a larger one": "iterations = 0x" + "f" * FULL,
    "a huge octal number": "iterations = 0o" + "7" * 4000,
    "a huge binary number": "iterations = 0b" + "1" * FULL,
    "a huge decimal number": "iterations = " + "9" * FULL,
    "just beyond 64 bits": "iterations = 9223372036854775808",
    "a negative one": "iterations = -9223372036854775809",
    "a huge number in a plugin": "[plugins]\nr1 = { weight = " + "9" * 400 + " }",
    "a huge float": "iterations = " + "9" * 4000 + ".0",
    "a huge exponent": "iterations = 1e" + "9" * 4000,
    "a tiny exponent": "iterations = 1e-" + "9" * 4000,
    "a date": "iterations = 2024-01-01T00:00:00Z",
    "a time in a list": "iterations = [[07:32:00]]",
    "8,000 dotted keys": "".join(f"a.b{n} = 1\n" for n in range(FULL // 11)),
    "one key of 20,000 parts": ".".join("a" * 20_000) + " = 1",
    "keys of 31 parts": "".join(f"{'.'.join([f'k{n}'] * 31)} = 1\n" for n in range(400)),
    "headers of 31 parts": "".join(f"[{'.'.join([f'k{n}'] * 31)}]\n" for n in range(400)),
    "8,000 plugins": "[plugins]\n" + "".join(f"p{n} = {{}}\n" for n in range(5_000)),
    "inline keys of 15 parts": "a = { "
    + ", ".join(".".join([f"k{n}"] * 15) + " = 1" for n in range(900)) + " }",
    "a plugin dropped among many": "[plugins]\n"
    + "".join(f"p{n} = {{}}\n" for n in range(5_000)) + "q = false",
    "deep lists": "iterations = " + "[" * 30_000 + "]" * 30_000,
    "lists 200 deep": "iterations = " + "[" * 200 + "]" * 200,
    "deep tables": "a = " + "{ a = " * 9_000 + "1" + " }" * 9_000,
    "tables 100 deep": "a = " + "{ a = " * 100 + "1" + " }" * 100,
    "a long list": "iterations = [" + "1," * (FULL // 2) + "]",
    "many tables in a list": "[[plugins]]\n" * 5_000,
    "a NUL": "iterations = 1\n\0",
    "an escaped NUL": '[plugins]\nimage_folder = { path = "a\\u0000b" }',
    "an escaped ESC in a name": '"\\u001b[31m" = 1',
    "a long key": "x" * FULL + " = 1",
    "a long quoted key": '"' + "x" * FULL + '" = 1',
    "a long text": 'compile = "' + "x" * FULL + '"',
    "a long plugin name": "[plugins]\n" + "x" * FULL + " = {}",
    "a long use": '[plugins]\na = { use = "' + "x" * FULL + '" }',
    "a file beside it of a long name": '[plugins]\na = { use = "./' + "x" * 5_000 + '.py" }',
    "a file beside it with a NUL": '[plugins]\na = { use = "./\\u0000.py" }',
    "a base of a long name": 'extends = "' + "x" * 5_000 + '.toml"',
    "a base with a NUL": 'extends = "\\u0000.toml"',
    "a base that is a number": "extends = 3",
    "extends, spelled with an escape": '"ext\\u0065nds" = 3',
    "a table that is the base": "[extends.a]\nb = 1",
    "plugins that are a list": "plugins = [1]",
    "quotes without end": "a = " + '"' * FULL,
    "dots without end": "." * FULL,
    "spaces without end": "iterations" + " " * FULL + "= x",
    "half a key": "a" + " . a" * 10_000,
    "open brackets": "[" * FULL,
    "CR alone": "iterations = 1\rbatch_size = 2",
    "an unknown character": "iterations = \u202e1",
}  # fmt: skip


def refused(file: Path, *overrides: str) -> str:
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    print(f"{time.process_time() - began:.2f} s")
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable(), message
    assert len(message) < 3000
    return message


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(text.encode())
    assert str(file) in refused(file)


@pytest.mark.parametrize(
    "override",
    [
        "iterations=0x" + "f" * 4000,
        "iterations=" + "9" * 5000,
        "iterations=" + "[" * 50_000,
        "iterations=" + "[" * 100 + "]" * 100,
        ".".join("a" * 20_000) + "=1",
        "x" * 60_000 + "=1",
        "x" * 200_000,
        "a={ b = " + "{ a = " * 5_000,
        "iterations=2024-01-01",
        "iterations=1e999",
        "best_metric=a\0b",
        "best_metric=a\udcffb",
        "\x1b[31m=1",
        "=1",
        "",
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_the_same_with_set(tiny: Path, override: str) -> None:
    refused(tiny, override)


def test_only_the_beginning_of_a_huge_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.touch()
    os.truncate(file, 2**30)
    assert f"more than the {MAX_BYTES} bytes" in refused(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is a pipe, a socket or a device" in refused(tmp_path / "pipe.toml")
    assert "is a pipe, a socket or a device" in refused(Path("/dev/zero"))
    assert "is a folder" in refused(tmp_path)


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("a\0b.toml", "x" * 5000 + ".toml", "\udcff.toml", "\x1b[31m.toml", "a\n.toml"):
        refused(tmp_path / name)


def test_recipes_that_extend_each_other_without_end_are_refused(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 5):
        base = f'extends = "{number + 1}.toml"\n'
        (tmp_path / f"{number}.toml").write_text(base + f"iterations = {number + 1}\n")
    assert f"at most {MOST_FILES} files" in refused(tmp_path / "0.toml")
    (tmp_path / f"{MOST_FILES}.toml").write_text("batch_size = 3")
    assert read_recipe(tmp_path / "1.toml").values == {"batch_size": 3, "iterations": 2}
    (tmp_path / "5.toml").write_text('extends = "./2.toml"')
    assert "in a circle" in refused(tmp_path / "1.toml")
    (tmp_path / "5.toml").write_text('extends = "6.toml"\n#' + "x" * FULL)
    (tmp_path / "6.toml").write_text('extends = "7.toml"\n#' + "x" * FULL)
    assert f"together {MAX_BYTES} bytes" in refused(tmp_path / "5.toml")


def test_forgetting_where_values_were_written_takes_the_time_of_what_is_forgotten() -> None:
    table, looked_at = RecipeTable(Path("r.toml")), []

    class Counted(dict):  # counts the keys that are looked at
        def items(self):  # type: ignore[no-untyped-def]
            for item in super().items():
                looked_at.append(item)
                yield item

    table.origins = Counted()
    values = {f"k{number}": number for number in range(2_000)}
    for _ in range(2):
        table.merge(values, {(): Origin(Path("r.toml"), 1)})
    assert len(table.origins) == 2_000 and not looked_at


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_and_the_line_ends_of_windows_change_nothing(
    tiny: Path, ending: str, mark: bytes
) -> None:
    plain = load_recipe(tiny).model_dump()
    tiny.write_bytes(mark + tiny.read_text().replace("\n", ending).encode())
    assert load_recipe(tiny).model_dump() == plain
    tiny.write_bytes(
        mark + tiny.read_bytes().removeprefix(mark).replace(b"batch_size = 2", b"b = 2")
    )
    assert f"{tiny}:2: no setting 'b'" in refused(tiny)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tiny: Path, encoding: str) -> None:
    tiny.write_text(tiny.read_text(), encoding=encoding)
    assert "UTF-16 text, it seems; save the file as UTF-8" in refused(tiny)


@pytest.mark.parametrize(
    "setting", ["iterations", "d_steps", "g_steps", "num_discriminators", "batch_size"]
)
def test_a_loop_that_cannot_end_and_a_batch_that_cannot_fit_are_refused(
    tiny: Path, setting: str
) -> None:
    result = CliRunner().invoke(
        main, ["run", str(tiny), "--set", f"{setting}={10**13}", "--dry-run"]
    )
    assert result.exit_code == 2
    assert setting in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
