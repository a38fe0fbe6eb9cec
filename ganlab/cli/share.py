"""`ganlab pack`, `verify`, `replay` and `export`: hand a run on, and what others handed on."""

import sys
from pathlib import Path

import click

from ganlab.cli.options import (
    FiniteRange,
    check_device,
    json_option,
    licence_option,
    next_is,
    print_found,
    run_argument,
    run_or_weights_argument,
    set_option,
    trust_code_option,
    weights_option,
)


@click.command()
@run_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file; default: the run's name and .zip. An existing file is not overwritten.",
)
@click.option("--weights", is_flag=True, help="Put in the generator's weights too.")
def pack(run_folder: Path, output: Path | None, weights: bool) -> None:
    """Pack a run into one file for another person, who can then verify it.

    The file holds the resolved recipe, the manifest, the versions of all packages, the digests of
    data and weights, all logged figures, and the code of plugin files. It holds no data, and no
    path of this machine in its recipe.

    Example: ganlab pack runs/wgan_gp-1 -o wgan_gp.zip
    """
    from ganlab.commands.pack import pack_run

    file, names, digest = pack_run(run_folder, output, weights)
    click.echo(f"{file}: {', '.join(names)}")
    click.echo(f"{file.stat().st_size:,} bytes, sha256 {digest}")
    next_is("verify", file)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many iterations to run again, from the first; default: 20, or as many as needed to "
    "reach a logged line.",
)
@set_option
@click.option(
    "--device",
    callback=check_device,
    help="auto, cpu, cuda, cuda:N or mps; default: the kind of device that the run had, if there "
    "is one here.",
)
@click.option(
    "--tolerance",
    type=FiniteRange(min=0),
    default=0.001,
    show_default=True,
    help="Largest first difference that counts as rounding, as a share of the largest value of "
    "the figure in these iterations.",
)
@trust_code_option
@json_option
def verify(
    file: Path,
    iterations: int | None,
    overrides: tuple[str, ...],
    device: str | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Run the first iterations of a packed run again, and compare them with its log.

    First it prints what differs here: versions, machine, code, data. Data are not in the file;
    --set says where they are. Where nothing differs, all logged digits must be equal on a CPU.
    Otherwise the first difference may be at most --tolerance; what it grows to is printed. Code
    in the file runs only with --trust-code.

    Exit codes: 0 repeated, 1 not repeated, 2 wrong file or usage, or nothing was run.

    Example: ganlab verify wgan_gp.zip --iterations 100 --set image_folder.path=photos
    """
    from ganlab.commands.verify import Wanted, as_data, result, verify_file

    wanted = Wanted(iterations, overrides, device, tolerance)
    found = verify_file(file, wanted, lambda line: click.echo(line, err=as_json))
    print_found(found, as_json, as_data, result)
    if found.later and not as_json:
        next_is("verify", file, "--iterations", max(found.later.values()))
    sys.exit(0 if found.repeated else 1)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--device", default="cpu", show_default=True, callback=check_device, help="As for `ganlab run`."
)
@trust_code_option
@json_option
def replay(bundle: Path, device: str, as_json: bool) -> None:
    """Take an iteration again in which a number was not finite.

    A run that stops or goes back at such a number leaves the bundle: a folder with the state before
    the iteration, its batches and the recipe. The training data are not needed. Each thing that is
    not finite is one line, in the order in which it arises. Code in the bundle runs only with
    --trust-code, or if you have run it before.

    Exit codes: 0 the same step and the same fault again, 1 another result, 2 wrong bundle or usage.

    Example: ganlab replay runs/wgan_gp-1/nonfinite-0000123
    """
    from ganlab.commands.replay import as_data, lines, replay_bundle

    found = replay_bundle(bundle, device)
    print_found(found, as_json, as_data, lines)
    sys.exit(0 if found.reproduced else 1)


@click.command()
@run_or_weights_argument
@click.option(
    "--to",
    required=True,
    type=click.Choice(["safetensors", "onnx", "pt2", "ncnn"]),
    help="safetensors: the weights alone. onnx, pt2 (torch.export), ncnn: the network as a graph "
    "for pictures of every size.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The folder for the file and its model card; default: exported/ and the run's name.",
)
@click.option("--fp16", is_flag=True, help="In float16: half the size.")
@licence_option
@click.option("--overwrite", is_flag=True, help="Replace a file and a card that are there already.")
@weights_option
@trust_code_option
@json_option
def export(
    run: Path,
    to: str,
    output: Path | None,
    fp16: bool,
    licence: str,
    overwrite: bool,
    weights: str,
    as_json: bool,
) -> None:
    """Write a run's generator as a file for other programs.

    RUN may also be a .safetensors file of weights. The file is opened again as those programs do
    it, and shown photographs of several sizes: where its pictures differ from the generator's by
    more than rounding, it is not kept. It carries recipe, scale and licence. A model card,
    README.md, is written beside it, in the form of the Hugging Face Hub.

    Example: ganlab export runs/wgan_gp-1 --to onnx
    """
    from ganlab.commands.export import as_data, export_generator, lines

    found = export_generator(run, to, output, weights, fp16, licence, overwrite)
    print_found(found, as_json, as_data, lines)
