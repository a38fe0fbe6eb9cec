"""The notebook runs, and shows what its cells give now, but for numbers and pictures."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "how-to" / "notebook.ipynb"
LARGEST = 300_000  # bytes

cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
codes = [cell for cell in cells if cell["cell_type"] == "code"]


def text_of(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def masked(text: str) -> str:
    """A text without its numbers, pictures and curves."""
    text = re.sub(r"base64,[\w+/=]+", "base64,", text)
    text = re.sub(r"<svg .*?</svg>", "<svg>", text, flags=re.DOTALL)
    return re.sub(r"[-+]?\d[\d.,]*(e-?\d+)?", "0", text)


def run_cell(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last line."""
    *lines, last = ast.parse(code).body
    value, printed = None, io.StringIO()
    with contextlib.redirect_stdout(printed):
        if not isinstance(last, ast.Expr):
            lines.append(last)
        exec(compile(ast.Module(lines, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return printed.getvalue(), value


def stored(cell: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """What a cell printed when the notebook was made, and its result by kind of text."""
    printed, result = "", {}
    for output in cell["outputs"]:
        if output.get("name") == "stdout":
            printed += text_of(output["text"])
        if output["output_type"] == "execute_result":
            result = {kind: text_of(data) for kind, data in output["data"].items()}
    return printed, result


@pytest.mark.long  # it trains two runs
@pytest.mark.usefixtures("small_photographs")
def test_the_notebook_gives_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout: what it names comes with ganlab
    names: dict[str, Any] = {}
    for cell in codes:
        printed, value = run_cell(text_of(cell["source"]), names)
        before, result = stored(cell)
        assert masked(printed) == masked(before)
        assert bool(result) == (value is not None)
        if hasattr(value, "_repr_html_"):
            assert masked(value._repr_html_()) == masked(result["text/html"])
        elif value is not None and "image/png" not in result:
            now, then = ("".join(text.split()) for text in (repr(value), result["text/plain"]))
            assert masked(now) == masked(then)


def test_the_notebook_was_run_in_order_without_an_error_and_is_small() -> None:
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    kinds = {output["output_type"] for cell in codes for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}
    assert NOTEBOOK.stat().st_size < LARGEST


def test_the_notebook_names_no_place_of_the_machine_on_which_it_was_made() -> None:
    text = re.sub(r'"image/\w+": "[^"]*"|base64,[\w+/=]+', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", text)
