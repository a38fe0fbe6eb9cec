"""The files of a generator on the Hugging Face Hub: made of a run, and made a run again.

model.safetensors has the generator's own weights, with the keys of its architecture, so that other
programs know them. config.json has what `from_pretrained` needs, recipe.toml how it was trained,
README.md is its model card; plugin files of the recipe are beside them. What comes from the Hub is
a stranger's: nothing of it runs here, and a damaged or odd file is refused.
"""

import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from ganlab import __version__
from ganlab.commands.model_card import facts_of_run, model_card
from ganlab.commands.pack import plugin_files
from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.files import whole, write_json, write_text
from ganlab.recipe.file import MAX_BYTES, read_alone
from ganlab.runs.archive import GIB, LARGEST_PLUGIN, MIB, PLUGIN_FILE
from ganlab.runs.folder import RunFolder, open_run_folder
from ganlab.runs.reading import read_json
from ganlab.runs.record import new_id, of_recipe
from ganlab.tensor_files import OddFile, check_weights, iteration_in, read_safetensors, seal

CONFIG, RECIPE, WEIGHTS, CARD = "config.json", "recipe.toml", "model.safetensors", "README.md"
REQUIRED = (CONFIG, RECIPE, WEIGHTS)
# the largest size in bytes of each file
_LARGEST = {CONFIG: MIB, RECIPE: MAX_BYTES, WEIGHTS: 8 * GIB, CARD: MIB}
_USE = """\
```sh
pip install 'ganlab[hub]'
ganlab hub pull USER/NAME                   # the name of this repository
ganlab upscale runs/NAME photo.jpg
```

In Python: `from ganlab import api; generator = api.Generator.from_pretrained("USER/NAME")`, a
`torch.nn.Module`. `model.safetensors` has the keys of its architecture, so other programs that know
the architecture open it."""

_Shape = tuple[Annotated[int, Field(gt=0, lt=2**20)], ...]


class PluginFacts(BaseModel):
    """What config.json says of a plugin, as the manifest of its run has it."""

    model_config = ConfigDict(strict=True)

    sha256: str
    """Of its code."""
    hooks: list[str]
    """So only the plugin that makes the generator is loaded."""
    paths: list[str]
    """Its options that are paths."""


class Config(BaseModel):
    """config.json: what is needed to build the generator."""

    model_config = ConfigDict(strict=True)

    ganlab: str
    """The version that wrote it."""
    iteration: int
    scale: int
    condition_shape: _Shape = Field(min_length=3, max_length=3)
    """[C, h, w] of the images that it was trained on."""
    real_shape: _Shape = Field(min_length=3, max_length=3)
    """[C, H, W] of those that it makes of them."""
    plugins: dict[str, PluginFacts]
    """By their names in the recipe."""


class Files(NamedTuple):
    """All files but the weights, and what the weights say of themselves."""

    texts: dict[str, bytes]
    """By name."""
    about: dict[str, Any]
    """For the head of the file of weights."""


