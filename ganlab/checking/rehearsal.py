"""All that a run writes, written once into a temporary folder and read back."""

import io
from contextlib import closing, redirect_stderr
from typing import Any

import torch
from torch import Tensor

from ganlab.assembly import assemble, build_network
from ganlab.checkpoint import checkpoint_file, load_checkpoint, read_checkpoint
from ganlab.engine import Loop
from ganlab.errors import Diverged, GanlabError, RecipeError
from ganlab.generator_weights import load_generator
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.journal import Journal
from ganlab.runs.writer import Writer
from ganlab.state import state_of


def evaluate_once(run: Run) -> str:
    """Evaluate as a run does, with pictures and weights; of the held-out images the smallest.

    :param run: in a folder of its own.
    :returns: a line that says what was written.
    :raises RecipeError: when the evaluation changes the networks, or the weights that it wrote do
        not give the same generator again.
    """
    every = run.held_out
    run.held_out = _smallest(every)
    before = _weights(run)
    loop = _loop(run)
    try:
        with closing(loop.writer):
            loop.evaluate()
            loop.find_verdicts()
    except Diverged as error:
        raise RecipeError(f"{run.recipe.file}: after tiny steps: {error}") from None
    _require_unchanged(run, before)
    _require_same_weights(run)
    names, run.held_out = ", ".join(run.held_out), every
    what = f"{len(every)} held-out images; {names}: " if every else "evaluation: "
    files = "pictures and weights" if every else "weights"
    return f"{what}{_shown(run.progress.scores) or 'no figures'}; {files} written and read back"


def write_checkpoint_once(run: Run) -> dict[str, Any]:
    """Write a checkpoint as a run does; returns the state that it holds.

    :raises RecipeError: when the state of a plugin cannot be written or read back.
    """
    require_storable(run)
    loop = _loop(run)
    with closing(loop.writer):
        loop.save()
    return state_of(run)


def require_storable(run: Run) -> None:
    """Refuse a plugin whose state cannot be written or read back.

    :raises RecipeError: it names the plugin and the value.
    """
    for plugin in run.recipe.plugins.values():
        if hasattr(plugin, "state_dict"):
            _require_storable(plugin)


def resume_once(run: Run, state: dict[str, Any]) -> Run:
    """A new run of the same recipe, continued from the checkpoint as `ganlab resume` does.

    :param run: the one that wrote the checkpoint.
    :param state: what `write_checkpoint_once` returned.
    :raises RecipeError: when the recipe that the run kept cannot be read, or the checkpoint does
        not restore the same state.
    """
    again = _assembled_again(run)
    assert again.folder
    written = read_checkpoint(checkpoint_file(again.folder.checkpoints, state["iteration"]))
    for name, saved in written["plugins"].items():
        _require_restored(again.recipe.plugins[name], saved)
    load_checkpoint(again, again.folder.checkpoints)
    restored = state_of(again)
    for name, plugin in again.recipe.plugins.items():
        if not same(state["plugins"].get(name), restored["plugins"].get(name)):
            raise plugin.error(
                "its state after load_state_dict(state) is not the saved one, so a resumed run "
                "would not be the same run; restore there all that state_dict returns"
            )
    for name, saved in state["networks"].items():
        if not same(saved, restored["networks"][name]):
            raise RecipeError(
                f"{run.recipe.file}: {name} is not the same after a checkpoint was read back, so "
                "a resumed run would not be the same run; does a load_state_dict change it?"
            )
    return again


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit; NaN equals NaN, and a tuple equals a list."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (one != one and other != other))


def _loop(run: Run) -> Loop:
    assert run.folder
    recipe = run.recipe
    journal = Journal(run.folder, recipe.iterations, recipe.batch_size, recipe.report_every)
    journal.console.quiet = True
    return Loop(run, journal, Writer())


