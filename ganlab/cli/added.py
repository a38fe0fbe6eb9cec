"""Commands that plugins add: entry points of the group `ganlab.commands`, name -> click command.

Only their names are read until one is used, so that `ganlab --help` imports no plugin.
"""

from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

import click

from ganlab.cli.options import Group, traceback_option
from ganlab.errors import GanlabError, printable
from ganlab.registry import entry_points

GROUP = "ganlab.commands"


class WithAdded(Group):
    """The group of ganlab's own commands, which go first, and of those that plugins add."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        return own or (_Added(cmd_name) if cmd_name in added() else None)


class _Added(click.Command):
    """A command of a plugin, imported when it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=f"Added by {' and '.join(_distributions(name))}.")

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        assert self.name
        return load(self.name).make_context(info_name, args, *more, **extra)


@cache
def added() -> dict[str, list[EntryPoint]]:
    """The commands that installed distributions add: name -> who adds it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(GROUP):
        others = found.setdefault(point.name, [])
        if point.value not in {other.value for other in others}:
            others.append(point)
    return found


@cache
def load(name: str) -> click.Command:
    """The command itself.

    :raises GanlabError: when two distributions add one of this name, or it cannot be imported.
    """
    point, *others = added()[name]
    who = f"the command '{name}' of {' and '.join(_distributions(name))}"
    if others:
        raise GanlabError(f"{who}: two distributions add it; uninstall one")
    try:
        command = point.load()
    except Exception as error:  # the code is a stranger's
        raise GanlabError(
            f"{who} ({point.value}) cannot be imported: {type(error).__name__}: "
            f"{printable(str(error))}"
        ) from error
    if not isinstance(command, click.Command):
        raise GanlabError(f"{who} ({point.value}) is no click command; decorate it as one")
    traceback_option(command)
    return command


def _distributions(name: str) -> list[str]:
    points = added()[name]
    return [f"{point.dist.name} {point.dist.version}" if point.dist else "?" for point in points]
