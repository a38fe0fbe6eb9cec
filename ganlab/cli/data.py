"""`ganlab data`: folders of images."""

import sys
from pathlib import Path

import click

from ganlab.cli.options import json_option, print_found


@click.group()
def data() -> None:
    """Look after folders of images."""


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
