"""`ganlab plugins check`: holds plugins to the contract of `ganlab.testing`."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ganlab.errors import RecipeError, printable
from ganlab.monitoring.blame import described, is_interruption
from ganlab.plugin import Plugin
from ganlab.recipe.discovery import class_of, find_plugin, installed, read_code
from ganlab.recipe.file import Origin, did_you_mean
from ganlab.testing.contract import Finding, examine
from ganlab.testing.experiment import Subject
from ganlab.testing.rules import RULES

HERE = "ganlab plugins check"


@dataclass(frozen=True, slots=True)
class Checked:
    """A plugin, and how it stands to each rule."""

    plugin: str
    findings: list[Finding]

    @property
    def broken(self) -> bool:
        return any(finding.broken for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_module(module: str) -> Iterator[Checked]:
    """Check each plugin of a module, one after another.

    :param module: the name of an installed plugin, the name of a module that can be imported, or
        the path of a file that ends with .py.
    :raises RecipeError: when there is no such module, or no plugin in it.
    """
    for kind in plugins_of(module):
        subject = Subject.of(kind)
        yield Checked(subject.name, list(examine(subject, {})))


def plugins_of(module: str) -> list[type[Plugin]]:
    """The plugin classes that a module defines."""
    if module in installed():
        return [find_plugin(module, HERE)[0]]
    if module.endswith(".py"):
        file = Path(module).resolve()
        if not file.is_file():
            raise RecipeError(f"{HERE}: no file '{module}'")
        origin = Origin(file)
        return [class_of(read_code(file.name, origin, file), file.name, origin)[0]]
    try:
        found = vars(importlib.import_module(module))
    except BaseException as error:  # the code is a stranger's; SystemExit too
        if is_interruption(error):
            raise
        near = did_you_mean(module, installed())
        raise RecipeError(
            f"{HERE} {module}: no installed plugin has this name, and it cannot be imported: "
            f"{described(error)}; name a plugin, a module, or a file that ends with .py{near}"
        ) from error
    classes = [v for v in found.values() if inspect.isclass(v) and issubclass(v, Plugin)]
    if own := [kind for kind in classes if kind.__module__ == module]:
        return own
    raise RecipeError(f"{HERE} {module}: it defines no class derived from Plugin")


def lines(checked: Checked) -> Iterator[str]:
    """What was found, in lines for the user."""
    yield checked.plugin
    width = max(len(rule.name) for rule in RULES)
    for finding in checked.findings:
        told = finding.broken or (f"left out: {finding.left_out}" if finding.left_out else "holds")
        mark = "BROKEN  " if finding.broken else ""
        yield f"  {finding.rule:<{width}}  {mark}{printable(told)}"
