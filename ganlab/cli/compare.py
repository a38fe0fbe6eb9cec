"""`ganlab compare`, `ablate`, `bisect` and `report`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ganlab.cli.options import (
    EXECUTOR_NAME,
    EXECUTOR_OPTION,
    OVERRIDE,
    RECIPE_PLUGIN,
    FiniteRange,
    RecipeFile,
    RecipeOrRun,
    TomlFile,
    change_options,
    check_device,
    data_option,
    json_option,
    next_is,
    print_found,
    print_json,
    run_argument,
    runs_option,
    set_option,
    trust_code_option,
)

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Runs at a time; default: one on each CUDA device that --device allows, else one. "
    "Another executor may take more.",
)


def _check_device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """Refuse a device that is not there, if runs are made here; another machine may have it."""
    is_here = context.params["executor"] == "local"
    return (check_device(context, parameter, name) if is_here else None) or name


executor_options = (
    click.option(
        "--executor",
        is_eager=True,  # before --device is checked
        type=EXECUTOR_NAME,
        default="local",
        show_default=True,
        help="What carries out the runs: this machine, or another one of the executors installed.",
    ),
    click.option(
        "--executor-option",
        "executor_options",
        multiple=True,
        type=EXECUTOR_OPTION,
        metavar="KEY=VALUE",
        help="An option of the executor; may be repeated.",
    ),
    click.option(
        "--on-interrupt",
        type=click.Choice(["save", "finish"]),
        default="save",
        show_default=True,
        help="At Ctrl-C: save the runs in progress and end, or let them go on to their end.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=_check_device,
        help="auto (CUDA if there is a device), cpu, cuda, cuda:N or mps.",
    ),
)
plan_option = click.option(
    "--plan", "only_plan", is_flag=True, help="Print the runs to make and their cost; run nothing."
)
COMPARISON_OPTIONS = (
    click.option("--seeds", default="0..4", show_default=True, help="As 0..4, or 0,2,5."),
    click.option(
        "--figure",
        "figures",
        multiple=True,
        help="An evaluation figure to compare; may be repeated.",
    ),
    jobs_option,
    *executor_options,
    runs_option,
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="The page; default: in the runs folder.",
    ),
    click.option(
        "--accept-data",
        is_flag=True,
        help="Compare also what was made on different data under the same options.",
    ),
    plan_option,
    click.option(
        "--effect",
        type=FiniteRange(min=0, min_open=True),
        help="With --plan: how many seeds show a difference of this size, in the figure's unit.",
    ),
    trust_code_option,
    json_option,
)


def comparison_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return _with(COMPARISON_OPTIONS, command)


def placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --jobs, --executor with its options, --on-interrupt, --device and --runs."""
    return _with((jobs_option, *executor_options, runs_option), command)


