"""Makes checked settings and plugins from a recipe file, with clear messages for wrong options."""

import json
import os
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ganlab.errors import PluginFailed, RecipeError, clipped, printable
from ganlab.monitoring.blame import described, is_interruption, line_in
from ganlab.names import shortened
from ganlab.option import STRICT, MayChange
from ganlab.plugin import Plugin
from ganlab.recipe.bundled import find_recipe, folder_of
from ganlab.recipe.complaint import complaint, worst
from ganlab.recipe.discovery import (
    PluginSource,
    class_of,
    find_plugin,
    installed,
    origin_of,
    read_code,
)
from ganlab.recipe.file import RecipeTable, read_recipe
from ganlab.recipe.trust import require_consent


class Recipe(BaseModel):
    """An experiment: the settings of the loop, and the plugins that fill its hooks."""

    model_config = STRICT

    iterations: Annotated[int, MayChange()] = Field(ge=1, le=10**12)
    """How many iterations the run has; there are no epochs."""
    batch_size: int = Field(16, ge=1)
    """Samples in each step's batch."""
    d_steps: int = Field(1, ge=0, le=1000)
    """Discriminator updates an iteration; 0 trains without a discriminator."""
    g_steps: int = Field(1, ge=1, le=1000)
    """Generator updates an iteration, each on a fresh batch."""
    first: Literal["discriminator", "generator"] = "discriminator"
    """Which network takes its step first. "generator" (ESRGAN's code): one step each on one batch,
    and the discriminator learns from the images that the generator made before its own step."""
    share_forward: Annotated[bool, MayChange(alters=False)] = True
    """With `first = "generator"`: run D once on G's images for both steps, where plugins allow it.
    It changes only time and memory."""
    accumulate: Annotated[int, MayChange()] = Field(1, ge=1)
    """Number of parts that a batch is cut into. They are taken one after another and their
    gradients summed: the same step in less memory."""
    activation_checkpointing: Annotated[bool, MayChange(alters=False)] = False
    """Compute the activations inside the networks' blocks again in the backward pass: the same
    step in less memory, for the time of about one more forward pass."""
    sync_batch_norm: Annotated[bool, MayChange(alters=False)] = False
    """Where several processes train the run: take batch norm's statistics over the whole batch, as
    in one process. Without it, a recipe with batch norm is refused there."""
    num_discriminators: int = Field(1, ge=1, le=100)
    """How many plugins make a discriminator; every loss is the mean over the discriminators."""
    seed: int = Field(0, ge=0)
    """The number from which every random stream is computed."""
    compile: Annotated[Literal["auto", "off", "networks", "graphs"], MayChange()] = "auto"
    """How steps are made quicker: "networks" by torch.compile, "graphs" as captured CUDA graphs,
    "auto": graphs on CUDA and nothing on a CPU. A note names the steps where it is impossible."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Precision of the networks. bfloat16 is autocast on CUDA (float32 elsewhere), and losses stay
    float32."""
    tf32: bool = True
    """On CUDA: compute float32 convolutions in TF32, which keeps 10 bits of each factor, as torch
    does by default. `false` is full float32, and slower."""
    deterministic: bool = False
    """On CUDA: the same numbers to the bit in every run, also in a resumed one, as on a CPU. It
    uses torch's deterministic algorithms, no search for quick ones, and no TF32."""
    evaluate_every: Annotated[int, MayChange()] = Field(1000, ge=1)
    """Iterations between evaluations, each with a sample picture; there is one more at the end."""
    checkpoint_every: Annotated[int, MayChange()] = Field(1000, ge=1)
    """Iterations between checkpoints; there is one more at the end."""
    keep: Annotated[int, MayChange(alters=False)] = Field(2, ge=2)
    """How many of the newest checkpoints are kept: at least 2, since the newest may be damaged."""
    keep_every: Annotated[int, MayChange(alters=False)] = Field(0, ge=0)
    """Checkpoints at multiples of this number of iterations are kept for good; 0: none are."""
    on_failed_checkpoint: Annotated[Literal["stop", "carry on"], MayChange(alters=False)] = "stop"
    """What to do when a file of the run cannot be written, such as on a full disk: end the run as
    failed, or say so each time and try again at the next one. At the end it must succeed."""
    report_every: Annotated[int, MayChange(alters=False)] = Field(50, ge=1)
    """Iterations between two readings of the losses from the device, and between log lines."""
    watch_every: Annotated[int, MayChange()] = Field(50, ge=0)
    """Iterations between measurements of each loss's gradient and of the game's health. 0: no step
    is watched, and health is measured at evaluations only."""
    on_verdict: Annotated[Literal["carry on", "stop", "roll back"], MayChange()] = "carry on"
    """What to do at a verdict: report it and carry on; stop; or go back to before the failure
    began, and stop."""
    on_nonfinite: Literal["stop", "skip", "roll back"] = "stop"
    """What to do when a number is not finite: stop; skip the step, which then changes nothing; or
    go back to the newest checkpoint, and on from there with other random numbers."""
    most_nonfinite: int = Field(5, ge=1)
    """How many steps of one network in a row are skipped at most, or how often the run goes back at
    most, in all. At the next number that is not finite it stops."""
    best_metric: str = "psnr_y"
    """The evaluation figure by which the best generator is kept."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Which value of that figure is the best: the highest for PSNR, the lowest for LPIPS."""
    patience: Annotated[int, MayChange()] = Field(0, ge=0)
    """Evaluations without a better `best_metric` after which the run ends early; 0: never."""

    _plugins: dict[str, Plugin] = PrivateAttr(default_factory=dict)
    _sources: dict[str, PluginSource] = PrivateAttr(default_factory=dict)
    _file: Path = PrivateAttr(default=Path("recipe.toml"))
    _name: str = PrivateAttr("")
    _table: RecipeTable | None = PrivateAttr(None)

    @field_validator("keep_every")
    @classmethod
    def _meets_checkpoints(cls, keep_every: int, info: ValidationInfo) -> int:
        """A multiple of checkpoint_every."""
        every = info.data.get("checkpoint_every")  # absent when it is wrong itself
        if every and keep_every % every:
            raise ValueError(f"must be a multiple of checkpoint_every, which is {every}.")
        return keep_every

    @field_validator("most_nonfinite")
    @classmethod
    def _has_effect(cls, most_nonfinite: int, info: ValidationInfo) -> int:
        """Only with on_nonfinite "skip" or "roll back"."""
        usual = cls.model_fields["most_nonfinite"].default
        if most_nonfinite != usual and info.data.get("on_nonfinite") == "stop":
            raise ValueError('has no effect with on_nonfinite = "stop"; leave it out.')
        return most_nonfinite

    @property
    def plugins(self) -> dict[str, Plugin]:
        """The plugins by instance name, in the order of the file."""
        return self._plugins

    @property
    def sources(self) -> dict[str, PluginSource]:
        """Where each plugin's code came from, by instance name."""
        return self._sources

    def origin(self, *key: str) -> str:
        """The place of the value at a key: file and line, `--set ...`, or "default"."""
        if self._table is None or not self._table.states(key):
            return "default"
        return str(self._table.origin(*key))

    @property
    def file(self) -> Path:
        return self._file

    @property
    def name(self) -> str:
        """The name for its runs: the variant's name if it has one, else the file's name."""
        return self._name or shortened(self._file.stem)


