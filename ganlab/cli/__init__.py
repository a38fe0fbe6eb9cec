"""The `ganlab` command. Results go to stdout, progress and errors to stderr.

Modules that import torch are imported inside the commands, so that `--help` and shell completion
respond at once.
"""

import gc
import os
import sys

import click

from ganlab import __version__
from ganlab.cli import (
    compare,
    completion,
    data,
    hub,
    look,
    plugins,
    recipes,
    share,
    train,
    use,
    weights,
)
from ganlab.cli.added import WithAdded
from ganlab.cli.options import traceback_option


@click.group(cls=WithAdded, context_settings={"help_option_names": ["-h", "--help"], "color": True})
@click.version_option(__version__, prog_name="ganlab")
def main() -> None:
    """Run GAN experiments that you can trust, mainly for super-resolution.

    Begin with: ganlab run wgan_gp
    """
    # the import of torch makes a million objects that stay; the garbage collector would spend half
    # a second on examining them again and again
    gc.set_threshold(100_000, 50, 100)
    # the processes of a comparison import nothing from the current folder
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")


traceback_option(main)
for module in (train, look, plugins, compare, use, share, hub, data, recipes, weights, completion):
    for name, command in vars(module).items():
        if isinstance(command, click.Command) and not name.startswith("_"):  # not of a group
            traceback_option(command)
            for inner in command.commands.values() if isinstance(command, click.Group) else ():
                traceback_option(inner)
            main.add_command(command)