def _with(options: tuple[Callable[..., Any], ...], command: Callable[..., Any]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("arms", nargs=-1, required=True, metavar="RECIPE_OR_RUN...", type=RecipeOrRun())
@set_option
@data_option
@comparison_options
def compare(arms: tuple[Path, ...], **options: Any) -> None:
    """Compare recipes, or runs, on the same crops, noise and seeds, with intervals.

    The first is the baseline. Each recipe is run once per seed. Runs that exist are used: an
    interrupted comparison continues, and one more seed costs one more run per recipe. Prints a
    table and writes one page. --set and --data hold for every recipe. Exit code 1 when a run
    diverged or failed: it has no figures.

    Example: ganlab compare wgan_gp r3gan --seeds 0..4
    """
    from ganlab.compare.comparison import compare_arms

    _compared(compare_arms(arms, options), options["as_json"])


@click.command()
@click.argument("recipe", type=RecipeFile())
@change_options
@click.option(
    "--without",
    multiple=True,
    type=RECIPE_PLUGIN,
    metavar="PLUGIN",
    help="Leave out this plugin; repeatable.",
)
@click.option(
    "--vary",
    multiple=True,
    type=OVERRIDE,
    metavar="KEY=V1,V2",
    help="Set an option to each value; repeatable.",
)
@comparison_options
def ablate(recipe: Path, **options: Any) -> None:
    """Leave out each plugin in turn, or vary options, and report what that changes.

    With neither --without nor --vary, every plugin that can be left out is left out once. Each
    variant is compared with the whole recipe, paired by seed. Exit code 1 when a run diverged or
    failed: it has no figures.

    Example: ganlab ablate wgan_gp --seeds 0..2 --plan
    """
    from ganlab.compare.ablation import ablate_recipe

    _compared(ablate_recipe(recipe, options), options["as_json"])


@click.command()
@click.argument("good", metavar="GOOD", type=RecipeOrRun())
@click.argument("bad", metavar="BAD", type=RecipeOrRun())
@click.option("--seeds", default="0..2", show_default=True, help="As 0..2, or 0,2,5; at least two.")
@set_option
@data_option
@click.option("--figure", help="The evaluation figure; default: the recipe's best_metric.")
@placement_options
@plan_option
@trust_code_option
@json_option
def bisect(good: Path, bad: Path, as_json: bool, **options: Any) -> None:
    """Find the change between two recipes or runs that makes a figure worse.

    Applies the changes from GOOD to BAD step by step, halving what is left, with paired seeds.
    Then tries the change that was found alone. Runs that exist are used, so the same command
    continues an interrupted search. Exit code 1 when BAD is not shown to be worse than GOOD.

    Example: ganlab bisect runs/good-1 recipe.toml --seeds 0..2 --plan
    """
    from ganlab.compare.bisection import as_data, bisect_recipes, lines

    found = bisect_recipes(good, bad, options)
    if found is None:
        return
    print_found(found, as_json, as_data, lines)
    sys.exit(0 if found.found else 1)


@click.command()
@click.argument("recipe", type=RecipeFile())
@click.argument("space", metavar="SPACE.toml", type=TomlFile())
@change_options
@click.option("--name", help="Name of the sweep's folder in the runs folder.")
@placement_options
@plan_option
@trust_code_option
@json_option
def sweep(recipe: Path, space: Path, as_json: bool, **options: Any) -> None:
    """Search for good values of a recipe's options: many trials, each a run or one per seed.

    SPACE.toml says which options vary and how far, how many trials there are, and how they are
    chosen. All is checked against the recipe before anything runs. The same command continues a
    sweep that was interrupted. Prints the trials, the best first, and writes a page and the best
    trial's recipe. It needs ganlab[sweep]. Exit code 1 when a run failed.

    Example: ganlab sweep wgan_gp space.toml --plan
    """
    from ganlab.sweep.space import require_optuna

    require_optuna()
    from ganlab.sweep.result import as_data, check_done, print_sweep
    from ganlab.sweep.sweep import sweep_recipe

    found = sweep_recipe(recipe, space, options)
    if found is None:
        return
    if as_json:
        print_json(as_data(found))
    else:
        print_sweep(found)
        click.echo(f"page: {found.page}")
    check_done(found)
    if not as_json:
        click.echo(f"recipe of the best trial: {found.recipe}")
    click.echo(found.caveat, err=True)
    next_is(*found.longer)
    next_is(*found.command)
    if found.failed:
        click.echo(f"failed: {len(found.failed)} trials; the same command tries again", err=True)
        sys.exit(1)


@click.command()
@run_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The page; default: report.html in the run.",
)
def report(run_folder: Path, output: Path | None) -> None:
    """Write the page of one run: scores, curves, gradients, health, pictures, environment.

    The page is one file; it loads no scripts or pictures from elsewhere. A run writes its page at
    its end, and at each evaluation unless that would take more than a hundredth of its time.

    Example: ganlab report runs/wgan_gp-1
    """
    from ganlab.report import report_run

    page = report_run(run_folder, output)
    click.echo(f"page: {page}")
    next_is("compare", run_folder, "ANOTHER_RUN")


def _compared(outcome: Any, as_json: bool) -> None:
    """Print the tables of a comparison and exit; of a plan alone, how many seeds it needs."""
    from ganlab.compare.comparison import check_compared

    if outcome is None:
        return
    if not isinstance(outcome, tuple):
        _needed(outcome, as_json)
        return
    comparison, page = outcome
    if as_json:
        from ganlab.report.wording import as_data

        print_json(as_data(comparison) | {"page": str(page)})
    else:
        from ganlab.report.text import print_comparison

        print_comparison(comparison)
        click.echo(f"page: {page}")
    if comparison.arms:
        next_is("report", comparison.arms[-1].runs[0].folder.path)
    # they leave their arm without figures, so the command has failed too
    if lost := [run for arm in comparison.arms for run in arm.runs if not run.counts]:
        named = ", ".join(f"{run.folder.path.name} ({run.state})" for run in lost)
        click.echo(f"without figures: {named}; exit code 1", err=True)
        sys.exit(1)
    check_compared(comparison)


def _needed(needs: Any, as_json: bool) -> None:
    from ganlab.compare.seeds import as_data, words_of

    print_found(needs, as_json, as_data, words_of)