def load_recipe(file: Path | str, overrides: Iterable[str] = (), name: str = "") -> Recipe:
    """Read, merge and validate a recipe; build its plugins.

    :param file: a file, or the name of a recipe that comes with ganlab.
    :param overrides: `key=value` strings, as given to `--set`.
    :param name: of this variant of the file; its runs get this name.
    :raises RecipeError: with file, line, fault and remedy.
    """
    return _whole(*_begun(Path(file), overrides, name))


def unused(recipe: Recipe) -> Recipe:
    """The same recipe with new plugins. A plugin keeps state of its run, so it serves one run.

    :raises RecipeError: as `load_recipe` does: a plugin file may have changed.
    """
    assert recipe._table is not None
    return _whole(*_made(recipe._table, recipe.file, recipe._name))


def _whole(recipe: Recipe, table: RecipeTable) -> Recipe:
    """The recipe, with its plugins added."""
    entries = [_Entry(table, name) for name in _tables(table)]
    require_consent([entry.code for entry in entries if entry.code])
    for entry in entries:
        entry.add_to(recipe)
    return recipe


def load_part(
    file: Path, needed: Collection[str], optional: Collection[str] = ()
) -> tuple[Recipe, dict[str, str]]:
    """Read a recipe with some of its plugins; of all others no code is loaded.

    :param needed: names of plugins that must be there.
    :param optional: names of plugins that are left out when they cannot be had: not installed, not
        to be imported, without consent to their code, or with options that they refuse.
    :returns: the recipe; and for each optional plugin that is left out, the reason.
    :raises RecipeError: as `load_recipe` does, for the needed plugins.
    """
    recipe, table = _begun(file, (), "")
    names = [name for name in _tables(table) if name in needed or name in optional]
    entries: list[_Entry] = []
    left_out: dict[str, str] = {}
    for name in names:
        with _leaving_out(name in optional and name, left_out):
            entries.append(_Entry(table, name))
    require_consent([entry.code for entry in entries if entry.code and entry.name in needed])
    for entry in entries:
        with _leaving_out(entry.name in optional and entry.name, left_out):
            require_consent([entry.code] if entry.code else [])
            entry.add_to(recipe)
    return recipe, left_out


