"""The JSON Schema of a recipe, as the union of the installed plugins; the files for editors.

Editors by Tombi and Taplo (Even Better TOML) read it. Both find the same slips in an option as
`ganlab check`, and show units, limits and papers.
"""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from ganlab import __version__
from ganlab.commands.describe import describe_plugins, in_words, toml
from ganlab.commands.limits import limits_of
from ganlab.errors import RecipeError
from ganlab.files import whole, write_text
from ganlab.recipe.discovery import find_plugin
from ganlab.recipe.file import as_typed, read_recipe
from ganlab.recipe.model import Recipe
from ganlab.recipe.trust import holds_a_run

Schema = dict[str, Any]

FILE = Path(".ganlab") / "recipe.schema.json"
"""Where `ganlab schema --write` puts the schema, in the folder of a project."""
_RECIPES = '["recipes/**/*.toml", "runs/*/recipe.toml"]'
_CONFIGURATIONS = {
    "tombi.toml": f"""\
# written by `ganlab schema --write`: which files are recipes, for Tombi
toml-version = "v1.0.0"

[schema]
catalog = {{ paths = ["tombi://www.schemastore.org/api/json/catalog.json"] }}

[[schemas]]
path = "{FILE.as_posix()}"
include = {_RECIPES}
""",
    ".taplo.toml": f"""\
# written by `ganlab schema --write`: which files are recipes, for Taplo and Even Better TOML
[[rule]]
include = {_RECIPES}

[rule.schema]
path = "{FILE.as_posix()}"
""",
}

# Tombi takes a table without `additionalProperties` for one that allows no other keys
_OPEN: Schema = {"additionalProperties": True}
_TABLE: Schema = {"type": "object"} | _OPEN


@cache
def recipe_schema() -> Schema:
    """The JSON Schema (draft 7) of a recipe, with the settings and every plugin's options.

    A plugin that cannot be imported or described is left out; `broken_plugins` says why. What only
    a recipe without `extends` must have stands in the branch `else`.
    """
    plugins = {plugin["name"]: plugin for plugin in describe_plugins()}
    made = {name: _plugin(plugin) for name, plugin in plugins.items()}
    settings = _told(_tidy(Recipe.model_json_schema()), _words_of_settings())
    origins = {f"{plugin['distribution']} {plugin['version']}" for plugin in plugins.values()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "ganlab recipe",
        "description": (
            f"Written by `ganlab schema` of ganlab {__version__}, with the plugins of: "
            f"{', '.join(sorted(origins))}. Write it again when plugins come or go."
        ),
        "x-tombi-toml-version": "v1.0.0",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "extends": {"type": "string", "pattern": r"\.toml$", "description": _EXTENDS},
            **settings["properties"],
            "plugins": {
                "type": "object",
                "description": _PLUGINS,
                "properties": {name: _entry(name, made[name]) for name in made},
                "additionalProperties": _other_entry(list(made)),
            },
        },
        "if": {"required": ["extends"]} | _OPEN,
        "then": _OPEN,
        "else": _demands_of_a_whole_recipe(settings, made),
        "definitions": {
            **{name: _without_demands(schema) for name, schema in made.items()},
            _USED: _used(list(made)),
        },
    }