def require_library() -> None:
    """Call it before the first import of the library.

    :raises RecipeError: when the package huggingface-hub is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # it asks the Hub for more than files
    if find_spec("huggingface_hub") is None:
        raise RecipeError(
            "the Hugging Face Hub needs the package huggingface-hub: pip install 'ganlab[hub]'"
        )


def files_of_run(run: Path, which: str, licence: str) -> Files:
    """The files for a run's generator; no path of this machine is in them.

    :param which: "last" or "best".
    :raises GanlabError: when the run has no such weights, or its generator enlarges no images.
    """
    facts, folder = facts_of_run(run, which, licence), open_run_folder(run)
    config = Config(
        ganlab=__version__,
        iteration=facts.iteration or 0,
        scale=facts.scale,
        condition_shape=facts.condition_shape,
        real_shape=facts.real_shape,
        plugins=read_json(folder.manifest).get("plugins", {}),
    )
    texts = {
        CONFIG: (json.dumps(config.model_dump(), indent=2) + "\n").encode(),
        RECIPE: facts.recipe.encode(),
        CARD: model_card(facts, _USE).encode(),
    }
    return Files(texts | plugin_files(folder), facts.as_data())


def read_files(folder: Path) -> Files:
    """The files of a generator in a folder, to write them again.

    :raises GanlabError: when they are not what `write_files` writes.
    """
    try:
        about = json.loads(_weights(folder)[1].get("ganlab", "{}"))
    except ValueError:
        raise GanlabError(f"{folder / WEIGHTS}: its head is damaged") from None
    about.pop("sha256", None)
    names = [*_code_names(folder), *(name for name in _LARGEST if name != WEIGHTS)]
    there = [name for name in names if (folder / name).is_file()]
    return Files({name: _content(folder, name) for name in there}, about)


def write_files(folder: Path, files: Files, tensors: Mapping[str, Tensor]) -> None:
    """Write all files of a generator with these weights into a folder."""
    for name, content in files.texts.items():
        with whole(folder / name) as file:
            file.write(content)
    with whole(folder / WEIGHTS) as file:
        file.write(save(dict(tensors), seal(tensors, files.about)))


def largest(name: str) -> int | None:
    """The most bytes that a file of this name may have; None for one that is not taken."""
    return _LARGEST.get(name) or (LARGEST_PLUGIN if PLUGIN_FILE.fullmatch(name) else None)


def make_run(received: Path, folder: Path, about: Mapping[str, Any]) -> None:
    """Make a run folder of received files, for `ganlab upscale` and others.

    Its weights are equal to the received ones to the byte. No code runs, none is imported.

    :param received: a folder with the files.
    :param folder: exists and is empty.
    :param about: where they came from, for the manifest.
    :raises GanlabError: naming the file that is not what it should be.
    """
    config, recipe = _config(received), _content(received, RECIPE)
    try:
        text = recipe.decode()
    except UnicodeDecodeError:
        raise _refused(received / RECIPE, "it is not UTF-8") from None
    _, metadata = _weights(received)
    run = RunFolder(folder)
    write_text(run.recipe, text)
    for name in _code_names(received):
        (folder / name).write_bytes(_content(received, name))
    if (received / CARD).is_file():
        (folder / CARD).write_bytes(_content(received, CARD))
    run.weights().write_bytes(_content(received, WEIGHTS))
    write_json(
        run.manifest,
        {
            "id": new_id(),
            "pulled": dict(about),
            "condition_shape": config.condition_shape,
            "real_shape": config.real_shape,
            "plugins": {name: plugin.model_dump() for name, plugin in config.plugins.items()},
            **of_recipe(text),
        },
    )
    iteration = _iteration(received, metadata)
    run.write_status("done", iteration=iteration, of=iteration)


def _config(folder: Path) -> Config:
    try:
        return Config.model_validate_json(_content(folder, CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _refused(folder / CONFIG, f"{place}: {first['msg']}") from None


def _weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata, both read and compared with their digest."""
    file = folder / WEIGHTS
    try:
        tensors, metadata = read_safetensors(file, sealed=True)
        check_weights(tensors)
    except OddFile as error:
        raise _refused(file, str(error)) from None
    return tensors, metadata


def _iteration(folder: Path, metadata: Mapping[str, str]) -> int:
    try:
        return iteration_in(metadata)
    except OddFile as error:
        raise _refused(folder / WEIGHTS, str(error)) from None


def _code_names(folder: Path) -> list[str]:
    """The plugin files that the recipe in a folder names.

    :raises GanlabError: when the recipe cannot be read, or a plugin has no name for a file.
    """
    _content(folder, RECIPE)  # its size
    try:
        plugins = read_alone(folder / RECIPE).get("plugins", {})
    except RecipeError as error:
        raise _refused(folder / RECIPE, str(error).rpartition(RECIPE)[2].lstrip(": ")) from None
    if not isinstance(plugins, dict):
        raise _refused(folder / RECIPE, "plugins is not a table")
    names = [
        f"{name}.py" for name, options in plugins.items()
        if isinstance(options, dict) and str(options.get("use", name)).endswith(".py")
    ]  # fmt: skip
    for name in names:
        if not re.fullmatch(PLUGIN_FILE, name):
            raise _refused(folder / RECIPE, f"plugins.{name}: no file may have this name")
    return names


def _content(folder: Path, name: str) -> bytes:
    """A file's bytes, if it is there and not too large."""
    file, most = folder / name, largest(name) or 0
    try:
        if (found := file.stat().st_size) > most:
            raise _refused(file, f"it has {found:,} bytes; at most {most:,} are allowed")
        return file.read_bytes()
    except FileNotFoundError:
        raise _refused(file, "it is not there") from None


def _refused(file: Path, fault: str) -> GanlabError:
    return GanlabError(
        f"{file.name}: {printable(fault)}; this is no generator that `ganlab hub push` sent"
    )
