"""What the commands do, for scripts and notebooks: `from ganlab import api`.

    from ganlab import api

    recipe = api.load_recipe("recipes/wgan_gp.toml", {"iterations": 400, "seed": 1})
    run = api.run(recipe)
    files = api.upscale(run, "photo.jpg")
    comparison = api.compare("recipes/wgan_gp.toml", "recipes/r3gan.toml", seeds=range(3))

The functions have the names of the commands, and call the same code. What would end a command with
a message is raised as `GanlabError`; a wrong recipe or argument as `RecipeError`, which is one.
Ctrl-C raises KeyboardInterrupt, and SIGTERM `Stopped`, which `except Exception` does not catch; a
run in progress is saved before. Progress goes to stderr.

They are in a module of their own because `ganlab.Run` is what a plugin sees of a run at work, and
`ganlab.run` and `ganlab.compare` are modules.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomlkit
from tomlkit.exceptions import ConvertError

from ganlab import session
from ganlab.commands.before_after import page_in
from ganlab.commands.export import Exported, export_generator
from ganlab.commands.progress import shown_bar
from ganlab.commands.upscale import upscale_files
from ganlab.commands.upscale_jobs import Encoding, Format, jobs_of
from ganlab.compare.comparison import check_compared, compare_arms
from ganlab.compare.crew import Interrupted
from ganlab.errors import GanlabError, RecipeError
from ganlab.export.formats import FORMATS
from ganlab.failures.telling import telling
from ganlab.hub.files import require_library
from ganlab.limits import Limits
from ganlab.recipe import model
from ganlab.recipe.model import Recipe
from ganlab.recipe.own_data import on_folder
from ganlab.recipe.trust import trusting_code
from ganlab.report import report_run
from ganlab.report.display import of_comparison, of_run
from ganlab.report.model import Comparison
from ganlab.report.wording import as_data
from ganlab.runs.records import Evaluation, RunRecord, Series, read_run
from ganlab.runs.reference import find_recipe_or_run, find_run
from ganlab.stopping import INTERRUPTED, SIGTERMED, Stopped, heard, heeding

if TYPE_CHECKING:
    from ganlab.hub.generator import Generator as Generator

__all__ = [
    "Compared",
    "Comparison",
    "Evaluation",
    "Exported",
    "GanlabError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunRecord",
    "Series",
    "Swept",
    "compare",
    "export",
    "load_recipe",
    "report",
    "resume",
    "run",
    "sweep",
    "upscale",
]

Overrides = Mapping[str, Any] | Iterable[str]
"""What `--set` gives on the command line: {"gradient_penalty.weight": 5.0}, or ["seed=1"]."""
FileName = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Run:
    """A run, finished or not, as its folder has it at the moment when it is opened.

    In a notebook it shows itself: state, scores beside bicubic's, a crop, curves.
    """

    record: RunRecord
    """All that its folder says: settings, losses, evaluations, verdicts, crops."""

    @classmethod
    def open(cls, run: FileName) -> "Run":
        """Read a run.

        :param run: as the commands take it: a path, a name, the beginning of a name, or "@last".
        :raises RecipeError: when it is not a run, or its recipe cannot be read.
        """
        return cls(read_run(_found(run)))

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.record.folder.path

    @property
    def stats(self) -> Path:
        """Its stats.jsonl: `pandas.read_json(run.stats, lines=True)`."""
        return self.record.folder.stats

    @property
    def state(self) -> str:
        """How it ended: done, stopped, diverged, failed or killed; or running."""
        return self.record.state

    @property
    def iteration(self) -> int:
        """How many iterations are completed."""
        return int(self.record.status.get("iteration", 0))

    @property
    def series(self) -> dict[str, Series]:
        """Losses and other logged figures over iterations, by their names in stats.jsonl."""
        return self.record.series

    @property
    def scores(self) -> dict[str, float]:
        """The figures of the last evaluation; empty before the first."""
        return self.record.last.figures if self.record.last else {}

    @property
    def bicubic(self) -> dict[str, float]:
        """The same figures of bicubic enlargement."""
        return dict(self.record.status.get("bicubic") or {})

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.state} at iteration {self.iteration:,}>"

    def _repr_html_(self) -> str:
        return of_run(self.record)


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of a comparison. In a notebook it shows its first table."""

    comparison: Comparison
    """Arms with their runs, tables of intervals and differences, costs, scores of each image."""
    page: Path
    """The page that was written."""

    @property
    def lost(self) -> list[Run]:
        """The runs that diverged or failed, and so have no figures."""
        runs = (run for arm in self.comparison.arms for run in arm.runs)
        return [Run(run) for run in runs if not run.counts]

    def as_data(self) -> dict[str, Any]:
        """What `ganlab compare --json` prints."""
        return as_data(self.comparison) | {"page": str(self.page)}

    def __repr__(self) -> str:
        return f"<Compared {self.comparison.title}: {self.page}>"

    def _repr_html_(self) -> str:
        return of_comparison(self.comparison, self.page)


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep."""

    best: Run
    """The first run of the best trial. Its figure was chosen, so chance has helped it."""
    recipe: Path
    """The recipe of the best trial as a file."""
    page: Path
    data: dict[str, Any]
    """What `ganlab sweep --json` prints: "trials" with their values, states and figures."""

    def __repr__(self) -> str:
        return f"<Swept {len(self.data['trials'])} trials: {self.page}>"


def load_recipe(
    recipe: FileName, overrides: Overrides = (), *, data: FileName | None = None
) -> Recipe:
    """Read a recipe and check it; its `plugins` are built.

    :param recipe: a file, or the name of a recipe that comes with ganlab.
    :param data: a folder of images in the place of its own data, as `--data` gives it.
    :raises RecipeError: with file, line, fault and remedy.
    """
    changes = on_folder(Path(recipe), _texts(overrides), None if data is None else Path(data))
    return model.load_recipe(Path(recipe), changes)


def run(
    recipe: Recipe | FileName,
    overrides: Overrides = (),
    *,
    data: FileName | None = None,
    device: str = "auto",
    name: str | None = None,
    runs: FileName = "runs",
    max_iterations: int | None = None,
    max_seconds: float | None = None,
    trust_code: bool = False,
) -> Run:
    """Train a recipe in a new folder, as `ganlab run` does.

    :param recipe: a file or a name, or what `load_recipe` gave; training leaves that as it is.
    :param data: a folder of images in the place of the recipe's own.
    :param device: auto (CUDA if there is a device), cpu, cuda, cuda:N or mps.
    :param name: of the run folder; by default the recipe's name and a number.
    :param runs: the folder that holds the run folders.
    :param max_iterations, max_seconds: end it there; `resume` continues it.
    :param trust_code: run also plugin files of a run folder that somebody else made.
    :returns: the run. Its `state` says whether it is done, or was stopped, or diverged.
    :raises RecipeError: when the recipe cannot run; nothing is left behind.
    """
    with _as_in_a_program(trust_code):
        if not isinstance(recipe, Recipe):
            loaded = load_recipe(recipe, overrides, data=data)
        elif _texts(overrides) or data is not None:
            raise RecipeError(
                "this recipe is loaded already: give overrides and data to load_recipe"
            )
        else:
            loaded = model.unused(recipe)
        limits = Limits(max_iterations, max_seconds)
        folder, code = session.start(loaded, device, limits, Path(runs), name)
        return _ended(folder.path, code)


def resume(
    run: Run | FileName,
    overrides: Overrides = (),
    *,
    device: str = "auto",
    max_iterations: int | None = None,
    max_seconds: float | None = None,
    accept_data: bool = False,
    trust_code: bool = False,
) -> Run:
    """Continue a run from its newest sound checkpoint, as `ganlab resume` does.

    :param overrides: what shall change from here on; {"iterations": N} makes the run longer.
    :param accept_data: go on although the data have changed.
    :returns: the run as it is then; the object that was given stays as it was.
    :raises RecipeError: when the run is done, its data changed, or something may not change.
    """
    with _as_in_a_program(trust_code):
        limits = Limits(max_iterations, max_seconds)
        folder, code = session.resume(_found(run), device, limits, accept_data, _texts(overrides))
        return _ended(folder.path, code)


def upscale(
    run: Run | FileName,
    images: FileName | Iterable[FileName],
    output: FileName = "upscaled",
    *,
    weights: Literal["last", "best"] = "last",
    tile: int = 192,
    bits: Literal[8, 16] | None = None,
    format: Format = "png",
    quality: int | None = None,
    compare: bool = False,
    original: FileName | None = None,
    device: str = "auto",
    overwrite: bool = False,
    trust_code: bool = False,
) -> list[Path]:
    """Enlarge photographs and videos with a run's generator, as `ganlab upscale` does.

    :param images: a file of an image or a video, a folder of images, or several of them.
    :param output: the folder for the new files. Files that are there already are passed over.
    :param tile: side of the tiles in pixels of the input image, at least 64.
    :param bits: of each value of PNG files; by default as many as the image has.
    :param format: of pictures: png, jpeg, webp, png16, or keep: JPEG and WebP stay what they are,
        all others become PNG.
    :param quality: of JPEG and WebP, 1 to 100; by default 95.
    :param compare: also write the page compare.html into the output folder: bicubic enlargement
        beside the generator's.
    :param original: a folder of originals, by the names of the pictures, for that page.
    :returns: the new file of each image or video.
    :raises RecipeError: when two images would be written to one file.
    :raises GanlabError: after all others, when files could not be enlarged; it names each.
    """
    if tile < 64 or bits not in (None, 8, 16) or weights not in ("last", "best"):
        raise RecipeError(
            f"tile = {tile}, bits = {bits}, weights = {weights!r}: a tile has at least 64 pixels, "
            "bits are 8 or 16, and weights are 'last' or 'best'"
        )
    several = [images] if isinstance(images, str | os.PathLike) else images
    folder, encoding = Path(output), Encoding(format, quality, bits)
    with _as_in_a_program(trust_code), shown_bar() as bar:
        jobs = jobs_of(map(Path, several), folder, encoding)
        page = page_in(folder, None if original is None else Path(original), compare)
        for _ in upscale_files(
            _found(run), jobs, folder, tile, weights, device, encoding, overwrite, page, bar
        ):
            pass  # a line of text for each
    return [job.target for job in jobs]


def compare(
    *arms: Run | FileName,
    seeds: str | Iterable[int] = "0..4",
    overrides: Overrides = (),
    data: FileName | None = None,
    figures: Iterable[str] = (),
    jobs: int | None = None,
    executor: str = "local",
    executor_options: Overrides = (),
    device: str = "auto",
    runs: FileName = "runs",
    output: FileName | None = None,
    accept_data: bool = False,
    trust_code: bool = False,
) -> Compared:
    """Compare recipes, or runs, as `ganlab compare` does: paired by seed, with intervals.

    :param arms: files of recipes, or runs; the first is the baseline. Runs that exist are used.
    :param seeds: each recipe is run once for each of them.
    :param overrides, data: for every recipe, as for `load_recipe`.
    :param figures: evaluation figures to compare; by default the usual ones.
    :param jobs: runs at a time. For more than one, a script needs `if __name__ == "__main__":`,
        because each is a process of its own.
    :param executor: what carries out the runs: "local", or an executor of an installed plugin.
    :param executor_options: its options, as a dict, or as `key=value` strings.
    :param output: the page; by default in the runs folder.
    :raises RecipeError: when there is nothing to compare.
    """
    with _as_in_a_program(trust_code):
        options: dict[str, Any] = {
            "seeds": seeds if isinstance(seeds, str) else ",".join(map(str, seeds)),
            "overrides": tuple(_texts(overrides)),
            "data": None if data is None else Path(data),
            "figures": tuple(figures),
            "jobs": jobs,
            "executor": executor,
            "executor_options": tuple(_texts(executor_options)),
            "on_interrupt": "save",
            "device": device,
            "parent": Path(runs),
            "output": None if output is None else Path(output),
            "accept_data": accept_data,
            "only_plan": False,
            "effect": None,
        }
        found = [_recipe_or_run(arm) for arm in arms]
        outcome = compare_arms(found, options)
        assert isinstance(outcome, tuple)  # not of a plan alone
        check_compared(outcome[0])
        return Compared(*outcome)


def sweep(
    recipe: FileName,
    space: FileName,
    overrides: Overrides = (),
    *,
    data: FileName | None = None,
    name: str | None = None,
    jobs: int | None = None,
    executor: str = "local",
    executor_options: Overrides = (),
    device: str = "auto",
    runs: FileName = "runs",
    trust_code: bool = False,
) -> Swept:
    """Search for good values of a recipe's options, as `ganlab sweep` does.

    The same call continues a sweep that was interrupted. It needs `ganlab[sweep]`.

    :param space: the file that says which options vary, and how trials are chosen.
    :param overrides, data: for the recipe, as for `load_recipe`.
    :param name: of the sweep's folder in `runs`; by default made of both files' names.
    :param jobs, executor, executor_options: as for `compare`.
    :raises RecipeError: when the space is not one of the recipe, or optuna is not installed.
    :raises GanlabError: when no trial has a figure.
    """
    from ganlab.sweep.space import require_optuna

    require_optuna()
    from ganlab.sweep.result import as_data, check_done
    from ganlab.sweep.sweep import sweep_recipe

    with _as_in_a_program(trust_code):
        folder = None if data is None else Path(data)
        options: dict[str, Any] = {
            "overrides": on_folder(Path(recipe), _texts(overrides), folder),
            "name": name,
            "jobs": jobs,
            "executor": executor,
            "executor_options": tuple(_texts(executor_options)),
            "on_interrupt": "save",
            "device": device,
            "parent": Path(runs),
            "only_plan": False,
        }
        found = sweep_recipe(Path(recipe), Path(space), options)
        assert found  # not a plan alone
        check_done(found)
        assert found.best_run and found.recipe
        return Swept(Run.open(found.best_run), found.recipe, found.page, as_data(found))


def export(
    run: Run | FileName,
    to: Literal["safetensors", "onnx", "pt2", "ncnn"],
    output: FileName | None = None,
    *,
    weights: Literal["last", "best"] = "last",
    fp16: bool = False,
    licence: str = "",
    overwrite: bool = False,
    trust_code: bool = False,
) -> Exported:
    """Write a run's generator as a file for other programs, as `ganlab export` does.

    The file is opened again and compared with the generator on photographs.

    :param run: a run, or a .safetensors file of weights.
    :param output: the folder for the file and its model card.
    :param fp16: float16 instead of float32.
    :param licence: of the weights, as you state it, such as "apache-2.0".
    :returns: the files, the card, and how much the pictures differ.
    :raises RecipeError: when there are no weights, the generator has no such form, a package is
        missing, or a file is there already.
    :raises GanlabError: when the file gives other pictures; it is not kept then.
    """
    if to not in FORMATS or weights not in ("last", "best"):
        raise RecipeError(
            f"to = {to!r}: one of {', '.join(FORMATS)}; weights = {weights!r}: 'last' or 'best'"
        )
    with _as_in_a_program(trust_code):
        is_file = not isinstance(run, Run) and Path(run).is_file()
        source = Path(str(run)) if is_file else _found(run)
        folder = None if output is None else Path(output)
        return export_generator(source, to, folder, weights, fp16, licence, overwrite)


def report(run: Run | FileName, output: FileName | None = None) -> Path:
    """Write the page of a run, as `ganlab report` does; returns its file.

    :param output: by default report.html in the run's folder.
    """
    return report_run(_found(run), None if output is None else Path(output))


def __getattr__(name: str) -> Any:
    """`Generator`, when it is asked for: it needs ganlab[hub]."""
    if name != "Generator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_library()
    from ganlab.hub.generator import Generator

    return Generator


@contextmanager
def _as_in_a_program(trust_code: bool) -> Iterator[None]:
    """Context in which signals and errors are what a Python program expects."""
    try:
        with heeding(), telling():
            if trust_code:
                with trusting_code():
                    yield
            else:
                yield
    except (Stopped, Interrupted) as stopped:
        if stopped.exit_code == INTERRUPTED:
            raise KeyboardInterrupt(str(stopped)) from None
        raise


def _ended(path: Path, code: int) -> Run:
    """The run of a sitting; a signal that ended the sitting goes on to the program."""
    if (number := heard()) is not None and code in (INTERRUPTED, SIGTERMED):
        raise Stopped(number, f"after the run was saved; api.resume({str(path)!r}) continues it")
    return Run.open(path)


def _found(run: Run | FileName) -> Path:
    if isinstance(run, Run):
        return run.path
    return find_run(run if isinstance(run, str) else Path(run))


def _recipe_or_run(arm: Run | FileName) -> Path:
    if isinstance(arm, Run):
        return arm.path
    return find_recipe_or_run(arm if isinstance(arm, str) else Path(arm))


def _texts(overrides: Overrides) -> list[str]:
    """Overrides as `key=value`, in TOML.

    :raises RecipeError: for a value that TOML cannot express.
    """
    if isinstance(overrides, str):
        raise RecipeError(f"overrides = {overrides!r}: give a dict, or a list such as ['seed=1']")
    if not isinstance(overrides, Mapping):
        return [*overrides]
    return [f"{key}={_toml(key, value)}" for key, value in overrides.items()]


def _toml(key: str, value: Any) -> str:
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    table = tomlkit.inline_table()
    try:
        table["value"] = plain
    except ConvertError:
        raise RecipeError(
            f"overrides[{key!r}] = {value!r}: TOML has no such value; give a number, a text, "
            "True or False, a list or a dict"
        ) from None
    return table.as_string().removeprefix("{value = ").removesuffix("}")
