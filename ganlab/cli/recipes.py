"""`ganlab recipes`, those that come with ganlab, and `ganlab init`, a project to begin with."""

from pathlib import Path

import click

from ganlab.cli.completion import bundled_items
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
@click.argument("name", shell_complete=lambda *given: bundled_items(given[-1]))
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


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def init(folder: Path) -> None:
    """Lay out a project in a FOLDER: a recipe and a plugin file to change, and what goes with them.

    It has recipes/first.toml with the loss of recipes/edges.py, a folder for your photographs, the
    files by which an editor completes recipes, and a .gitignore. Nothing is overwritten.

    Example: ganlab init my_project
    """
    from ganlab.commands.project import PHOTOGRAPHS, RECIPE, make_project

    for path in make_project(folder):
        click.echo(folder / path)
    click.echo(f"put photographs into {folder / PHOTOGRAPHS}, then, in {folder}:", err=True)
    next_is("run", RECIPE.as_posix(), "--data", PHOTOGRAPHS)
