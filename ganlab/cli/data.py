"""`ganlab data`: folders of images, and sets of images that others publish."""

import sys
from pathlib import Path

import click

from ganlab.cli.completion import data_set_items
from ganlab.cli.options import json_option, print_found, yes_option


@click.group()
def data() -> None:
    """Fetch sets of images, and look after folders of images."""


to_option = click.option(
    "--to", "parent", default="data", show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that holds the folders of the sets.",
)  # fmt: skip


@data.command("list")
@to_option
@json_option
def _list(parent: Path, as_json: bool) -> None:
    """List the published sets of images that can be fetched, with size and terms.

    Example: ganlab data list
    """
    from ganlab.commands import data_sets
    from ganlab.published import data_sets as known

    print_found(
        parent,
        as_json,
        lambda parent: [data_sets.as_json(each, parent) for each in known().values()],
        data_sets.lines,
    )


@data.command("fetch")
@click.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="NAME...",
    shell_complete=lambda *given: data_set_items(given[-1]),
)
@to_option
@yes_option
def _fetch(names: tuple[str, ...], parent: Path, yes: bool) -> None:
    """Fetch sets of images from their publishers, and unpack them.

    NAME is one of `ganlab data list`. Address, size, terms and sha256 are shown first. A download
    that was cut goes on where it ended. The archive is removed when its images are unpacked; their
    digests are in SHA256SUMS, for `ganlab data verify`.

    Example: ganlab data fetch Set5 Set14
    """
    from ganlab.commands.data_sets import fetch_data

    for line in fetch_data(names, parent, yes):
        click.echo(line)


@data.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--write", is_flag=True, help="Write the digests of what is there now to FOLDER/SHA256SUMS."
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file of digests, when it is not FOLDER/SHA256SUMS.",
)
@json_option
def _verify(folder: Path, write: bool, manifest: Path | None, as_json: bool) -> None:
    """Read every image of a folder whole, and list all faults. Exit code 1 when there is one.

    With digests, which --write puts into FOLDER/SHA256SUMS, it also finds images that have changed,
    are missing or are new. Many formats have no check sum of their own, so without digests changed
    pixels go unnoticed. `sha256sum -c SHA256SUMS` checks the same file.

    Example: ganlab data verify photographs --write
    """
    from ganlab.commands.data import Verified, lines, verify_folder

    found = verify_folder(folder, manifest, write)
    print_found(found, as_json, Verified.as_json, lines)
    sys.exit(1 if found.faults else 0)
