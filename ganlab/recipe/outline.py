"""What options a class has, read from its source text; nothing is imported, so torch neither.

For shell completion, which must answer at once. What the text does not show is left out.
"""

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_DEEPEST = 20  # imports and base classes followed from one name


@dataclass(frozen=True, slots=True)
class Outline:
    """An option: its name in a recipe, the values that it is limited to, what it means."""

    name: str
    choices: tuple[str, ...]
    """As written in a recipe; empty where they are no short list."""
    meaning: str


def options_of(module: str, name: str) -> list[Outline]:
    """The options of a class of this name, with those of its bases; [] when it is not found."""
    with suppress(OSError, SyntaxError, ValueError, ImportError, RecursionError):
        return list({option.name: option for option in _options(module, name, _DEEPEST)}.values())
    return []


def _options(module: str, name: str, depth: int) -> Iterator[Outline]:
    place, found = _found(module, name, depth)
    if not isinstance(found, ast.ClassDef) or depth == 0:
        return
    for base in found.bases:
        if isinstance(base, ast.Name):
            yield from _options(place, base.id, depth - 1)
    for entry, following in zip(found.body, [*found.body[1:], ast.Pass()], strict=True):
        if isinstance(entry, ast.AnnAssign) and _is_option(entry):
            text = ast.get_docstring(ast.Module([following], [])) or ""
            meaning = " ".join(text.split()).partition(". ")[0].rstrip(".")
            choices = tuple(dict.fromkeys(_choices(place, entry.annotation, depth)))
            yield Outline(_written_name(entry), choices, meaning)


def _is_option(entry: ast.AnnAssign) -> bool:
    if not isinstance(entry.target, ast.Name):
        return False
    names = {node.id for node in ast.walk(entry.annotation) if isinstance(node, ast.Name)}
    return not entry.target.id.startswith("_") and "ClassVar" not in names


def _written_name(entry: ast.AnnAssign) -> str:
    """The name of an option in a recipe: its alias, if `Field` gives one."""
    for node in ast.walk(entry):
        alias = node.value if isinstance(node, ast.keyword) and node.arg == "alias" else None
        if isinstance(alias, ast.Constant):
            return str(alias.value)
    return entry.target.id if isinstance(entry.target, ast.Name) else ""


def _choices(module: str, annotation: ast.AST, depth: int) -> Iterator[str]:
    """The values of each Literal in an annotation, also by way of a name that stands for one."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and _name(node.value) == "Literal":
            values = [part for part in ast.walk(node.slice) if isinstance(part, ast.Constant)]
            yield from (str(part.value) for part in values)
        elif isinstance(node, ast.Name) and node.id == "bool":
            yield from ("true", "false")
        elif isinstance(node, ast.Name) and depth:
            place, found = _found(module, node.id, depth - 1)
            if isinstance(found, ast.Assign):
                yield from _choices(place, found.value, depth - 1)


def _found(module: str, name: str, depth: int) -> tuple[str, ast.AST | None]:
    """The class or the assignment of a name, and the module that it stands in."""
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and name in map(_name, node.targets):
            return module, node
        if isinstance(node, ast.ImportFrom) and depth:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _found(_source(module, node), alias.name, depth - 1)
    return module, None


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _source(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _file(module)
    package = module if file and file.stem == "__init__" else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


@cache
def _tree(module: str) -> ast.Module | None:
    if module.partition(".")[0] in ("pydantic", "torch", "typing"):  # large, and no options there
        return None
    file = _file(module)
    return ast.parse(file.read_text(encoding="utf-8")) if file else None


@cache
def _file(module: str) -> Path | None:
    """The source of a module, or the stub beside it; found without an import of its package."""
    first, *rest = module.split(".")
    spec, name = importlib.util.find_spec(first), first
    for part in rest:
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
    if not spec or not spec.origin or not spec.origin.endswith(".py"):
        return None
    stub = Path(spec.origin).with_suffix(".pyi")
    return stub if stub.is_file() else Path(spec.origin)
