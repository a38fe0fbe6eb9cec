"""`ganlab run`, `resume`, `checkpoints` and `check`."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ganlab.cli.options import (
    OVERRIDE,
    Duration,
    RecipeFile,
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
from ganlab.errors import GanlabError, RecipeError

accept_data_option = click.option(
    "--accept-data",
    is_flag=True,
    help="Continue a run although its data have changed; the run folder and the report say so.",
)
max_iterations_option = click.option(
    "--max-iterations",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after iteration N; resumable. Schedules stay those of the whole run.",
)
gpus_option = click.option(
    "--gpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train on N GPUs of this machine, by as many processes; with --device cpu on the CPU.",
)
max_time_option = click.option(
    "--max-time", type=Duration(), help="Stop after this time, such as 90s, 3m, 1.5h; resumable."
)


@click.command()
@click.argument("recipe", type=RecipeFile())
@change_options
@click.option("--seed", type=click.IntRange(min=0), help="Override the recipe's seed.")
@device_option
@click.option("--name", help="Name of the run folder; default: the recipe's name and a number.")
@runs_option
@max_iterations_option
@max_time_option
@gpus_option
@click.option(
    "--resume",
    "resumed",
    metavar="RUN",
    help="Continue this run, which this recipe must have made.",
)
@accept_data_option
@click.option(
    "--continue",
    "continues",
    is_flag=True,
    help="Continue the run that this command began before; start it if there is none.",
)
@trust_code_option
@click.option(
    "--dry-run", is_flag=True, help="Build the run, print the recipe resolved, and do not train."
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
    gpus: int | None,
    resumed: str | None,
    continues: bool,
    accept_data: bool,
    dry_run: bool,
) -> None:
    """Train a recipe.

    Writes runs/<recipe>-<n>/: weights, sample pictures, stats.jsonl, checkpoints, the resolved
    recipe. Exit codes: 0 done, 1 failed, 2 wrong recipe or usage, 3 diverged, 4 stopped by a
    verdict, 75 stopped by a signal and resumable, 130 Ctrl-C and resumable.

    With --data a run learns from your own images. Some of them are held out and named; the
    generator is scored on these.

    With --continue the same command may be given again and again. The run is that of --name, or
    without it the newest runs/<recipe>-<n> of this very recipe. When it has ended, nothing is
    trained, and the exit code is that of the run.

    Example: ganlab run wgan_gp --set gradient_penalty.weight=5 --seed 1
    """
    from ganlab import session
    from ganlab.limits import Limits
    from ganlab.recipe.model import load_recipe

    _refuse_idle(resumed, name, continues, accept_data)
    seeded = [] if seed is None else [f"seed={seed}"]
    led = not dry_run and _led(gpus, device)
    loaded = load_recipe(recipe, (*overrides, *seeded))
    if led:
        _take_part(loaded, device)
    limits = Limits(max_iterations, max_time)
    if dry_run:
        _show_resolved(loaded, device)
        next_is(*run_command(*seeded))
    elif resumed:
        from ganlab.compare.again import check_same_recipe
        from ganlab.runs.reference import find_run

        begun = find_run(resumed, parent)
        check_same_recipe(loaded, begun, f"--resume {resumed}")
        _report(*session.resume(begun, device, limits, accept_data))
    elif continues:
        from ganlab.compare.again import run_or_continue

        folder, code, sentence = run_or_continue(loaded, device, limits, parent, name, accept_data)
        if sentence:
            click.echo(sentence, err=True)
        _report(folder, code)
    else:
        _report(*session.start(loaded, device, limits, parent, name))


@click.command()
@run_argument
@device_option
@max_iterations_option
@max_time_option
@gpus_option
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    metavar="N",
    help="Give the run N iterations in all; a run that is done is trained longer.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    type=OVERRIDE,
    metavar="KEY=VALUE",
    help="Change a value from here on, such as adam.learning_rate=1e-5; may be repeated.",
)
@accept_data_option
@trust_code_option
def resume(
    run_folder: Path,
    device: str,
    max_iterations: int | None,
    max_time: float | None,
    gpus: int | None,
    iterations: int | None,
    overrides: tuple[str, ...],
    accept_data: bool,
) -> None:
    """Continue a stopped or killed run, bit for bit equal to an uninterrupted one.

    On CUDA this holds if the recipe says `deterministic = true`. Otherwise the random numbers are
    the same, and the results are equal up to rounding.

    If the data have changed since the run was started, it is refused, and the images are named.

    --iterations and --set change the run's recipe from here on: its length, learning rates,
    weights, schedules and intervals, and the place of data that were moved. Its seed, plugins and
    networks stay. Each change is told in the run's changes.jsonl.

    Example: ganlab resume runs/wgan_gp-1 --iterations 40000 --set adam.learning_rate=1e-5
    """
    from ganlab import session
    from ganlab.limits import Limits

    if iterations is not None:
        overrides = (*overrides, f"iterations={iterations}")
    if _led(gpus, device):
        _take_part(None, device)
    limits = Limits(max_iterations, max_time)
    _report(*session.resume(run_folder, device, limits, accept_data, overrides))


@click.command()
@run_argument
@click.argument("iteration", type=click.IntRange(min=0), required=False)
@click.option(
    "--prune", is_flag=True, help="Delete damaged ones and those that the recipe does not keep."
)
@click.option(
    "--keep", type=click.IntRange(min=1), help="With --prune: in the place of the recipe's keep."
)
@click.option(
    "--keep-every",
    type=click.IntRange(min=0),
    help="With --prune: in the place of the recipe's keep_every; 0 keeps none for good.",
)
@json_option
def checkpoints(
    run_folder: Path,
    iteration: int | None,
    prune: bool,
    keep: int | None,
    keep_every: int | None,
    as_json: bool,
) -> None:
    """List a run's checkpoints, or show what the one of an ITERATION holds.

    Each is read whole and compared with its digest: sound or damaged.

    Example: ganlab checkpoints runs/wgan_gp-1 --prune --keep 1
    """
    from ganlab.commands import checkpoints as work

    if not prune and (keep is not None or keep_every is not None):
        raise RecipeError("--keep and --keep-every have no effect without --prune")
    if prune and iteration is not None:
        raise RecipeError("--prune has no effect on one checkpoint; leave out the iteration")
    gone = work.prune_checkpoints(run_folder, keep, keep_every) if prune else []
    if iteration is not None:
        one = work.inspect_checkpoint(run_folder, iteration)
        print_json(one) if as_json else work.show_one(one)
        return
    found = work.describe_checkpoints(run_folder)
    if as_json:
        print_json({"checkpoints": found, "deleted": gone})
        return
    for one in gone:
        click.echo(f"deleted {one['file']}")
    work.show_list(found, run_folder)
    if sound := [one["iteration"] for one in found if one["sound"]]:
        next_is("checkpoints", run_folder, sound[-1])


@click.command()
@click.argument("recipe", type=RecipeFile())
@change_options
@device_option
@trust_code_option
def check(recipe: Path, overrides: tuple[str, ...], device: str) -> None:
    """Find everything that can be wrong, before any training, with tiny real steps.

    Example: ganlab check wgan_gp
    """
    from ganlab.commands.check import check_recipe

    for line in check_recipe(recipe, overrides, device):
        click.echo(line)
    next_is(*run_command())


def _show_resolved(recipe: Any, device: str) -> None:
    """Build a run of a recipe, and print the recipe with every value."""
    from ganlab.assembly import assemble
    from ganlab.recipe.model import resolved
    from ganlab.speed.device import pick_device

    assemble(recipe, pick_device(device))
    click.echo(resolved(recipe, copied=False), nl=False)


def _refuse_idle(resumed: str | None, name: str | None, continues: bool, accepts: bool) -> None:
    """Refuse options of `run` that would have no effect beside the others."""
    if resumed and (name or continues):
        other = "--name" if name else "--continue"
        raise RecipeError(f"{other} has no effect with --resume: the run has its folder already")
    if accepts and not (resumed or continues):
        raise RecipeError(
            "--accept-data has no effect without --resume or --continue: a new run has no data yet"
        )


def _led(gpus: int | None, device: str) -> bool:
    """Whether another process leads this run; then this one is silent from now on.

    With `--gpus` the command is run again as several processes, and this one exits with their code.
    """
    from ganlab.ranks.many import follows, is_several

    if follows():
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # to the end
        return True
    if gpus and gpus > 1 and not is_several():
        from ganlab.ranks.launching import check_gpus, launch

        check_gpus(gpus, device)
        sys.exit(launch(gpus, sys.argv[1:]))
    return False


def _take_part(recipe: Any, device: str) -> None:
    """Take part in a run that another process leads, and exit."""
    from ganlab import session
    from ganlab.ranks.many import telling_the_leader

    with suppress(GanlabError), telling_the_leader():  # the process that leads tells it
        session.take_part(recipe, device)
    sys.exit()


def _report(folder: Any, code: int) -> None:
    """Print the result of a run and the next command to type, and exit."""
    from ganlab.ending import DIVERGED, DONE
    from ganlab.runs.folder import enlarges
    from ganlab.stopping import INTERRUPTED, SIGTERMED
    from ganlab.words import summary

    click.echo(summary(folder))
    resumable = code in (SIGTERMED, INTERRUPTED)
    if resumable or folder.read_status().get("state") == "stopped":
        next_is("resume", folder.path)
    elif code == DONE and enlarges(folder):
        next_is("upscale", folder.path, "IMAGE")
    elif code == DONE:
        next_is("report", folder.path)
    elif code == DIVERGED:
        next_is("check", folder.recipe)
    sys.exit(code)
