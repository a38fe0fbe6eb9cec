"""A generator's weights as a file, for `eval`, `upscale` and other tools."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from ganlab.disk import telling_disk
from ganlab.errors import GanlabError, printable
from ganlab.files import whole
from ganlab.recipe.model import resolved
from ganlab.run import Run
from ganlab.runs.reading import read_json
from ganlab.state import copied
from ganlab.tensor_files import (
    OddFile,
    check_weights,
    iteration_in,
    read_safetensors,
    seal,
    shapes_in,
)

Weights = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and what is known of them."""


def weights_of(run: Run, generator: nn.Module) -> Weights:
    """Copy to the host what `write_weights` writes."""
    tensors = {k: v.contiguous() for k, v in copied(generator.state_dict()).items()}
    shapes = {"condition_shape": [*run.condition_shape], "real_shape": [*run.real_shape]}
    return tensors, {"iteration": run.iteration, "recipe": resolved(run.recipe), **shapes}


def write_weights(weights: Weights, path: Path) -> None:
    """Write a generator's weights, recipe and shapes, for `eval`, `upscale` and other tools."""
    content = save(weights[0], seal(*weights))
    with telling_disk(path, len(content)), whole(path) as file:
        file.write(content)


def load_generator(generator: nn.Module, path: Path) -> int | None:
    """Read weights written by `write_weights` into a generator.

    :returns: their iteration; None where the file does not say it.
    :raises GanlabError: when the file is absent, damaged or of another network.
    """
    if not path.is_file():
        raise GanlabError(f"{path}: no such file; the run has not written weights yet")
    try:
        _check_shapes(generator, path)  # first, so that no more is read than the network holds
        tensors, metadata = read_safetensors(path, sealed=seals_weights(path.parent))
        check_weights(tensors)
        generator.load_state_dict(tensors)
    except OddFile as error:
        raise GanlabError(f"{path}: damaged: {error}; choose other weights") from None
    except RuntimeError as error:
        raise GanlabError(f"{path}: these are the weights of another network: {error}") from None
    try:
        return iteration_in(metadata)
    except OddFile:
        return None


def seals_weights(run: Path) -> bool:
    """Whether every file of weights in a run folder has a digest; not in one of an older ganlab."""
    manifest = read_json(run / "manifest.json")
    return bool(manifest.get("id")) and not manifest.get("made_again")


def lost_best(run: Run, file: Path) -> str:
    """What is wrong with the best generator of a resumed run, for the user; empty if nothing is.

    A power cut can empty a file, and a file system may take it away.
    """
    if run.progress.best is None:
        return ""
    best, _ = run.progress.best
    try:
        tensors, metadata = read_safetensors(file)
        check_weights(tensors)
        found = iteration_in(metadata)  # a later one: the run was killed after it was written
        fault = f"it is of iteration {found:,}" if found < best else ""
    except OddFile as error:
        fault = str(error)
    if not fault:
        return ""
    return (
        f"{file}: the best generator, of iteration {best:,}, is lost ({fault}); the next better "
        "one takes its place"
    )


def drop_later(file: Path, iteration: int) -> None:
    """Remove weights of a later iteration: they are of no iteration of a run that went back."""
    with suppress(OddFile):
        if iteration_in(read_safetensors(file)[1]) > iteration:
            file.unlink()


def _check_shapes(network: nn.Module, path: Path) -> None:
    """:raises GanlabError: when names or shapes of the tensors are not those of the network."""
    there, wanted = shapes_in(path), {n: tuple(v.shape) for n, v in network.state_dict().items()}
    for name in [*wanted, *there]:
        one, other = wanted.get(name, "none"), there.get(name, "none")
        if one != other:
            raise GanlabError(
                f"{path}: these are the weights of another network: {printable(name)} has the "
                f"shape {other} in the file, and {one} in the network"
            )
