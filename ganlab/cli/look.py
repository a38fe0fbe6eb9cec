"""Commands that look: `diff`, `explain`, `trace`, `bench`, `schema`, `runs`, ..."""

import sys
from pathlib import Path

import click

from ganlab.cli.options import (
    Duration,
    RecipeFile,
    RecipeOrRun,
    change_options,
    device_option,
    json_option,
    next_is,
    print_json,
    run_argument,
    run_command,
    runs_option,
    trust_code_option,
)
from ganlab.errors import RecipeError


@click.command()
@click.argument("a", type=RecipeOrRun())
@click.argument("b", type=RecipeOrRun())
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there is a difference.")
@trust_code_option
@json_option
def diff(a: Path, b: Path, exit_code: bool, as_json: bool) -> None:
    """List the differences between two recipes or runs: values, plugins and their code.

    Between two runs, the versions, the device and the code of ganlab are compared too.

    Defaults count: a value that one recipe sets and the other has by default is no difference.

    Example: ganlab diff wgan_gp runs/wgan_gp-1
    """
    from dataclasses import asdict

    from ganlab.compare.comparison import can_be_compared
    from ganlab.compare.difference import check_two, difference

    found = difference(*check_two(a, b))
    if as_json:
        print_json([asdict(change) for change in found])
    else:
        for change in found:
            sign = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
            values = [value for value in (change.a, change.b) if value is not None]
            click.echo(f"{sign} {change.key}: {' -> '.join(values)}")
        if not found:
            click.echo("no difference")
        if can_be_compared([a, b]):
            next_is("compare", a, b)
    sys.exit(1 if exit_code and found else 0)


@click.command()
@click.argument("recipe", type=RecipeFile())
@click.argument("key", required=False)
@change_options
@click.option("--cost/--no-cost", default=True, help="Whether to time a few iterations.")
@device_option
@trust_code_option
@json_option
def explain(
    recipe: Path,
    key: str | None,
    overrides: tuple[str, ...],
    cost: bool,
    device: str,
    as_json: bool,
) -> None:
    """Show every value of a recipe and its origin, and the cost of the run.

    With a KEY, such as gradient_penalty.weight: show that value, its meaning and its limits.

    Example: ganlab explain r3gan adam
    """
    from ganlab.commands.explain import explain_recipe, show

    found = explain_recipe(recipe, overrides, key, device, cost)
    if as_json:
        print_json(found)
    else:
        show(found)
        next_is(*run_command())


@click.command()
@click.argument("recipe", type=RecipeFile())
@change_options
@click.option(
    "--iteration",
    "iterations",
    multiple=True,
    type=click.IntRange(min=0),
    help="Trace this one, counted from 0; repeatable. Default: the first and the last.",
)
@device_option
@trust_code_option
@json_option
def trace(
    recipe: Path,
    overrides: tuple[str, ...],
    iterations: tuple[int, ...],
    device: str,
    as_json: bool,
) -> None:
    """Show which plugin runs at which hook in one iteration: order, shapes, dtypes, milliseconds.

    A call inside another call is indented. ~ marks a plugin that changes the results of the other
    plugins; its time does not include theirs.

    Example: ganlab trace wgan_gp --iteration 1200
    """
    from dataclasses import asdict

    from ganlab.commands.trace import lines, trace_recipe

    found = trace_recipe(recipe, overrides, device, iterations)
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            for line in lines(one):
                click.echo(line)
        next_is(*run_command())


@click.command()
@click.argument("recipe", type=RecipeFile())
@change_options
@device_option
@click.option(
    "--time",
    "seconds",
    type=Duration(),
    default="5s",
    show_default=True,
    help="How long to time; at least three iterations.",
)
@click.option("--vs", type=click.Choice(["plain"]), help="Also time a bare loop of these networks.")
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a Chrome trace of three iterations, for chrome://tracing or Perfetto.",
)
@click.option("--fit", is_flag=True, help="Find the largest batch size, and time nothing.")
@click.option(
    "--cards", is_flag=True, help="Estimate the memory on CUDA, without a GPU; time nothing."
)
@trust_code_option
@json_option
def bench(
    recipe: Path,
    overrides: tuple[str, ...],
    device: str,
    seconds: float,
    vs: str | None,
    trace_file: Path | None,
    fit: bool,
    cards: bool,
    as_json: bool,
) -> None:
    """Measure how fast a recipe runs here, what takes the time, and how fast it could be.

    Prints milliseconds by phase, plugin and operation, and counts FLOPs and bytes, which are
    compared with the machine's measured ceilings. Trains for some seconds on the recipe's last
    iterations; stores nothing but the file of --trace.

    Example: ganlab bench wgan_gp --vs plain
    """
    if (fit or cards) and (vs or trace_file or (fit and cards)):
        one, others = ("--fit", "--cards, ") if fit else ("--cards", "")
        raise RecipeError(f"{one} measures no time; leave out {others}--vs and --trace")
    if fit:
        _fit(recipe, overrides, device, as_json)
        return
    if cards:
        _cards(recipe, overrides, as_json)
        return
    from ganlab.bench import bench_recipe
    from ganlab.bench.text import show

    figures = bench_recipe(recipe, overrides, device, seconds, vs == "plain", trace_file)
    if as_json:
        print_json(figures)
    else:
        show(figures)
        next_is(*run_command())


