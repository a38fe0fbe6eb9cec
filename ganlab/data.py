"""What a run reads: its held-out images, and the digests of all its data."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ganlab.errors import RecipeError
from ganlab.images.store import image_digest
from ganlab.requirements import providers
from ganlab.run import Run, merged
from ganlab.runs.data import Data, left_out, trained_on

MISSED = (
    "there will be no scores, no sample pictures and no best generator, and the run cannot be "
    "compared; give the data plugin held-out images, or add a plugin that evaluates"
)


def data_of(run: Run) -> Data:
    """The data of a run as digests, see `ganlab.runs.data`.

    Of a run that was only opened it reads the training data and the held-out images, and leaves out
    the files that plugins read when they are started.
    """
    sources = set(providers(run.manager, "sample_real") + providers(run.manager, "sample_batch"))
    data: Data = {"training": {}, "held_out": {}, "weights": {}, "left_out": {}}
    for name, plugin in run.recipe.plugins.items():
        others = [other for other in run.plugins_with("data_digest") if other is not plugin]
        answers = run.manager.subset_hook_caller("data_digest", others)()
        if not all(map(_is_digest, answers)):
            raise plugin.error("data_digest must return a dict: name of an item -> digest, a str")
        items = {_text(item): digest for item, digest in merged(run, answers).items()}
        if plugin in sources:
            data["training"] |= {name: items} if answers else {}
            items = {}
        if items := plugin.files_read | items:
            data["weights"][name] = items
    held_out = run.held_out or held_out_images(run)
    if held_out:
        owners = "+".join(p.name for p in run.plugins_with("evaluation_images"))
        data["held_out"][owners] = {_text(n): image_digest(image) for n, image in held_out.items()}
    for name, plugin in run.recipe.plugins.items():
        if plugin.left_out:
            told = {_text(item): _text(why) for item, why in plugin.left_out.items()}
            data["left_out"][name] = told
    return {section: plugins for section, plugins in data.items() if plugins}


def held_out_images(run: Run) -> dict[str, Tensor]:
    """The held-out images of all plugins.

    :raises RecipeError: when a plugin returns anything else.
    """
    answers = run.hook.evaluation_images()
    if not all(map(_is_pictures, answers)):
        names = " and ".join(plugin.name for plugin in run.plugins_with("evaluation_images"))
        raise RecipeError(
            f"{run.recipe.file}: {names}: evaluation_images must return a dict: name, a str -> "
            "image, a tensor uint8 [3, H, W], or [1, H, W] for a grey image"
        )
    return merged(run, answers)


def notes_on_data(run: Run) -> Iterator[str]:
    """What the user must know about the data: nothing held out, trained on what is held out."""
    yield from left_out(run.data)
    if not run.held_out and not run.plugins_with("evaluate"):
        yield f"no image is held out: {MISSED}"
    if seen := trained_on(run.data):
        several = f"{len(seen)} held-out images are" if len(seen) > 1 else "a held-out image is"
        yield (
            f"{several} also in the training data, so the scores say nothing about new images: "
            f"{', '.join(seen[:4])}"
        )
    if "training" not in run.data:
        names = ", ".join(plugin.name for plugin in providers(run.manager, "sample_real"))
        yield (
            f"{names} does not say what its data are (hook data_digest), so ganlab cannot notice "
            "when they change"
        )


def _is_digest(answer: object) -> bool:
    return isinstance(answer, dict) and all(
        isinstance(name, str) and isinstance(digest, str) for name, digest in answer.items()
    )


def _is_pictures(answer: object) -> bool:
    return isinstance(answer, dict) and all(
        isinstance(name, str) and isinstance(image, Tensor) and image.dtype is torch.uint8
        and image.ndim == 3 and image.shape[0] in (1, 3)
        for name, image in answer.items()
    )  # fmt: skip


def _text(name: str) -> str:
    """A name that can be written as UTF-8: a file's name may have bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()
