"""`ganlab recipes`: those that come with ganlab."""

from pathlib import Path

import click

from ganlab.cli.options import json_option, next_is, print_found


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the recipes that come with ganlab: what they reach, and what they need.

    Every command that takes a recipe takes the name of one of these, where no file has that name.

    Example: ganlab recipes
    """
    if context.invoked_subcommand:
        return
    from dataclasses import asdict

    from ganlab.commands.recipes import describe_bundled, lines

    found = describe_bundled()
    print_found(found, as_json, lambda every: [asdict(one) for one in every], lines)
    if not as_json:
        next_is("run", "NAME")


@recipes.command("copy")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def _copy(name: str, folder: Path) -> None:
    """Copy a recipe into a FOLDER, to change it; default: the current one.

    What it extends, and its plugin files, are copied too. No file that differs is overwritten.

    Example: ganlab recipes copy r3gan
    """
    from ganlab.commands.recipes import copy_bundled

    copies = copy_bundled(name, folder)
    for copy in copies:
        click.echo(copy)
    next_is("check", copies[0])
