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


_made_option = click.option(
    "--min-side", default=1, metavar="PIXELS", type=click.IntRange(min=1),
    help="Leave out images with a shorter side.",
)  # fmt: skip
_broken_option = click.option(
    "--skip-broken", is_flag=True, help="Leave out what cannot be read; else that is an error."
)


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


@data.command("pack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--shard-size", default=128, show_default=True, metavar="MIB",
    type=click.IntRange(min=1, max=2**20), help="Largest size of a shard, in MiB.",
)  # fmt: skip
@_made_option
@_broken_option
def _pack(folder: Path, out: Path, shard_size: int, min_side: int, skip_broken: bool) -> None:
    """Pack the images of a folder into tar shards, for the plugin image_shards.

    Every image is read whole first. The files stay as they are, JPEG files too. Equal images give
    equal shards. When it is interrupted, the same command goes on after the last whole shard.

    Example: ganlab data pack photographs shards
    """
    from ganlab.commands.pack_shards import pack_folder
    from ganlab.commands.shard_images import Packing

    for line in pack_folder(folder, out, Packing(shard_size * 2**20, min_side, skip_broken)):
        click.echo(line)


@data.command("index")
@click.argument("folder", metavar="SHARDS", type=click.Path(path_type=Path))
@_made_option
@_broken_option
def _index(folder: Path, min_side: int, skip_broken: bool) -> None:
    """Write the index of tar shards that another tool made, such as webdataset.

    Every image is read whole. Beside each A.tar appears A.npy, and at last index.json. What is no
    image is left alone.

    Example: ganlab data index shards
    """
    from ganlab.commands.index_shards import index_shards
    from ganlab.commands.shard_images import Packing

    for line in index_shards(folder, Packing(min_side=min_side, skip_broken=skip_broken)):
        click.echo(line)


@data.command("verify")
@click.argument("folder", type=click.Path())
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
def _verify(folder: str, write: bool, manifest: Path | None, as_json: bool) -> None:
    """Read every image of a folder whole, and list all faults. Exit code 1 when there is one.

    FOLDER may hold shards, see `ganlab data pack`, and may then be an address: every image is
    compared with the index.

    With digests, which --write puts into FOLDER/SHA256SUMS, it also finds images that have changed,
    are missing or are new. Many formats have no check sum of their own, so without digests changed
    pixels go unnoticed. `sha256sum -c SHA256SUMS` checks the same file.

    Example: ganlab data verify photographs --write
    """
    from ganlab.commands.data import Verified, lines, verify_folder
    from ganlab.commands.verify_shards import (
        VerifiedShards,
        lines as of_shards,
        verify_shards,
        with_shards,
    )

    if place := with_shards(folder):
        if write or manifest:
            raise click.UsageError("shards have an index; --write and --manifest are for images")
        checked = verify_shards(place)
        print_found(checked, as_json, VerifiedShards.as_json, of_shards)
        sys.exit(1 if checked.faults else 0)
    found = verify_folder(Path(folder), manifest, write)
    print_found(found, as_json, Verified.as_json, lines)
    sys.exit(1 if found.faults else 0)