@contextmanager
def _leaving_out(name: str | Literal[False], left_out: dict[str, str]) -> Iterator[None]:
    """Context in which a fault of an optional plugin is noted; without a name it is raised."""
    try:
        yield
    except RecipeError as error:
        if not name:
            raise
        left_out[name] = str(error).partition("\n")[0]


def recipe_of(name: str, plugins: Mapping[str, Plugin], **settings: Any) -> Recipe:
    """A recipe that has no file, from plugins that are built already."""
    recipe = Recipe(**settings)
    recipe._file, recipe._name = Path(name), name
    recipe._plugins.update({key: plugin.bind(name=key) for key, plugin in plugins.items()})
    return recipe


def resolved(recipe: Recipe, copied: bool = True) -> str:
    """The recipe as TOML with every value, defaults included; running it repeats the run.

    :param copied: whether plugin files lie beside it as `<instance name>.py`, as in a run folder.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("Every value spelled out, defaults too."))
    for key, value in recipe.model_dump(mode="json").items():
        document.add(key, value)
    plugins = tomlkit.table()
    for name, plugin in recipe.plugins.items():
        options = tomlkit.inline_table()
        source = recipe.sources[name]
        use = source.name
        if source.beside_recipe:
            beside = os.path.relpath(source.file, recipe.file.resolve().parent)
            use = f"./{name}.py" if copied else f"./{beside}"
        if use != name:
            options.append("use", use)
        for key, value in plugin.model_dump(mode="json", exclude_none=True, by_alias=True).items():
            options.append(key, value)
        plugins.add(name, options)
    document.add("plugins", plugins)
    return tomlkit.dumps(document)


def _settings(table: RecipeTable) -> Recipe:
    try:
        settings = {key: value for key, value in table.values.items() if key != "plugins"}
        return Recipe.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        first = worst(error)
        key = [str(part) for part in first["loc"]]
        place = table.origin(*key)
        if first["type"] == "extra_forbidden" and key[0] in installed():
            raise RecipeError(
                f"{place}: {key[0]} is a plugin; write it under [plugins]: {key[0]} = {{ ... }}"
            ) from None
        raise RecipeError(f"{place}: {complaint(first, Recipe, 'setting')}") from None


def _begun(file: Path, overrides: Iterable[str], name: str) -> tuple[Recipe, RecipeTable]:
    """A recipe without its plugins yet, and its table."""
    file = find_recipe(file)
    return _made(read_recipe(file, overrides), file, name)


def _made(table: RecipeTable, file: Path, name: str) -> tuple[Recipe, RecipeTable]:
    recipe = _settings(table)
    recipe._file, recipe._name, recipe._table = file, name, table
    return recipe, table


def _tables(table: RecipeTable) -> dict[str, Any]:
    found: dict[str, Any] = table.values.get("plugins", {})
    return found


class _Entry:
    """A plugin's table in a recipe, looked at; its code is read, but has not run."""

    def __init__(self, table: RecipeTable, name: str) -> None:
        """:raises RecipeError: when it is no table, or names a file that it may not."""
        self.table, self.name = table, name
        self.options = _options(table, name)
        self.use = self.options.pop("use", name)
        place = table.origin("plugins", name)
        if not isinstance(self.use, str):
            raise RecipeError(f"{place}: plugins.{name}: use must be a plugin's name in quotes")
        self.origin = table.origin("plugins", name, "use")
        is_file = self.use.endswith(".py")
        self.code = read_code(self.use, self.origin, table.file) if is_file else None

    def add_to(self, recipe: Recipe) -> None:
        """Load the plugin's class, and build the plugin."""
        if self.code:
            plugin_class, source = class_of(self.code, self.use, self.origin)
        else:
            plugin_class, source = find_plugin(self.use, self.origin)
        recipe._plugins[self.name] = _plugin(self.table, self.name, self.options, plugin_class)
        recipe._sources[self.name] = source


