"""The floors of the house: who may import whom, and what may stand in the tree."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "ganlab").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "ganlab_plugins").rglob("*.py"))
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
POINTS = GROUPS["ganlab"]

# An import may only point down this list, or stay on its floor. A folder stands for its files.
FLOORS = """
    cli api
    compare hub sweep
    commands testing
    checking
    session
    ranks.following
    words ending
    limits live_page tracking
    bench report failures export
    engine
    assembly
    ranks.trial
    iteration
    checkpoint generator_weights soundness
    ranks.agreement
    data
    requirements evaluation speed toolbox network_bounds
    steps defaults hookspecs state
    run
    shared_forward guard
    runs
    recipe
    monitoring
    plugin
    ranks.many ranks.launching
    ranks.one_batch
    ranks.world schedule streams images degradation speed.device
    stopping disk download
    terminal names
    errors system option files tensor_files published registry
"""
LEVEL = {name: number for number, line in enumerate(FLOORS.split("\n")) for name in line.split()}


def module(file: Path) -> str:
    """`speed.device` for ganlab/speed/device.py, `bench` for ganlab/bench/__init__.py."""
    parts = file.relative_to(ROOT / "ganlab").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def level(name: str) -> int:
    """The floor of a module: its own, or that of its folder."""
    return LEVEL[name] if name in LEVEL else LEVEL[name.partition(".")[0]]


def imports(file: Path) -> list[tuple[str, list[str]]]:
    """Every import of a file, for types and inside functions too, as (module, names)."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


MODULES = {module(file): file for file in CORE if module(file) not in ("", "__main__")}


def imported(name: str) -> set[str]:
    """The modules of the core that a module imports."""
    found = set()
    for source, names in imports(MODULES[name]):
        if source == "ganlab" or source.startswith("ganlab."):
            base = source.removeprefix("ganlab").removeprefix(".")
            inner = {f"{base}.{each}".removeprefix(".") for each in names} & MODULES.keys()
            found |= inner or ({base} & MODULES.keys())
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


@pytest.mark.parametrize("name", MODULES)
def test_an_import_points_down(name: str) -> None:
    assert [other for other in imported(name) if level(other) < level(name)] == []


def test_no_import_goes_in_a_circle() -> None:
    below = {name: imported(name) for name in MODULES}
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert below == {}


LONGEST = 60


@pytest.mark.parametrize("file", [*CORE, *PLUGINS], ids=lambda f: f.stem)
def test_a_function_fits_on_a_screen(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LONGEST, f"{file.name}: {node.name}"


@pytest.mark.parametrize("file", PLUGINS, ids=lambda f: f.stem)
def test_a_plugin_imports_from_ganlab_itself_only(file: Path) -> None:
    for source, _ in imports(file):
        assert not source.startswith("ganlab."), source
        # the one exception: `builtin` paints dead leaves too
        if source.startswith("ganlab_plugins"):
            assert (file.stem, source) == ("builtin", "ganlab_plugins.dead_leaves")


def test_every_plugin_file_is_an_entry_point_of_its_own_name() -> None:
    stems = {file.stem for file in PLUGINS} - {"__init__"}
    facts = {value.partition(":")[0].rpartition(".")[2] for value in GROUPS["ganlab.data"].values()}
    executors = set(GROUPS["ganlab.executors"])
    assert stems == set(POINTS) | facts | executors
    for name, value in POINTS.items():
        assert value.startswith(f"ganlab_plugins.{name}:")


def test_no_tracked_file_names_a_download_address_or_a_lock() -> None:
    git = shutil.which("git")
    listed = git and subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if not listed or listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.splitlines()
    assert not [n for n in names if n == "uv.lock" or n.startswith("pylock")]
    address = re.compile(r"\.(whl|tar\.gz|tgz)\b|index[-_]url")
    for name in names:
        if name.endswith((".toml", ".txt", ".md", ".cfg")):
            assert not address.search((ROOT / name).read_text()), name
