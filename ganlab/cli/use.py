"""`ganlab eval`, `score` and `upscale`: the pictures of a generator."""

from pathlib import Path

import click

from ganlab.cli.options import (
    device_option,
    json_option,
    next_is,
    print_json,
    run_argument,
    trust_code_option,
    weights_option,
)


@click.command("eval")
@run_argument
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A folder of HR images."
)
@weights_option
@device_option
@trust_code_option
@json_option
def evaluate(run_folder: Path, data: Path, weights: str, device: str, as_json: bool) -> None:
    """Score a run's generator, and bicubic for comparison, on a folder of images.

    The images are degraded as in training. The scores: PSNR and SSIM on the Y channel (BT.601,
    borders of `scale` pixels shaved) and in RGB; LR-consistency; share of fine detail.

    Example: ganlab eval runs/wgan_gp-1 --data Set5
    """
    from ganlab.commands.apply import evaluate_folder, show_scores

    rows = evaluate_folder(run_folder, data, weights, device)
    if as_json:
        print_json(rows)
    else:
        show_scores(rows)
        next_is("upscale", run_folder, "IMAGE")


@click.command()
@click.argument("sr", type=click.Path(path_type=Path))
@click.argument("hr", type=click.Path(path_type=Path))
@click.option(
    "--lr", type=click.Path(path_type=Path), help="The LR pictures: adds bicubic and lr_psnr."
)
@click.option(
    "--scale",
    type=click.IntRange(min=1),
    help="HR is cropped to a multiple of it; default: that of HR and LR.",
)
@click.option(
    "--shave", type=click.IntRange(min=0), help="Pixels cut from every side; default: the scale."
)
@click.option("--metric", "metrics", multiple=True, help="Only this score; may be repeated.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Also the scores of this recipe's plugins, such as lpips.",
)
@trust_code_option
@json_option
def score(
    sr: Path,
    hr: Path,
    lr: Path | None,
    scale: int | None,
    shave: int | None,
    metrics: tuple[str, ...],
    recipe: Path | None,
    as_json: bool,
) -> None:
    """Score pictures against their originals: two folders, or two files. No run is needed.

    A picture belongs to the original of its name, apart from endings such as _x4 or _SR. A picture
    without its partner is an error. The protocol is that of `ganlab eval`.

    Example: ganlab score upscaled Set5 --scale 4
    """
    from ganlab.commands.score import score_files, show_scores

    found = score_files(sr, hr, lr, scale, shave, metrics, recipe)
    if as_json:
        print_json(found)
    else:
        show_scores(found)


@click.command()
@run_argument
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    default="upscaled",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the PNG files; files that are there already are passed over.",
)
@click.option("--overwrite", is_flag=True, help="Make files again that are there already.")
@click.option(
    "--tile",
    type=click.IntRange(min=64),
    default=192,
    show_default=True,
    help="Side of the tiles, in pixels of the input image. Memory grows with its square, and "
    "little with the image: one tile in float, one row of tiles in 8 bits. Smaller tiles overlap "
    "more, so they take longer.",
)
@click.option(
    "--bits",
    type=click.Choice(["8", "16"]),
    help="Of each value; default: as many as the image has.",
)
@weights_option
@device_option
@trust_code_option
def upscale(
    run_folder: Path,
    images: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    tile: int,
    bits: str | None,
    weights: str,
    device: str,
) -> None:
    """Enlarge photographs with a run's generator: any size, tiled without seams, alpha kept.

    An IMAGE is a file or a folder. A picture that cannot be read stops none of the others; it is
    named at the end, with exit code 1. Give the command again to go on after an interruption.

    A grey image stays grey, 16 bits stay 16 bits, and a colour profile is kept. CMYK becomes sRGB.

    Example: ganlab upscale runs/wgan_gp-1 photo.jpg
    """
    from ganlab.commands.upscale import jobs_of, upscale_files

    depth, jobs = int(bits) if bits else None, jobs_of(images, output)
    lines = upscale_files(run_folder, jobs, output, tile, weights, device, depth, overwrite)
    for line in lines:
        click.echo(line)
    next_is("eval", run_folder, "--data", "FOLDER")