def write_editor_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write the schema into a project's folder, and which files are recipes, for both programs.

    :returns: the files that are written, and those that are kept, since they are the user's own.
    """
    file = folder / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(recipe_schema(), ensure_ascii=False) + "\n")
    written, kept = [file], []
    for name, text in _CONFIGURATIONS.items():
        file = folder / name
        if not file.exists():
            write_text(file, text)
            written.append(file)
        elif file.read_text(encoding="utf-8", errors="replace") != text:
            kept.append(file)
    return written, kept


def name_schema(recipe: Path, folder: Path) -> None:
    """Make the first line of a recipe name the schema of a project's folder; nothing else changes.

    :raises RecipeError: when it is no recipe file, or that of a run, which nobody edits.
    """
    read_recipe(recipe)
    if holds_a_run(recipe.parent):
        raise RecipeError(f"{as_typed(recipe)}: a run's recipe is not edited; name another one")
    file = recipe.resolve()
    content = file.read_bytes()
    mark = b"\xef\xbb\xbf" if content.startswith(b"\xef\xbb\xbf") else b""
    end = b"\r\n" if b"\r\n" in content else b"\n"
    line = schema_line(file.parent, folder).encode().replace(b"\n", end)
    with whole(file) as opened:
        opened.write(mark + line + _LINE.sub(b"", content.removeprefix(mark)))


_LINE = re.compile(rb"\A#:schema [^\r\n]*(\r?\n){0,2}")


def schema_line(beside: Path, folder: Path) -> str:
    """The first lines of a recipe by which an editor finds the schema of a project's folder.

    :param beside: the folder of the recipe.
    """
    try:
        place = Path(os.path.relpath(folder.resolve() / FILE, beside.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        place = (folder.resolve() / FILE).as_uri()
    return f"#:schema {place if place.startswith(('.', 'file:')) else f'./{place}'}\n\n"


_USED = "_used"
_EXTENDS = "The recipe that this one builds on, relative to this file. Values here replace its own."
_PLUGINS = (
    "The plugins, in the order in which they are applied. The key is the plugin's name, or any "
    "name with `use`. `false` drops a plugin of the recipe that this one extends."
)
_USE = (
    "The plugin, when the key does not name it: an installed one, or a file in this folder, such "
    'as "./my_idea.py".'
)


def _plugin(described: dict[str, Any]) -> Schema:
    """The table of a plugin's options."""
    name = described["name"]
    plugin_class, _ = find_plugin(name, "ganlab schema")
    schema = _tidy(plugin_class.model_json_schema(by_alias=True))
    words = {option["name"]: _words(option, described) for option in described["options"]}
    aliases = {info.alias or key: key for key, info in plugin_class.model_fields.items()}
    schema = _told(schema, {written: words[key] for written, key in aliases.items()})
    use = {"const": name, "description": _USE}
    hooks = f"hooks: {', '.join(described['hooks'])}"
    origin = f"from: {described['distribution']} {described['version']}"
    return schema | {
        "type": "object",
        "description": _linked("\n\n".join([described["docstring"], hooks, origin])),
        "properties": {"use": use, **schema.get("properties", {})},
    }


def _words(option: dict[str, Any], plugin: dict[str, Any] | None = None) -> str:
    """What an editor shows at an option: meaning, limits, default, plugin with its paper."""
    default = "required" if option["required"] else f"default {toml(option['default'])}"
    schedule = "may be a schedule" if option["schedule"] else ""
    facts = "; ".join(filter(None, [in_words(option["bounds"]), default, schedule]))
    origin = f"{plugin['name']}: {plugin['summary']}" if plugin else ""
    return _linked("\n\n".join(filter(None, [option["description"], facts, origin])))


def _words_of_settings() -> dict[str, str]:
    limits = limits_of(Recipe)
    return {
        name: _words(
            {
                "required": field.is_required(),
                "default": field.default,
                "schedule": False,
                "bounds": limits[name],
                "description": " ".join((field.description or "").split()),
            }
        )
        for name, field in Recipe.model_fields.items()
    }


def _linked(text: str) -> str:
    """A text with its papers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _told(schema: Schema, words: dict[str, str]) -> Schema:
    """The schema of a table, with what an editor shows at each key."""
    properties = schema.get("properties", {})
    told = {key: part | {"description": words[key]} for key, part in properties.items()}
    return schema | {"properties": told}


# How pydantic's schema becomes one that both programs read alike.


def _tidy(schema: Schema) -> Schema:
    """A model's schema in draft 7, whole: nothing beside a reference would count there."""
    parts = schema.get("$defs", {})
    return _rewritten({key: value for key, value in schema.items() if key != "$defs"}, parts, ())


