"""Published weights of other networks: a local file with a known digest, never a download."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ganlab.disk import size
from ganlab.images.files import cache_folder
from ganlab.plugin import Plugin
from ganlab.runs.data import file_sha256
from ganlab.tensor_files import OddFile, check_weights, read_arrays, read_pickle, read_safetensors

_WRAPPERS = ("params_ema", "params", "state_dict")


_left_out = ContextVar("left out", default=False)


@contextmanager
def weights_left_out() -> Iterator[None]:
    """Context in which `load_weights` reads no file, and the networks keep their random weights.

    For what depends on shapes alone, such as an estimate of memory.
    """
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def weights_file(name: str, given: Path | None = None) -> Path:
    """The path of a weights file: the given one, or `weights/<name>` in ganlab's cache folder."""
    return given or cache_folder() / "weights" / name


def load_weights(
    plugin: Plugin,
    network: nn.Module,
    file: Path,
    sha256: str,
    source: str,
    ignored: tuple[str, ...] = (),
) -> None:
    """Fill a network from a file; its digest, names and shapes must all be the expected ones.

    :param plugin: its name and place in the recipe begin every error.
    :param sha256: hexadecimal, or at least its first 8 digits, as in torchvision's file names.
    :param source: the address of the file, for the message.
    :param ignored: beginnings of names in the file that the network does not use, such as
        "classifier." when the network is the convolutions of a classifier.
    :raises RecipeError: naming the file, its source and the place to put it.
    """
    if _left_out.get():
        return
    if not file.is_file():
        raise plugin.error(f"needs the weights file {file}; {_how_to_get(plugin, file, source)}")
    found = file_sha256(file)
    if not found.startswith(sha256.lower()):
        raise plugin.error(
            f"{file} is not the expected file: its sha256 begins with {found[:8]}, and should "
            f"begin with {sha256[:8]}; {_how_to_get(plugin, file, source)}"
        )
    state = read_weights(plugin, file)
    wanted = {name: value for name, value in state.items() if not name.startswith(ignored)}
    fill_network(plugin, network, wanted, file)


def _how_to_get(plugin: Plugin, file: Path, source: str) -> str:
    """The command that gets a file, when it is one that the plugin declares; else its address."""
    by_hand = f"get it from {source}, and put it there"
    for published in plugin.published:
        if published.source == source:
            command = f"`ganlab weights fetch {published.name}`"
            if file == weights_file(published.file_name):
                return f"{command} gets it ({size(published.size)}), or {by_hand}"
            return f"{by_hand}, or leave out the option `weights` and type {command}"
    return by_hand


def read_weights(plugin: Plugin, file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .npz, .pth or .pt file, without a training code's wrapper.

    The file's digest is noted, for the record of the run's data.

    :raises RecipeError: when the file cannot be read as one of these.
    """
    try:
        plugin.files_read[file.name] = file_sha256(file)
        state = _read(file)
    except (OSError, OddFile) as error:
        raise plugin.error(f"{file} cannot be read as a file of weights: {error}") from None
    for name in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise plugin.error(f"{file} holds something other than the weights of one network")
    try:
        check_weights(state)
    except OddFile as error:
        raise plugin.error(f"{file} holds no sound weights: {error}") from None
    return state


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return read_safetensors(file)[0]
    return read_arrays(file) if file.suffix == ".npz" else read_pickle(file)


def fill_network(plugin: Plugin, network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load a state dict whose names and shapes must equal the network's.

    :raises RecipeError: naming the first parameter that differs.
    """
    wanted = network.state_dict()
    for kind, names in (
        ("lacks", [name for name in wanted if name not in state]),
        ("has an unknown", [name for name in state if name not in wanted]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise plugin.error(f"{file} does not fit the network: it {kind} {names[0]}{more}")
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise plugin.error(
                f"{file} does not fit the network: {name} has shape {[*state[name].shape]} in the "
                f"file, and {[*value.shape]} in the network"
            )
    network.load_state_dict(state)
