"""`ganlab plugins new`: a distribution with one plugin, its tests, a recipe and a workflow."""

import keyword
import re
import sys
import tomllib
from datetime import date
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ganlab.errors import GanlabError, RecipeError, clipped, printable
from ganlab.files import claim, new_folder, write_text
from ganlab.registry import entry_points

_TEMPLATES = files("ganlab").joinpath("templates", "plugin")
# the plugins of the recipe that a distribution begins with, in the order of its lines
_RECIPE = {
    "builtin": "{ crop = 32 }",
    "bicubic": "{ scale = 4 }",
    "encoder_decoder": "{ width = 8, num_blocks = 1 }",
    "patch_discriminator": "{ width = 8, num_layers = 1 }",
    "bce": "{ weight = 0.01 }",
    "pixel_loss": "{}",
}
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "{module}.py": "module.py",
    "tests/test_{name}.py": "test.py",
    "recipe.toml": "recipe.toml",
    "README.md": "README.md",
    ".github/workflows/tests.yml": "workflow.yml",
}


@cache
def examples() -> dict[str, dict[str, Any]]:
    """What a plugin begins with, by the hook that it implements."""
    return tomllib.loads(_TEMPLATES.joinpath("hooks.toml").read_text("utf-8"))


def new_plugin(name: str, hook: str, parent: Path) -> Path:
    """Write a distribution with a plugin into a new folder, `ganlab-<name>`; returns the folder.

    :param name: of the plugin in a recipe, such as "spectral_loss"; a "-" becomes a "_".
    :param hook: the hook that it implements, one of `examples`.
    :raises RecipeError: when the name cannot be that of a module, or is taken.
    :raises GanlabError: when the folder is there already.
    """
    name = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,50}", name) or keyword.iskeyword(name):
        raise RecipeError(
            f"'{printable(clipped(name))}' cannot name a plugin and its module; take small "
            "letters, digits and _, beginning with a letter"
        )
    _require_free(name)
    target = parent / f"ganlab-{name.replace('_', '-')}"
    if target.exists():
        raise GanlabError(f"{target} is there already; take another name, or --into another folder")
    parent.mkdir(parents=True, exist_ok=True)
    with new_folder(parent) as folder:
        for path, text in _texts(name, hook).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, f"{text}\n")
        claim(folder, target)
    return target


def _require_free(name: str) -> None:
    """Refuse a name that would hide another one, once the distribution is installed."""
    if name in [point.name for point in entry_points("ganlab")]:
        raise RecipeError(f"a plugin '{name}' is installed already; take another name")
    if find_spec(f"ganlab_{name}"):
        raise RecipeError(f"a module 'ganlab_{name}' is installed already; take another name")


def _texts(name: str, hook: str) -> dict[str, str]:
    """Path in the distribution -> text of the file."""
    own = {k: _filled(v, name=name) for k, v in examples()[hook].items()}
    drops = own.pop("drops", [])
    imports = [*own["imports"].splitlines(), f"from ganlab import {own['names']}"]
    kit = {"check_recipe", "offering", "parametrize_with_rules", *own.get("known_kit", "").split()}
    in_order = ", ".join(sorted(kit, key=lambda each: (each.islower(), each)))
    testing = [
        "from pathlib import Path",
        *own.get("known_imports", "").splitlines(),
        f"from ganlab.testing import {in_order}",
    ]
    kind = "".join(part.capitalize() for part in name.split("_"))
    if kind in re.findall(r"\w+", " ".join([*imports, *testing])):
        raise RecipeError(f"the plugin's files import another {kind}; take another name")
    values = own | {
        "imports": _sorted(imports),
        "known_imports": _sorted(testing),
        "name": name,
        "distribution": f"ganlab-{name.replace('_', '-')}",
        "module": f"ganlab_{name}",
        "kind": kind,
        "drops": drops,
        "year": date.today().year,
        "recipe": [f"{key} = {value}" for key, value in _RECIPE.items() if key not in drops],
    }
    return {
        path.format(**values): _filled(
            _TEMPLATES.joinpath(f"{template}.j2").read_text("utf-8"), **values
        )
        for path, template in _FILES.items()
    }


def _sorted(imports: list[str]) -> str:
    """Lines of imports in the usual order: the standard library, then all others."""
    found = sorted(imports, key=lambda line: (line.startswith("from"), line))
    own = [line for line in found if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    others = [line for line in found if line not in own]
    return "\n\n".join("\n".join(part) for part in (own, others) if part)


def _filled(template: Any, **values: Any) -> Any:
    if not isinstance(template, str):
        return template
    # the texts are code, not HTML
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template.strip()).render(values).strip()
