"""The limits of a model's options in words, for `ganlab plugins` and `ganlab explain`."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, WrapValidator
from pydantic.fields import FieldInfo

Limits = dict[str, Any]
"""Words -> value, as {"at least": 0}. Words about a part of the option begin with that part."""

_WORDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "multipleOf": "a multiple of",
    "enum": "one of",
    "pattern": "of the form",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "minItems": "items at least",
    "maxItems": "items at most",
    "minProperties": "entries at least",
    "maxProperties": "entries at most",
}


def limits_of(model: type[BaseModel]) -> dict[str, Limits]:
    """The limits of each field, by the name that a recipe uses.

    They come from the field's JSON schema, and from the docstrings of its validators: a validator's
    first line states its rule. Rules that concern several fields are not included.
    """
    schema = model.model_json_schema(by_alias=True)
    parts = schema.get("$defs", {})
    found = {}
    for name, field in model.model_fields.items():
        written = field.alias or name
        limits = _read(schema.get("properties", {}).get(written, {}), parts)
        if rules := list(_rules(model, name, field)):
            limits["rule"] = " ".join(rules)
        found[written] = limits
    return found


def _read(schema: dict[str, Any], parts: dict[str, Any]) -> Limits:
    """The limits in a JSON schema, those of nested lists and tables included."""
    found = {words: schema[key] for key, words in _WORDS.items() if key in schema}
    if "const" in schema:
        found.setdefault("one of", [schema["const"]])
    if schema.get("minItems", -1) == schema.get("maxItems"):
        del found["items at least"], found["items at most"]
        found["number of items"] = schema["minItems"]
    for prefix, part in _inner(schema, parts):
        found |= {f"{prefix}{words}": value for words, value in _read(part, parts).items()}
    return found


def _inner(schema: dict[str, Any], parts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas within a schema, each with the words that name its place."""
    if "$ref" in schema:
        yield "", parts[schema["$ref"].rpartition("/")[2]]
    for part in schema.get("allOf", []):
        yield "", part
    branches = [part for part in schema.get("anyOf", []) if part.get("type") != "null"]
    for number, part in enumerate(branches):
        yield "or " if number else "", part
    items = schema.get("prefixItems", [])
    if items and all(item == items[0] for item in items):
        yield "each ", items[0]
    else:
        yield from ((f"item {number} ", item) for number, item in enumerate(items, 1))
    for key, words in (
        ("items", "each "),
        ("additionalProperties", "each value "),
        ("propertyNames", "each name "),
    ):
        if isinstance(schema.get(key), dict):
            yield words, schema[key]
    for pattern, part in schema.get("patternProperties", {}).items():
        yield "each value ", part
        yield "each name ", {"pattern": pattern}
    if "number" not in schema.get("type", ""):  # a number or a table is a schedule: told once
        yield from ((f"{name} ", part) for name, part in schema.get("properties", {}).items())


def _rules(model: type[BaseModel], name: str, field: FieldInfo) -> Iterator[str]:
    """The first docstring line of every validator of a field."""
    decorated = model.__pydantic_decorators__.field_validators.values()
    functions = [one.func for one in decorated if {name, "*"} & set(one.info.fields)]
    kinds = (AfterValidator, BeforeValidator, WrapValidator)
    parts = [*field.metadata, field.annotation]
    while parts:
        part = parts.pop(0)
        functions += [part.func] if isinstance(part, kinds) else []
        parts += get_args(part)
    for function in functions:
        if text := inspect.getdoc(function):
            yield text[:1].lower() + text[1:].partition("\n")[0].rstrip(".")
