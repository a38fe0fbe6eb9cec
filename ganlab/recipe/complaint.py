"""An error of pydantic in the words of a recipe."""

import json
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ganlab.errors import clipped, printable
from ganlab.recipe.file import did_you_mean

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "path_type": "a path in quotes",
    "list_type": "a list in brackets",
    "tuple_type": "a list in brackets",
    "dict_type": "a table",
    "model_type": "a number, or a table such as { from = 0.1, to = 0, over = 1000 }",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def worst(error: ValidationError) -> ErrorDetails:
    """The error to report: an unknown key first, since it often explains a missing one."""
    found = error.errors(include_url=False)
    return next((e for e in found if e["type"] == "extra_forbidden"), found[0])


def complaint(error: ErrorDetails, model: type[BaseModel], kind: str) -> str:
    """An error of pydantic as one sentence, in the words of the recipe."""
    path = [part for part in error["loc"] if isinstance(part, str)]
    model = _innermost(model, path)
    key = printable(clipped(".".join(str(part) for part in error["loc"])))
    known = [info.alias or name for name, info in model.model_fields.items()]
    given = clipped(json.dumps(error["input"], default=str), 100)
    match error["type"]:
        case "extra_forbidden":
            near = did_you_mean(path[-1], known)
            return f"no {kind} '{key}'{near or '; allowed: ' + ', '.join(known)}"
        case "missing":
            fields = model.model_fields.items()
            info = next((field for name, field in fields if path[-1] in (name, field.alias)), None)
            means = f" ({info.description.rstrip('.')})" if info and info.description else ""
            return f"the {kind} '{key}' is missing{means}; it has no default"
        case "literal_error":
            expected = error.get("ctx", {}).get("expected", "")
            near = did_you_mean(str(error["input"]), expected.replace("'", "").split(", "))
            return f"{key} = {given} is not allowed; it must be {expected}{near}"
        case "value_error":
            fault = str(error.get("ctx", {}).get("error", error["msg"]))
            return f"{key} = {given} is not allowed; it {fault}" if path else fault
        case "too_short" | "too_long":
            return f"{key} = {given} is not allowed; {error['msg'].split(', not')[0]}"
        case found if found in _BOUNDS:
            words, bound = _BOUNDS[found]
            limit = error.get("ctx", {}).get(bound)
            return f"{key} = {given} is not allowed; it must be {words} {limit:g}."
        case found if found in _TYPES:
            return f"{key} = {given} is not allowed; it must be {_TYPES[found]}."
    return f"{key} = {given} is not allowed; {error['msg'][:1].lower()}{error['msg'][1:]}"


def _innermost(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model that holds the last part of a path of field names."""
    for part in path[:-1]:
        info = model.model_fields.get(part)
        for candidate in (info and info.annotation, *get_args(info and info.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model