def _fit(recipe: Path, overrides: tuple[str, ...], device: str, as_json: bool) -> None:
    from dataclasses import asdict

    from ganlab.bench.fit import largest_batch
    from ganlab.bench.text import show_fit

    found = largest_batch(recipe, overrides, device)
    if as_json:
        print_json(asdict(found))
    else:
        show_fit(found)
        next_is(*run_command(f"batch_size={found.batch_size}"))


def _cards(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    from dataclasses import asdict

    from ganlab.bench.cards import need_on_cuda
    from ganlab.bench.text import show_need

    need = need_on_cuda(recipe, overrides)
    if as_json:
        print_json(asdict(need) | {"whole": need.whole, "fits": need.cards})
    else:
        show_need(need)
        next_is(*run_command())


@click.command()
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...", type=RecipeFile())
@click.option("--write", is_flag=True, help="Write the files that editors read; print nothing.")
def schema(recipes: tuple[Path, ...], write: bool) -> None:
    """Print the JSON Schema of a recipe: the settings, and the options of all installed plugins.

    With --write: put it into .ganlab/recipe.schema.json here, with tombi.toml and .taplo.toml, by
    which editors know which files are recipes. Each RECIPE gets a first line that names the schema,
    for one that lies elsewhere than in recipes/.

    Example: ganlab schema --write my_idea.toml
    """
    from ganlab.commands import describe, schema

    for fault in describe.broken_plugins().values():
        click.echo(f"left out: {fault}", err=True)
    if recipes and not write:
        raise RecipeError("a RECIPE is changed only with --write: its first line names the schema")
    if not write:
        print_json(schema.recipe_schema())
        return
    for recipe in recipes:  # first, since one of them may be wrong
        schema.name_schema(recipe, Path())
    written, kept = schema.write_editor_files(Path())
    for file in (*written, *recipes):
        click.echo(f"wrote {file}")
    for file in kept:
        click.echo(f"{file} is kept as it is; it may need a rule for {schema.FILE}", err=True)


@click.command()
@runs_option
@click.option("--html", is_flag=True, help="Write a page with small pictures: index.html there.")
@json_option
def runs(parent: Path, html: bool, as_json: bool) -> None:
    """List the runs under a folder, with how they ended and their scores.

    Example: ganlab runs --html
    """
    from ganlab.commands import describe

    if html and as_json:
        raise RecipeError("--html writes a page, and --json prints a list; leave out one of them")
    found = describe.describe_runs(parent)
    if html and found:
        from ganlab.report import write_index

        click.echo(f"page: {write_index(parent, found)}")
    elif as_json:
        print_json(found)
    else:
        describe.show_runs(found, parent)
        next_is(*(describe.next_for(found[-1]["run"]) if found else ("run", "RECIPE")))


@click.command()
@run_argument
def watch(run_folder: Path) -> None:
    """Show a run in the terminal while it trains: figures, and a curve of each loss.

    Each new strip of pictures is shown too where the terminal has sixel or kitty graphics. It ends
    when the run ends, or at Ctrl-C, which does not stop the run. Without a terminal, prints a line
    at each evaluation. Of a run that has ended, shows the last figures.

    Example: ganlab watch runs/wgan_gp-1
    """
    from ganlab.commands.describe import next_for
    from ganlab.commands.watch import watch as watch_run
    from ganlab.runs.folder import open_run_folder
    from ganlab.terminal import Terminal

    watch_run(open_run_folder(run_folder), Terminal(width=None if sys.stdout.isatty() else 120))
    next_is(*next_for(str(run_folder)))


@click.command()
@click.option("--device", default="auto", show_default=True, help="The device to try; auto: all.")
@json_option
def doctor(device: str, as_json: bool) -> None:
    """Say what a report of a fault needs: versions, machine, devices, and whether they work.

    Trains a tiny game for a moment on each device, or on that of --device. On CUDA also with
    captured steps, deterministic, and in bfloat16. Nothing is stored; home folder and user name are
    left out. Exit code 1 when the device of --device, or the one that auto takes, does not work.

    Example: ganlab doctor
    """
    from ganlab.commands.doctor import examine, show

    found = examine(device)
    if as_json:
        print_json(found)
    else:
        show(found)
    sys.exit(0 if found["works"] else 1)