def _rewritten(schema: Any, parts: dict[str, Schema], within: tuple[str, ...]) -> Any:
    """A part of a schema, with what it refers to in place; what refers to itself allows all.

    :param within: the names of the parts that it is in.
    """
    if isinstance(schema, list):
        return [_rewritten(part, parts, within) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        inner = {} if name in within else parts[name]
        return _number_or_table(_rewritten({**inner, **rest}, parts, (*within, name)))
    made = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            made[key] = {name: _rewritten(part, parts, within) for name, part in value.items()}
        elif key in ("default", "examples", "enum", "const"):
            made[key] = value
        elif key not in ("title", "discriminator"):
            made[key] = _rewritten(value, parts, within)
    return _plain(made)


def _plain(schema: Schema) -> Schema:
    """Without null, which TOML does not have, and with a list's items as draft 7 writes them.

    A number may be whole: Tombi explains a whole number only where "integer" is named too.
    """
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "number" in kinds:
        schema = schema | {"type": ["number", "integer", *(k for k in kinds if k != "number")]}
    if "prefixItems" in schema:
        schema = schema | {"items": schema["prefixItems"], "additionalItems": False}
        del schema["prefixItems"]
    branches = [part for part in schema.get("anyOf", []) if part != {"type": "null"}]
    if len(branches) == 1:
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        schema = branches[0] | rest
    elif branches:
        schema = schema | {"anyOf": branches}
    if schema.get("default", 0) is None:
        del schema["default"]
    return schema


def _number_or_table(schema: Schema) -> Schema:
    """The limits of a number that may be a table of numbers hold for these too: a schedule."""
    if not {"number", "object"} <= set(schema.get("type", ())):
        return schema
    limits = {key: schema[key] for key in ("minimum", "maximum") if key in schema}
    numbers = {
        key: part | limits if "number" in part.get("type", ()) else part
        for key, part in schema["properties"].items()
    }
    return schema | {"properties": numbers}


# Which table a key of [plugins] may have. `anyOf` allows everything: by it editors find the keys to
# offer, for they look into no `if`. What is allowed stands in `if`, since its messages are exact.


def _entry(name: str, schema: Schema) -> Schema:
    """What a plugin's own name may have: its table, `false`, or another plugin by `use`."""
    table = {"$ref": f"#/definitions/{name}"}
    another = {"required": ["use"], "properties": {"use": {"not": {"const": name}}}} | _TABLE
    return {
        "description": schema["description"],
        "anyOf": [table, _OPEN],
        "if": {"anyOf": [{"const": False}, another]},
        "then": {"$ref": f"#/definitions/{_USED}"},
        "else": table,
    }


def _other_entry(names: list[str]) -> Schema:
    """What any other name may have: the table of a plugin named by `use`, or `false`."""
    return {
        "anyOf": [*({"$ref": f"#/definitions/{name}"} for name in names), _OPEN],
        "if": {"const": False},
        "then": _OPEN,
        "else": {"$ref": f"#/definitions/{_USED}"},
    }


def _used(names: list[str]) -> Schema:
    """`false`, or the table of the plugin that `use` names; that of a file here is not known."""
    use = {"anyOf": [{"enum": names}, {"type": "string", "pattern": r"\.py$"}]}
    return {
        "not": {"const": True},
        "type": ["object", "boolean"],
        "additionalProperties": True,
        "properties": {"use": use | {"description": _USE}},
        "allOf": [
            {
                "if": {"required": ["use"], "properties": {"use": {"const": name}}} | _TABLE,
                "then": {"$ref": f"#/definitions/{name}"},
            }
            for name in names
        ],
    }


# What is required. A recipe that extends another inherits it, so it needs none of these.


def _without_demands(schema: Schema) -> Schema:
    """A table that requires no key, nor do the tables in it; items of a list are left alone."""
    made = {key: value for key, value in schema.items() if key != "required"}
    if properties := schema.get("properties"):
        made["properties"] = {key: _without_demands(part) for key, part in properties.items()}
    return made


def _demands(schema: Schema) -> Schema | None:
    """What a table requires, and the tables in it; None when nothing is."""
    inner = {key: _demands(part) for key, part in schema.get("properties", {}).items()}
    found = {"properties": {key: part for key, part in inner.items() if part}}
    if required := schema.get("required"):
        found["required"] = required
    if not any(found.values()):
        return None
    return {"if": {"type": "object"} | _OPEN, "then": found | _OPEN}


def _demands_of_a_whole_recipe(settings: Schema, plugins: dict[str, Schema]) -> Schema:
    """What a recipe must have that extends no other; there is nothing to drop in it either."""
    tables = {name: _TABLE | (_demands(schema) or {}) for name, schema in plugins.items()}
    named = {"required": ["use"]} | _TABLE
    plugin_tables = {"properties": tables, "additionalProperties": named}
    return {"required": settings["required"], "properties": {"plugins": plugin_tables}} | _OPEN
