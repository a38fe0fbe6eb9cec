"""`ganlab weights`: published weights that plugins read."""

import click

from ganlab.cli.options import json_option, print_found, yes_option


@click.group()
def weights() -> None:
    """Fetch the published weights that some losses and metrics need."""


@weights.command("list")
@json_option
def _list(as_json: bool) -> None:
    """List the files that the installed plugins can read, with size and licence.

    Example: ganlab weights list
    """
    from ganlab.commands.weights import Weights, declared, lines

    print_found(declared(), as_json, lambda found: [*map(Weights.as_json, found)], lines)


@weights.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@yes_option
def _fetch(names: tuple[str, ...], yes: bool) -> None:
    """Fetch files from their publishers into ganlab's cache folder.

    NAME is a file's name in `ganlab weights list`, or a plugin's: that is the file which the plugin
    reads by default. Address, size, licence and sha256 are shown first. A download that was cut
    goes on where it ended.

    Example: ganlab weights fetch vgg19
    """
    from ganlab.commands.weights import fetch_weights

    for line in fetch_weights(names, yes):
        click.echo(line)
