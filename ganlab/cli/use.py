"""`ganlab eval`, `score` and `upscale`: the pictures of a generator."""

from pathlib import Path
from typing import Any

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
    "images", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    default="upscaled",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the new files; files that are there already are passed over.",
)
@click.option("--overwrite", is_flag=True, help="Make files again that are there already.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "jpeg", "webp", "png16", "keep"]),
    default="png",
    show_default=True,
    help="Of pictures. png has as many bits as the picture, png16 always 16. keep: JPEG and WebP "
    "stay what they are, all others become PNG.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), help="Of JPEG and WebP; default: 95.", metavar="N"
)
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
    help="Of each value in PNG files; default: as many as the image has.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Also write OUTPUT/compare.html: bicubic enlargement beside the generator's.",
)
@click.option(
    "--original",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Of originals, by the names of the pictures, for the page of --compare.",
)
@weights_option
@device_option
@trust_code_option
def upscale(
    run_folder: Path,
    images: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    kind: Any,
    quality: int | None,
    tile: int,
    bits: Any,
    compare: bool,
    original: Path | None,
    weights: str,
    device: str,
) -> None:
    """Enlarge photographs and videos with a run's generator: any size, tiled without seams.

    A FILE is a picture, a folder of pictures, or a video. One that cannot be read stops none of the
    others; it is named at the end, with exit code 1. Give the command again to go on after an
    interruption.

    Alpha is kept, a grey picture stays grey, 16 bits stay 16 bits in PNG files, and a colour
    profile is kept. CMYK becomes sRGB. Videos need the program ffmpeg; their sound is kept.

    Example: ganlab upscale runs/wgan_gp-1 photo.jpg
    """
    from ganlab.commands.before_after import page_in
    from ganlab.commands.progress import shown_bar
    from ganlab.commands.upscale import upscale_files
    from ganlab.commands.upscale_jobs import Encoding, jobs_of

    encoding = Encoding(kind, quality, int(bits) if bits else None)  # type: ignore[arg-type]
    jobs = jobs_of(images, output, encoding)
    page = page_in(output, original, compare)
    with shown_bar() as bar:
        for line in upscale_files(
            run_folder, jobs, output, tile, weights, device, encoding, overwrite, page, bar
        ):
            bar.say(line)
    next_is("eval", run_folder, "--data", "FOLDER")
