"""Shared parts of the commands: how errors end them, common options, the next command to type."""

import json
import math
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ganlab.cli.completion import (
    executor_items,
    executor_option_items,
    plugin_items,
    recipe_items,
    recipe_plugin_items,
    run_items,
    set_items,
    toml_items,
)
from ganlab.cli.output import lasting_output, lost_output
from ganlab.errors import GanlabError
from ganlab.files import finite
from ganlab.stopping import Stopped, heeding

OURS = """\
this is a fault of ganlab itself, not of yours: report the lines above, with the command and what
`ganlab doctor` prints"""
PERHAPS_A_PLUGINS = """\
no plugin's code was at work: this is a fault of ganlab itself, or of what a plugin returned.
`ganlab check` examines what plugins return; if it finds nothing, report the lines above, with the
recipe and what `ganlab doctor` prints"""


class Group(click.Group):
    """Click group that turns every error into one message and an exit code.

    So do the signals that ask a command to end, wherever it is.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        with lasting_output():
            try:
                with heeding():
                    return super().main(*arguments, **options)
            except Stopped as stopped:
                print(stopped, file=sys.stderr)
                sys.exit(stopped.exit_code)
            except SystemExit as end:
                if lost := lost_output():
                    print(lost, file=sys.stderr)
                    sys.exit(end.code or 1)
                raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseException as error:
            ctx.exit(told(error, bool(ctx.meta.get(TRACEBACK))))


TRACEBACK = "ganlab.traceback"


def traceback_option(command: click.Command) -> None:
    """Give a command the option --traceback."""

    def note(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            context.meta[TRACEBACK] = True  # one dict for a group and its commands

    command.params.append(
        click.Option(
            ["--traceback"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=note,
            help="Show the whole traceback of an error.",
        )
    )


def told(error: BaseException, whole: bool) -> int:
    """Print the message for an error; returns the exit code.

    :param whole: whether to print the traceback before it.
    :raises BaseException: the error itself when click ends the command by it.
    """
    from_plugins = "ganlab.plugin" in sys.modules  # else no plugin's code can have run
    if from_plugins and not isinstance(error, GanlabError):
        from ganlab.failures.telling import explained

        error = explained(error) or error
    lines = getattr(error, "traceback", "") or "".join(traceback.format_exception(error))
    if isinstance(error, GanlabError | OSError):
        if whole:
            print(lines, file=sys.stderr)
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 1)
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, _ENDINGS):
        raise error
    print(lines, file=sys.stderr)
    print(PERHAPS_A_PLUGINS if "iterate(run" in lines else OURS, file=sys.stderr)
    return 1


_ENDINGS = (Stopped, click.ClickException, click.exceptions.Exit, click.Abort, SystemExit)
"""How click, or a command, ends on purpose."""


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


class RecipeFile(click.Path):
    """The path of a recipe, or the name of one that comes with ganlab."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return recipe_items(incomplete)


class TomlFile(click.Path):
    """The path of a TOML file that is not a recipe."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return toml_items(incomplete)


class RunReference(click.ParamType):
    """A run: its path, its name, the beginning of its name, or @last; becomes its folder."""

    name = "run"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        from ganlab.runs.reference import find_run

        return value if isinstance(value, Path) else find_run(str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return run_items(ctx, incomplete)


class RunOrWeights(RunReference):
    """A run as in `RunReference`, or a .safetensors file of weights."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        path = Path(value)
        is_weights = path.suffix == ".safetensors" and path.is_file()
        return path if is_weights else super().convert(value, param, ctx)


class RecipeOrRun(click.ParamType):
    """A recipe file, or a run as in `RunReference`; becomes the path of the file or folder."""

    name = "recipe_or_run"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        from ganlab.runs.reference import find_recipe_or_run

        return find_recipe_or_run(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [*recipe_items(incomplete), *run_items(ctx, incomplete)]


class Completed(click.ParamType):
    """A text that TAB completes."""

    def __init__(
        self, name: str, items: Callable[[click.Context, str], list[CompletionItem]]
    ) -> None:
        self.name, self._items = name, items

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return self._items(ctx, incomplete)


OVERRIDE = Completed("override", set_items)
"""A `key=value` for a recipe."""
PLUGIN_NAME = Completed("plugin", lambda _, incomplete: plugin_items(incomplete))
"""The name of an installed plugin."""
RECIPE_PLUGIN = Completed("plugin", recipe_plugin_items)
"""The name of a plugin in the recipe that the command line names."""
EXECUTOR_NAME = Completed("executor", lambda _, incomplete: executor_items(incomplete))
"""The name of an executor: local, or one of the entry-point group `ganlab.executors`."""
EXECUTOR_OPTION = Completed("executor_option", executor_option_items)
"""A `key=value` for the executor of the command line."""

run_argument = click.argument("run_folder", metavar="RUN", type=RunReference())
run_or_weights_argument = click.argument("run", metavar="RUN", type=RunOrWeights())


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
    "--set", "overrides", multiple=True, type=OVERRIDE, metavar="KEY=VALUE",
    help="Override a value, such as gradient_penalty.weight=5; may be repeated.",
)  # fmt: skip
licence_option = click.option(
    "--license", "licence", default="", metavar="NAME",
    help="The licence of the weights, such as apache-2.0, for what is written. You state it: "
    "ganlab cannot know it.",
)  # fmt: skip
yes_option = click.option("--yes", is_flag=True, help="Do not ask before a large download.")
data_option = click.option(
    "--data", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Train on the images of this folder instead of the recipe's; a part is held out.",
)  # fmt: skip


def change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command of one RECIPE the options --set and --data.

    It gets `overrides`: those of --set, after those that stand for --data.
    """

    @wraps(command)
    def on_data(*, recipe: Path, overrides: tuple[str, ...], data: Path | None, **rest: Any) -> Any:
        if data:
            from ganlab.recipe.own_data import on_folder

            overrides = on_folder(recipe, overrides, data)
        return command(recipe=recipe, overrides=overrides, **rest)

    return set_option(data_option(on_data))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print a value as JSON. A number that is not finite becomes null, as in stats.jsonl."""
    click.echo(json.dumps(finite(value), indent=2, default=str, allow_nan=False))


def print_found(
    found: Any, as_json: bool, as_data: Callable[[Any], Any], lines: Callable[[Any], Iterable[str]]
) -> None:
    """Print what a command has found, by one of its two functions: as JSON, or as lines."""
    if as_json:
        print_json(as_data(found))
    else:
        for line in lines(found):
            click.echo(line)


def run_command(*more: str) -> list[str]:
    """The arguments of the command that trains the recipe of the command at work, as it was typed.

    :param more: overrides that come after those of its --set.
    """
    typed = click.get_current_context().params
    data = ["--data", str(typed["data"])] if typed["data"] else []
    overrides = (part for one in (*typed["overrides"], *more) for part in ("--set", one))
    return ["run", str(typed["recipe"]), *data, *overrides]


def next_is(*arguments: object) -> None:
    """Print the command that a user may want next: `ganlab` with these arguments.

    A word in capitals stands for the user's own: IMAGE, FOLDER, NAME, RECIPE, ANOTHER_RUN.
    """
    click.echo(f"next: {shlex.join(['ganlab', *map(str, arguments)])}", err=True)
