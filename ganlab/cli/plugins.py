"""`ganlab plugins`: list them, describe one, begin a new one, check one."""

import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ganlab.cli.completion import plugin_items
from ganlab.cli.options import PLUGIN_NAME, Completed, json_option, next_is, print_json


class _WithNames(click.Group):
    """A group whose first word may also be the name of a plugin: that is `show` with this name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        completing = ctx.resilient_parsing and not args  # the shell asks for the first word
        if not completing and (args or [""])[0] not in (*self.commands, *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = PLUGIN_NAME.shell_complete(ctx, self.params[0], incomplete)
        return super().shell_complete(ctx, incomplete) + names


class _Hook(click.ParamType):
    """A hook with which a plugin can begin."""

    name = "hook"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        from ganlab.commands.new_plugin import examples
        from ganlab.recipe.file import did_you_mean

        if value not in examples():
            near = did_you_mean(str(value), examples())
            self.fail(
                f"{value!r} begins no plugin{near or '.'} It is one of {', '.join(examples())}"
            )
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from ganlab.commands.new_plugin import examples

        return [
            CompletionItem(hook, help=example["summary"])
            for hook, example in examples().items()
            if hook.startswith(incomplete)
        ]


_MODULE = Completed(
    "module",
    lambda _, incomplete: [*plugin_items(incomplete), CompletionItem(incomplete, type="file")],
)
"""An installed plugin, a module, or a file."""


@click.group(cls=_WithNames)
def plugins() -> None:
    """List the installed plugins, show one, begin a new one or check one.

    `ganlab plugins` lists all, `ganlab plugins NAME` shows one: options, defaults, paper, hooks.

    Example: ganlab plugins gradient_penalty
    """


@plugins.command("show")
@click.argument("name", required=False, type=PLUGIN_NAME)
@click.option("--hook", help="Only plugins that implement this hook.")
@json_option
def _show(name: str | None, hook: str | None, as_json: bool) -> None:
    """List the installed plugins, or show one; `show` may be left out.

    Example: ganlab plugins --hook penalty
    """
    from ganlab.commands import describe

    found = describe.describe_plugins(name, hook)
    for fault in describe.broken_plugins().values() if name is None else ():
        click.echo(f"left out: {fault}", err=True)
    if as_json:
        print_json(found)
    else:
        describe.show(found, whole=name is not None)
        shown = ["check", name] if name else [found[0]["name"]] if found else []
        next_is("plugins", *shown)


@plugins.command("new")
@click.argument("name")
@click.option(
    "--hook",
    required=True,
    type=_Hook(),
    help="The hook that it implements, such as penalty, generator_loss or make_generator.",
)
@click.option(
    "--into",
    "parent",
    default=".",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the new folder; the current one by default.",
)
def _new(name: str, hook: str, parent: Path) -> None:
    """Write a distribution with a plugin that works: module, tests, recipe, README, workflow.

    Its tests hold it to the contract of plugins, and pass at once. Change it step by step.

    Example: ganlab plugins new slope --hook penalty
    """
    from ganlab.commands.new_plugin import new_plugin

    folder = new_plugin(name, hook, parent)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        click.echo(file)
    click.echo(f"then: pip install --editable {folder}", err=True)
    (module,) = folder.glob("*.py")
    next_is("plugins", "check", module)


@plugins.command("check")
@click.argument("module", type=_MODULE)
@json_option
def _check(module: str, as_json: bool) -> None:
    """Check the plugins of a module against the contract, rule by rule, in small runs on the CPU.

    MODULE is an installed plugin, a module that can be imported, or a file that ends with .py.
    Options have the values of their examples, else their defaults. Exit code 1 when a rule is
    broken.

    Example: ganlab plugins check gradient_penalty
    """
    from ganlab.commands.check_plugin import check_module, lines

    found = []
    for checked in check_module(module):
        found.append(checked)
        for line in () if as_json else lines(checked):
            click.echo(line)
    if as_json:
        print_json([checked.as_json() for checked in found])
    sys.exit(1 if any(checked.broken for checked in found) else 0)
