"""`ganlab hub`: generators on the Hugging Face Hub."""

from pathlib import Path
from typing import Literal

import click

from ganlab.cli.options import (
    licence_option,
    next_is,
    run_argument,
    trust_code_option,
    weights_option,
    yes_option,
)

repository_argument = click.argument("repository", metavar="USER/NAME")


@click.group()
def hub() -> None:
    """Send generators to the Hugging Face Hub, and fetch them from there."""


@hub.command("push")
@run_argument
@repository_argument
@weights_option
@click.option("--private", is_flag=True, help="Only you can see it; default: everybody.")
@licence_option
@click.option("--yes", is_flag=True, help="Do not ask before anything is sent.")
@trust_code_option
def _push(
    run_folder: Path,
    repository: str,
    weights: Literal["last", "best"],
    private: bool,
    licence: str,
    yes: bool,
) -> None:
    """Send a run's generator to the Hugging Face Hub.

    Weights, recipe, the code of its plugin files, and a model card are sent, no data and no path of
    this machine. The command shows the files, their sizes and the address, and asks first. The
    token is that of `hf auth login`, or HF_TOKEN.

    Example: ganlab hub push runs/wgan_gp-1 lab/wgan_gp --private
    """
    from ganlab.hub.transfer import push

    for line in push(run_folder, repository, weights, licence, private, yes):
        click.echo(line)


@hub.command("pull")
@repository_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The run folder to make; default: runs/NAME. One that is there is not changed.",
)
@click.option(
    "--revision",
    default="main",
    show_default=True,
    help="A branch, a tag or a commit of the repository.",
)
@yes_option
def _pull(repository: str, output: Path | None, revision: str, yes: bool) -> None:
    """Fetch a generator from the Hugging Face Hub into a new run folder.

    Only what `ganlab hub push` sent is fetched, all of one commit, which is told, and each file is
    compared with its digest. Nothing in it runs. Code of a plugin file asks for consent when the
    generator is used.

    Example: ganlab hub pull lab/wgan_gp
    """
    from ganlab.hub.transfer import pull

    folder = output or Path("runs") / repository.rpartition("/")[2]
    for line in pull(repository, folder, revision, yes):
        click.echo(line)
    next_is("upscale", folder, "IMAGE")
