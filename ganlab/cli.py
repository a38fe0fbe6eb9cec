"""The `ganlab` command. Results go to stdout, progress and complaints to stderr.

Modules that import torch are imported inside the commands, so that `--help` and shell completion
answer at once.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ganlab import __version__
from ganlab.errors import GanlabError, RecipeError


class Group(click.Group):
    """Turns every error that is meant for the user into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (GanlabError, OSError) as error:
            print(error, file=sys.stderr)
            ctx.exit(getattr(error, "exit_code", 1))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            ctx.exit(130)


class Duration(click.ParamType):
    """`90s`, `3m`, `1.5h`; seconds when no unit is given."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if not found or float(found[1]) == 0:
            self.fail(f"{value!r} is not a duration; write 90s, 3m or 1.5h", param, ctx)
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    help_text = "auto (CUDA where there is one), cpu, cuda or cuda:N."
    return click.option("--device", default="auto", show_default=True, help=help_text)(command)


def weights_option(command: Callable[..., Any]) -> Callable[..., Any]:
    choice = click.Choice(["last", "best"])
    help_text = "The generator as it was last, or when it scored best."
    return click.option(
        "--weights", type=choice, default="last", show_default=True, help=help_text
    )(command)


runs_option = click.option(
    "--runs", "parent", default="runs", show_default=True, type=click.Path(path_type=Path),
    help="The folder of run folders.",
)  # fmt: skip


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ganlab")
def main() -> None:
    """Experiments with GANs that you can believe, at home in super-resolution.

    Begin with: ganlab run recipes/wgan_gp.toml
    """


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value, such as gradient_penalty.weight=5; may be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Override the recipe's seed.")
@device_option
@click.option("--name", help="Name of the run folder; else the recipe's name and a number.")
@runs_option
@click.option(
    "--max-iterations",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after iteration N, resumable; schedules stay those of the whole run.",
)
@click.option("--max-time", type=Duration(), help="Stop after 90s, 3m, 1.5h; resumable.")
@click.option(
    "--resume", "resumed", metavar="RUN", help="Continue this run, if it was made by this recipe."
)
@click.option(
    "--dry-run", is_flag=True, help="Check the recipe and print it resolved; no training."
)
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    device: str,
    name: str | None,
    parent: Path,
    max_iterations: int | None,
    max_time: float | None,
    resumed: str | None,
    dry_run: bool,
) -> None:
    """Train a recipe.

    Writes runs/<recipe>-<n>/: weights, sample pictures, stats.jsonl, checkpoints, the resolved
    recipe. Exit codes: 0 done, 1 failed, 2 wrong recipe or usage, 3 diverged, 4 stopped by a
    verdict, 75 stopped by a signal and resumable, 130 Ctrl-C and resumable.

    Example: ganlab run recipes/wgan_gp.toml --set gradient_penalty.weight=5 --seed 1
    """
    from ganlab import session
    from ganlab.recipe import load_recipe, resolved

    if resumed and name:
        raise RecipeError("--name has no effect with --resume: the run has its folder already")
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    loaded = load_recipe(recipe, overrides)
    limits = session.Limits(max_iterations, max_time)
    if dry_run:
        from ganlab.device import pick_device
        from ganlab.engine import assemble

        assemble(loaded, pick_device(device))
        click.echo(resolved(loaded, copied=False), nl=False)
        _next(_run_command(recipe, overrides))
    elif resumed:
        session.check_same_recipe(loaded, resumed)
        _report(*session.resume(resumed, device, limits))
    else:
        _report(*session.start(loaded, device, limits, parent, name))


@main.command()
@click.argument("run_folder", metavar="RUN")
@device_option
@click.option(
    "--max-iterations", type=click.IntRange(min=1), metavar="N", help="Stop after iteration N."
)
@click.option("--max-time", type=Duration(), help="Stop after 90s, 3m, 1.5h.")
def resume(
    run_folder: str, device: str, max_iterations: int | None, max_time: float | None
) -> None:
    """Continue a run that was stopped or killed, bit for bit as if it had not been.

    Example: ganlab resume runs/wgan_gp-1
    """
    from ganlab import session

    _report(*session.resume(run_folder, device, session.Limits(max_iterations, max_time)))


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `run`.")
@device_option
def check(recipe: Path, overrides: tuple[str, ...], device: str) -> None:
    """Find everything that can be wrong before any training, with one tiny real step.

    Example: ganlab check recipes/wgan_gp.toml
    """
    from ganlab.check import check_recipe

    for line in check_recipe(recipe, overrides, device):
        click.echo(line)
    _next(_run_command(recipe, overrides))


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there is a difference.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def diff(a: str, b: str, exit_code: bool, as_json: bool) -> None:
    """What differs between two recipes or runs: values, plugins, code, versions.

    Defaults count, so a value that one states and the other leaves at the same default is none.

    Example: ganlab diff recipes/wgan_gp.toml runs/wgan_gp-1
    """
    from dataclasses import asdict

    from ganlab.difference import check_two, difference

    found = difference(*check_two(a, b))
    if as_json:
        click.echo(json.dumps([asdict(change) for change in found], indent=2))
    else:
        for change in found:
            sign = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
            values = [value for value in (change.a, change.b) if value is not None]
            click.echo(f"{sign} {change.key}: {' -> '.join(values)}")
        if not found:
            click.echo("no difference")
        _next(f"ganlab compare {a} {b}")
    sys.exit(1 if exit_code and found else 0)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("key", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `run`.")
@click.option("--cost/--no-cost", default=True, help="Time a few iterations, or do not.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def explain(
    recipe: Path,
    key: str | None,
    overrides: tuple[str, ...],
    cost: bool,
    device: str,
    as_json: bool,
) -> None:
    """Every value of a recipe with where it came from, and what the run will take.

    With a KEY, such as gradient_penalty.weight, that value, what it means and its limits.

    Example: ganlab explain recipes/r3gan.toml adam
    """
    from ganlab.explain import explain_recipe, show

    found = explain_recipe(recipe, overrides, key, device, cost)
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        show(found)
        _next(_run_command(recipe, overrides))


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `run`.")
@click.option(
    "--iteration",
    "iterations",
    multiple=True,
    type=click.IntRange(min=0),
    help="As of this one, counted from 0; repeatable. Else the first and the last.",
)
@device_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def trace(
    recipe: Path,
    overrides: tuple[str, ...],
    iterations: tuple[int, ...],
    device: str,
    as_json: bool,
) -> None:
    """Which plugin runs at which hook in one iteration: order, shapes, dtypes, milliseconds.

    What is called inside is indented; ~ marks a plugin that changes what the others answered, and
    its time is its own part.

    Example: ganlab trace recipes/wgan_gp.toml --iteration 1200
    """
    from dataclasses import asdict

    from ganlab.trace import lines, trace_recipe

    found = trace_recipe(recipe, overrides, device, iterations)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            for line in lines(one):
                click.echo(line)
        _next(_run_command(recipe, overrides))


seeds_option = click.option("--seeds", default="0..4", show_default=True, help="0..4, or 0,2,5.")
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), help="Runs at a time; one a CUDA device, else one."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `run`, in every recipe."
)
figure_option = click.option(
    "--figure", "figures", multiple=True, help="An evaluation figure to compare; may be repeated."
)
page_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The page; else beside the runs."
)
plan_option = click.option(
    "--plan", "only_plan", is_flag=True, help="Say what would be run and its cost; run nothing."
)


@main.command()
@click.argument("arms", nargs=-1, required=True, metavar="RECIPE_OR_RUN...")
@seeds_option
@set_option
@figure_option
@jobs_option
@device_option
@runs_option
@page_option
@plan_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def compare(arms: tuple[str, ...], **options: Any) -> None:
    """Compare recipes, or runs, on the same crops, noise and seeds, with intervals.

    The first is the baseline. Each recipe is run once a seed; runs that exist are used, so an
    interrupted comparison continues, and one more seed costs one more run a recipe. Prints a
    table and writes one page.

    Example: ganlab compare recipes/wgan_gp.toml recipes/r3gan.toml --seeds 0..4
    """
    from ganlab.compare import compare_arms

    _compared(compare_arms(arms, options), options["as_json"])


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--without", multiple=True, metavar="PLUGIN", help="Leave out this one; repeatable.")
@click.option(
    "--vary", multiple=True, metavar="KEY=V1,V2", help="Set an option to each of these; repeatable."
)
@seeds_option
@set_option
@figure_option
@jobs_option
@device_option
@runs_option
@page_option
@plan_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def ablate(recipe: Path, **options: Any) -> None:
    """Leave out each plugin in turn, or vary options, and say what that changes.

    With neither --without nor --vary, every plugin that can be left out is. The differences are
    to the whole recipe, paired by seed.

    Example: ganlab ablate recipes/wgan_gp.toml --seeds 0..2 --plan
    """
    from ganlab.ablate import ablate_recipe

    _compared(ablate_recipe(recipe, options), options["as_json"])


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The page; else report.html in the run."
)
def report(run_folder: str, output: Path | None) -> None:
    """Write the page of one run: scores, curves, gradients, health, pictures, environment.

    It is one file without scripts or pictures from elsewhere. A run writes it at each evaluation.

    Example: ganlab report runs/wgan_gp-1
    """
    from ganlab.report import report_run

    page = report_run(run_folder, output)
    click.echo(f"page: {page}")
    _next(f"ganlab compare {run_folder} ANOTHER_RUN")


@main.command()
@click.argument("name", required=False)
@click.option("--hook", help="Only plugins that implement this hook.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def plugins(name: str | None, hook: str | None, as_json: bool) -> None:
    """List the installed plugins, or show one: options, defaults, paper, hooks.

    Example: ganlab plugins gradient_penalty
    """
    from ganlab import describe

    found = describe.describe_plugins(name, hook)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        describe.show(found, whole=name is not None)
        _next("ganlab plugins gradient_penalty" if name is None else "ganlab plugins")


@main.command()
@runs_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def runs(parent: Path, as_json: bool) -> None:
    """List the runs under a folder, with how they ended and their scores."""
    from ganlab import describe

    found = describe.describe_runs(parent)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        describe.show_runs(found, parent)
        _next(f"ganlab eval {found[-1]['run']} --data FOLDER" if found else
              "ganlab run recipes/wgan_gp.toml")  # fmt: skip


@main.command("eval")
@click.argument("run_folder", metavar="RUN")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A folder of HR images."
)
@weights_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def evaluate(run_folder: str, data: Path, weights: str, device: str, as_json: bool) -> None:
    """Score a run's generator on a folder of images, bicubic beside it.

    The images are degraded as in training. PSNR and SSIM on the Y channel (BT.601, borders of
    `scale` pixels shaved) and in RGB; LR-consistency; share of fine detail.

    Example: ganlab eval runs/wgan_gp-1 --data Set5
    """
    from ganlab.apply import evaluate_folder, show_scores

    rows = evaluate_folder(run_folder, data, weights, device)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        show_scores(rows)
        _next(f"ganlab upscale {run_folder} IMAGE")


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="upscaled",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the PNG files; none is overwritten.",
)
@click.option(
    "--tile",
    type=click.IntRange(min=64),
    default=256,
    show_default=True,
    help="Side of the tiles, in pixels of the image given; less needs less memory.",
)
@weights_option
@device_option
def upscale(
    run_folder: str, images: tuple[Path, ...], output: Path, tile: int, weights: str, device: str
) -> None:
    """Enlarge photographs with a run's generator: any size, tiled without seams, alpha kept.

    Example: ganlab upscale runs/wgan_gp-1 photo.jpg
    """
    from ganlab.apply import upscale_files

    for line in upscale_files(run_folder, images, output, tile, weights, device):
        click.echo(line)
    _next(f"ganlab eval {run_folder} --data FOLDER")


def _report(folder: Any, code: int) -> None:
    """End a run: what came out, and what to type next."""
    from ganlab import session

    click.echo(session.summary(folder))
    resumable = code in (session.SIGTERMED, session.INTERRUPTED)
    if resumable or folder.read_status()["state"] == "stopped":
        _next(f"ganlab resume {folder.path}")
    elif code == session.DONE:
        enlarges = session.enlarges(folder)
        _next(f"ganlab upscale {folder.path} IMAGE" if enlarges else "ganlab runs")
    elif code == session.DIVERGED:
        _next(f"ganlab check {folder.path / 'recipe.toml'}")
    sys.exit(code)


def _compared(outcome: Any, as_json: bool) -> None:
    """End a comparison: its tables, or its plan when nothing was to be run."""
    if outcome is None:
        return
    comparison, page = outcome
    if as_json:
        from ganlab.report.wording import as_data

        click.echo(json.dumps(as_data(comparison) | {"page": str(page)}, indent=2))
    else:
        from ganlab.report.text import print_comparison

        print_comparison(comparison)
        click.echo(f"page: {page}")
    if comparison.arms:
        _next(f"ganlab report {comparison.arms[-1].runs[0].folder.path}")
    # a run that failed leaves its arm without a figure, and the work undone
    sys.exit(1 if any(run.state == "failed" for arm in comparison.arms for run in arm.runs) else 0)


def _run_command(recipe: Path, overrides: tuple[str, ...]) -> str:
    return shlex.join(["ganlab", "run", str(recipe), *(p for o in overrides for p in ("--set", o))])


def _next(command: str) -> None:
    click.echo(f"next: {command}", err=True)
