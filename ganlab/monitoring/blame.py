"""Whose code raised an error: the plugin, its hook and the line, read from the traceback."""

import linecache
import traceback
from dataclasses import dataclass
from pathlib import Path

from ganlab.plugin import Plugin, implements


@dataclass(frozen=True, slots=True)
class Blame:
    """An error that was raised while a plugin's code ran."""

    plugin: Plugin
    hook: str
    what: str
    """A clause about the plugin: "its evaluate fails: KeyError: 'x' (my.py, line 7: ...)"."""


def blame(error: BaseException) -> Blame | None:
    """The innermost plugin whose code was running when an error was raised; None when none was."""
    plugin: Plugin | None = None
    hook = where = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if not isinstance(owner, Plugin):
            continue
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if not isinstance(getattr(type(owner), name, None), property):
            hook = name if owner is not plugin or implements(owner, name) else hook
        plugin = owner
        where = f"{Path(file).name}, line {number}: {linecache.getline(file, number).strip()}"
    if plugin is None:
        return None
    message = next(iter(str(error).strip().splitlines()), "")
    told = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return Blame(plugin, hook, f"its {hook} fails: {told} ({where})")
