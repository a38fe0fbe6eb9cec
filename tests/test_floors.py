"""The floors of the house: who may import whom, and what may stand in the tree."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "ganlab").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "ganlab_plugins").rglob("*.py"))
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["ganlab"]

# An import may only point down this list, or stay on its floor.
FLOORS = [
    {"cli"},
    {"ablate"},
    {"compare"},
    {"bench"},
    {"plan", "apply", "check", "describe", "audit", "explain", "trace"},
    {"cost"},
    {"session"},
    {"engine", "report"},
    {"records", "difference"},
    {"health"},
    {"checkpoint", "evaluation", "journal", "upscale", "penalties", "fast"},
    {"descent", "recompute"},
    {"steps", "assembly", "device", "attribution", "pictures"},
    {"folder"},
    {"weights", "perceptual", "inception", "patches", "adaptive"},
    {"recipe"},
    {"discover"},
    {"hookspecs", "recipe_file"},
    {"calls"},
    {"plugin"},
    {"degradation"},
    {
        "streams",
        "images",
        "image_store",
        "metrics",
        "resampling",
        "statistics",
        "verdicts",
        "writer",
    },
    {"errors"},
]
LEVEL = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(file: Path) -> list[tuple[str, list[str]]]:
    """Every import of a file that happens when it runs, as (module, names)."""
    tree = ast.parse(file.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.stem)
def test_the_core_never_mentions_the_plugins_package(file: Path) -> None:
    assert "ganlab_plugins" not in file.read_text()


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.stem)
def test_the_core_knows_no_plugin_by_its_class(file: Path) -> None:
    names = {value.partition(":")[2] for value in POINTS.values()} - {"Adam"}
    code = "\n".join(
        ast.unparse(node) for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Name | ast.Attribute)
    )  # fmt: skip
    assert not [name for name in names if re.search(rf"\b{name}\b", code)]


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.stem)
def test_an_import_points_down(file: Path) -> None:
    here = file.relative_to(ROOT / "ganlab").parts[0].removesuffix(".py")
    if here in ("__init__", "__main__"):
        return
    for module, names in imports(file):
        targets = [module.split(".")[1]] if module.startswith("ganlab.") else []
        targets += [name for name in names if module == "ganlab" and name in LEVEL]
        for target in targets:
            assert LEVEL[target] >= LEVEL[here], f"{here} imports {target}"


@pytest.mark.parametrize("file", PLUGINS, ids=lambda f: f.stem)
def test_a_plugin_imports_from_ganlab_itself_only(file: Path) -> None:
    for module, _ in imports(file):
        assert not module.startswith("ganlab."), module
        # the one exception: `builtin` paints dead leaves too
        if module.startswith("ganlab_plugins"):
            assert (file.stem, module) == ("builtin", "ganlab_plugins.dead_leaves")


def test_every_plugin_file_is_an_entry_point_of_its_own_name() -> None:
    stems = {file.stem for file in PLUGINS} - {"__init__"}
    assert stems == set(POINTS)
    for name, value in POINTS.items():
        assert value.startswith(f"ganlab_plugins.{name}:")


def test_no_tracked_file_names_a_download_address_or_a_lock() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.splitlines()
    assert not [n for n in names if n == "uv.lock" or n.startswith("pylock")]
    address = re.compile(r"\.(whl|tar\.gz|tgz)\b|index[-_]url")
    for name in names:
        if name.endswith((".toml", ".txt", ".md", ".cfg")):
            assert not address.search((ROOT / name).read_text()), name
