"""Shared parts of the commands: how errors end them, common options, the next command to type."""

import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ganlab.errors import GanlabError
from ganlab.files import finite


class Group(click.Group):
    """Click group that turns every error meant for the user into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (GanlabError, OSError) as error:
            print(error, file=sys.stderr)
            ctx.exit(getattr(error, "exit_code", 1))
        except (click.exceptions.Exit, click.Abort):  # they are RuntimeErrors
            raise
        except (MemoryError, RuntimeError) as error:
            from ganlab.failures.out_of_memory import explained

            if not (told := explained(error)):
                raise
            print(told, file=sys.stderr)
            ctx.exit(told.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            ctx.exit(130)


class Duration(click.ParamType):
    """`90s`, `3m`, `1.5h`; seconds when no unit is given."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a duration; write 90s, 3m or 1.5h", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


class FiniteRange(click.FloatRange):
    """A number in a range; nan and infinity, which click lets pass, are refused."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def check_device(
    context: click.Context, parameter: click.Parameter, name: str | None
) -> str | None:
    """Refuse a device that is not there before the command reads or writes anything."""
    if name not in (None, "auto", "cpu"):
        from ganlab.speed.device import pick_device

        pick_device(name)
    return name


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    help_text = "auto (CUDA if there is a device), cpu, cuda, cuda:N or mps."
    return click.option(
        "--device", default="auto", show_default=True, callback=check_device, help=help_text
    )(command)


def weights_option(command: Callable[..., Any]) -> Callable[..., Any]:
    choice = click.Choice(["last", "best"])
    help_text = "The last generator, or the one with the best score."
    return click.option(
        "--weights", type=choice, default="last", show_default=True, help=help_text
    )(command)


def _trust(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        from ganlab.recipe.trust import trusting_code

        context.with_resource(trusting_code())


trust_code_option = click.option(
    "--trust-code", is_flag=True, expose_value=False, callback=_trust,
    help="Run the plugin files in a run folder that somebody else made.",
)  # fmt: skip
runs_option = click.option(
    "--runs", "parent", default="runs", show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that holds the run folders.",
)  # fmt: skip
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, as in `run`."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print a value as JSON. A number that is not finite becomes null, as in stats.jsonl."""
    click.echo(json.dumps(finite(value), indent=2, default=str, allow_nan=False))


def run_command(recipe: Path, overrides: tuple[str, ...]) -> list[str]:
    """The arguments of the command that trains a recipe."""
    return ["run", str(recipe), *(part for one in overrides for part in ("--set", one))]


def next_is(*arguments: object) -> None:
    """Print the command that a user may want next: `ganlab` with these arguments.

    A word in capitals stands for the user's own: IMAGE, FOLDER, RECIPE, ANOTHER_RUN.
    """
    click.echo(f"next: {shlex.join(['ganlab', *map(str, arguments)])}", err=True)
