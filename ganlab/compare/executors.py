"""Finds an executor by its name, and makes it from the options of the command line."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from ganlab.compare.crew import Placement
from ganlab.compare.local import Local
from ganlab.errors import RecipeError, clipped, first_line, printable
from ganlab.recipe.complaint import complaint, worst
from ganlab.recipe.file import did_you_mean, value_of
from ganlab.registry import entry_points
from ganlab.toolbox.executor import Executor

GROUP = "ganlab.executors"
LOCAL = "local"


def make_executor(name: str, options: Sequence[str]) -> Executor:
    """The executor of this name; its module is imported.

    :param options: `key=value`, the values in TOML.
    :raises RecipeError: when there is none of this name, a package is missing, or an option is
        wrong.
    """
    kind = _class_of(name)
    if kind.package and find_spec(kind.package) is None:
        raise RecipeError(
            f"--executor {name}: needs the package {kind.package}: pip install '{kind.extra}'"
        )
    given: dict[str, Any] = {}
    for text in options:
        key, equals, written = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                f"--executor-option {printable(clipped(text))}: write it as key=value"
            )
        given[key.strip()] = value_of(written)
    try:
        return kind.model_validate_json(json.dumps(given, default=str))
    except ValidationError as error:
        wrong = complaint(worst(error), kind, "option")
        raise RecipeError(f"--executor-option: {name}: {wrong}") from None


def _class_of(name: str) -> type[Executor]:
    if name == LOCAL:
        return Local
    points = {point.name: point for point in entry_points(GROUP)}
    if name not in points:
        known = [LOCAL, *sorted(points)]
        near = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise RecipeError(
            f"--executor {printable(clipped(name))}: there is none of this name{near}"
        )
    who = f"--executor {name} ({points[name].value})"
    try:
        found = points[name].load()
    except Exception as error:  # the code is a stranger's
        told = RecipeError(
            f"{who}: cannot be imported: {type(error).__name__}: {first_line(error)}"
        )
        raise told from error
    if not (isinstance(found, type) and issubclass(found, Executor)):
        raise RecipeError(f"{who}: is not a class derived from Executor")
    return found


def placement_of(options: dict[str, Any]) -> Placement:
    """Where the runs of a command are carried out, by its options.

    :raises RecipeError: for an executor or a device that cannot be used.
    """
    executor = make_executor(options.get("executor") or LOCAL, options.get("executor_options", ()))
    executor.check(options["device"])
    return Placement(
        executor,
        options["parent"],
        options["device"],
        options["jobs"],
        options.get("on_interrupt") or "save",
    )