def _smallest(images: dict[str, Tensor]) -> dict[str, Tensor]:
    """The smallest grey and the smallest colour image."""
    ordered = sorted(images, key=lambda name: images[name].numel(), reverse=True)
    return {name: images[name] for name in {len(images[name]): name for name in ordered}.values()}


def _weights(run: Run) -> dict[str, dict[str, Tensor]]:
    """A copy of the weights and buffers of both networks."""
    return {
        role: {name: value.clone() for name, value in network.state_dict().items()}
        for role, network in run.networks.items()
    }


def _require_unchanged(run: Run, before: dict[str, dict[str, Tensor]]) -> None:
    """Refuse an evaluation that changes what is trained."""
    after = _weights(run)
    for role in after:
        if not same(before[role], after[role]):
            raise RecipeError(
                f"{run.recipe.file}: an evaluation changes {role}, so the training would depend on "
                "evaluate_every; a hook that is called there must not change it"
            )


def _require_same_weights(run: Run) -> None:
    """Refuse weights that do not give the generator again: `eval` and `upscale` would fail."""
    assert run.folder
    exported = run.hook.evaluation_generator(generator=run.G)
    generator = build_network(run, "make_generator", run.real_shape)
    fault = f"{run.recipe.file}: the weights that a run writes do not give its generator again"
    try:
        load_generator(generator, run.folder.weights())
    except GanlabError as error:
        raise RecipeError(f"{fault}: {error}") from None
    if not same(dict(exported.state_dict()), dict(generator.state_dict())):
        raise RecipeError(f"{fault}; its state_dict must return the tensors that it computes with")


def _require_storable(plugin: Any) -> None:
    if not hasattr(plugin, "load_state_dict"):
        raise plugin.error("has state_dict but no load_state_dict; define both or neither")
    buffer = io.BytesIO()
    try:
        torch.save(plugin.state_dict(), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:  # what pickle raises has no common base
        raise plugin.error(
            "its state cannot be kept in a checkpoint, so the run would end at its first one "
            f"({_foreign(plugin) or _line(error)}); state_dict may return tensors, numbers, text, "
            "lists and dicts only"
        ) from None


def _foreign(plugin: Any) -> str:
    """The first part of a state that a checkpoint cannot hold; "" if there is none."""

    def found(value: Any, place: str) -> str:
        if isinstance(value, dict):
            inner = [(part, f"{place}[{key!r}]") for key, part in value.items()]
        elif isinstance(value, list | tuple):
            inner = [(part, f"{place}[{number}]") for number, part in enumerate(value)]
        elif value is None or isinstance(value, Tensor | int | float | str | bytes):
            return ""
        else:
            return f"{place} is a {type(value).__name__}"
        return next(filter(None, (found(*each) for each in inner)), "")

    try:
        return found(plugin.state_dict(), "state")
    except Exception as error:  # the code is the user's
        return _line(error)


def _require_restored(plugin: Any, state: Any) -> None:
    try:
        plugin.load_state_dict(state)
    except Exception as error:  # the code is the user's
        raise plugin.error(
            f"its load_state_dict fails on the state that it saved: {_line(error)}; a checkpoint "
            "could not be resumed"
        ) from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _assembled_again(run: Run) -> Run:
    """The run assembled from the recipe in its folder, with the same batch size."""
    assert run.folder
    try:
        with redirect_stderr(io.StringIO()):  # whose code runs was told before
            recipe = load_recipe(run.folder.recipe)
    except GanlabError as error:
        raise RecipeError(
            f"{run.recipe.file}: the recipe that a run keeps cannot be read again, so the run "
            f"could not be resumed: {error}"
        ) from None
    recipe._file = run.recipe.file  # errors name the files of the user
    for name, plugin in recipe.plugins.items():
        plugin.bind(place=run.recipe.plugins[name]._place)
    again = assemble(recipe, run.device, run.folder)
    again.recipe = recipe.model_copy(update={"batch_size": run.recipe.batch_size})
    return again


def _shown(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