def _options(table: RecipeTable, name: str) -> dict[str, Any]:
    place, options = table.origin("plugins", name), _tables(table)[name]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise RecipeError(
            f"{place}: '{printable(clipped(name))}' is not a name: a letter, then at most 63 "
            "letters, digits, _ and -"
        )
    if not isinstance(options, dict):
        shown = clipped(json.dumps(options), 100)
        raise RecipeError(
            f"{place}: plugins.{name} = {shown}: a plugin has a table of options: {name} = {{}}"
        )
    return dict(options)


def _plugin(
    table: RecipeTable, name: str, options: dict[str, Any], plugin_class: type[Plugin]
) -> Plugin:
    folders = {key: folder_of(table.origin("plugins", name, key)) for key in options}
    try:
        plugin = plugin_class.model_validate_json(json.dumps(options), context={"folders": folders})
    except ValidationError as error:
        first = worst(error)
        key = [part for part in first["loc"] if isinstance(part, str)]
        where = table.origin("plugins", name, *key)
        wrong = complaint(first, plugin_class, "option")
        raise RecipeError(f"{where}: plugins.{name}: {wrong}") from None
    except BaseException as error:
        if is_interruption(error):
            raise
        who = f"{table.origin('plugins', name)}: plugin {name}"
        raise _failed(who, plugin_class, error) from None

    def describe_place(option: str | None) -> str:
        key = (option,) if option else ()
        return f"{table.origin('plugins', name, *key)}: plugins.{name}"

    return plugin.bind(name=name, place=describe_place)


def _failed(who: str, plugin_class: type[Plugin], error: BaseException) -> PluginFailed:
    """The error for a plugin whose own code fails while it is made from its options."""
    line = f" ({place})" if (place := line_in(error, plugin_class)) else ""
    told = PluginFailed(
        f"{who} ({origin_of(plugin_class)}) fails when it is made: {described(error)}{line}"
    )
    told.traceback = "".join(traceback.format_exception(error))
    return told
