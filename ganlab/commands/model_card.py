"""A model card: what a generator is, for people, and for the Hugging Face Hub by its YAML head.

https://huggingface.co/docs/hub/model-cards has the form. It is made of a run's records alone.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from ganlab import __version__
from ganlab.commands.pack import placeless_recipe
from ganlab.errors import GanlabError, RecipeError, printable
from ganlab.runs.folder import enlarges
from ganlab.runs.records import RunRecord, read_run
from ganlab.tensor_files import OddFile, about_in, iteration_in, metadata_in

MOST_LICENCE = 100  # characters
_Side = Annotated[int, Field(ge=1, le=2**16)]


@dataclass(frozen=True, slots=True)
class GeneratorFacts:
    """What is known of a generator."""

    name: str
    """That of its run."""
    recipe: str
    """As TOML, without folders of the machine where it was trained."""
    condition_shape: tuple[int, ...]
    real_shape: tuple[int, ...]
    iteration: int | None = None
    licence: str = ""
    """As its owner states it; ganlab cannot know it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of the evaluation at its iteration; empty where there was none."""
    bicubic: Mapping[str, float] = field(default_factory=dict)
    """The same figures of bicubic enlargement."""
    training: Sequence[str] = ()
    """What it was trained on: each plugin with its number of items."""
    held_out: Sequence[str] = ()
    """The images of the evaluation."""

    @property
    def scale(self) -> int:
        return self.real_shape[-1] // self.condition_shape[-1]

    @property
    def title(self) -> str:
        """The name, with the scale: wgan_gp-1-x4."""
        ending = f"-x{self.scale}"
        return self.name if self.name.endswith(ending) else self.name + ending

    def as_data(self) -> dict[str, object]:
        """What a file of weights says of itself."""
        return {
            "iteration": self.iteration,
            "recipe": self.recipe,
            "condition_shape": [*self.condition_shape],
            "real_shape": [*self.real_shape],
            "scale": self.scale,
            "licence": self.licence,
        }


def facts_of_run(run: Path | str, which: str = "last", licence: str = "") -> GeneratorFacts:
    """What is known of a run's generator.

    :param which: "last" or "best".
    :raises GanlabError: when the weights are damaged.
    :raises RecipeError: when there are none, the generator enlarges no images, or the licence is
        not one line of text.
    """
    record = read_run(run)
    folder = record.folder
    if not enlarges(folder):
        raise RecipeError(f"{folder.path}: its generator makes samples, it enlarges no images")
    file = folder.weights(which)
    if not file.is_file():
        other = "; --weights last is there" if folder.weights().is_file() else ""
        raise RecipeError(f"{file}: no such file: the run has not written these weights yet{other}")
    try:
        iteration = iteration_in(metadata_in(file))
    except OddFile as error:
        raise GanlabError(f"{file}: damaged: {error}; choose other weights") from None
    evaluation = next((one for one in record.evaluations if one.iteration == iteration), None)
    shapes = {key: tuple(record.manifest.get(key, ())) for key in ("condition_shape", "real_shape")}
    scores, bicubic = evaluation.figures if evaluation else {}, record.status.get("bicubic") or {}
    return GeneratorFacts(
        folder.path.resolve().name,
        placeless_recipe(folder),
        **shapes,
        iteration=iteration,
        licence=checked_licence(licence),
        scores={name: value for name, value in scores.items() if math.isfinite(value)},
        bicubic={name: value for name, value in bicubic.items() if value is not None},
        training=_training(record),
        held_out=[name for items in record.data.get("held_out", {}).values() for name in items],
    )


def facts_of_file(file: Path) -> GeneratorFacts:
    """What a file of weights says of its generator. It may be a stranger's: all is checked.

    :raises RecipeError: when it does not say its recipe and its shapes.
    """
    try:
        about = _About.model_validate(about_in(metadata_in(file)))
    except (OddFile, ValidationError) as error:
        reason = "" if isinstance(error, ValidationError) else f" ({error})"
        raise RecipeError(
            f"{file}: it does not say the recipe and the shapes of its generator, as files of "
            f"weights that ganlab writes do{reason}; name the run folder instead"
        ) from None
    name = re.sub(r"(-x\d+)?(-fp16)?$", "", file.stem)
    return GeneratorFacts(name, **dict(about))


class _About(BaseModel):
    recipe: str
    condition_shape: tuple[_Side, _Side, _Side]
    real_shape: tuple[_Side, _Side, _Side]
    iteration: int | None = Field(None, ge=0)
    licence: str = Field("", max_length=MOST_LICENCE)


def checked_licence(licence: str) -> str:
    """:raises RecipeError: when it is not one line of text."""
    if len(licence) > MOST_LICENCE or printable(licence) != licence:
        raise RecipeError(
            f"--license {printable(licence[:MOST_LICENCE])}: give a name of one line, such as "
            f"apache-2.0 or cc-by-4.0, of at most {MOST_LICENCE} characters"
        )
    return licence.strip()


def model_card(facts: GeneratorFacts, use: str = "") -> str:
    """The card as Markdown with a YAML head.

    :param use: a paragraph on how to use what lies beside the card.
    """
    parts = [
        "\n".join(["---", *_head(facts), "---"]),
        f"# {_plain(facts.title)}",
        _about(facts),
        *(["## Use", use] if use else []),
        *_scores(facts),
        *_data(facts),
        "## Licence",
        f"Stated by the owner: {_plain(facts.licence)}." if facts.licence else _NO_LICENCE,
        "## Recipe",
        "The whole recipe. `ganlab run FILE` trains it again, with the data in their place.",
        _fenced(facts.recipe),
    ]
    return "\n\n".join(parts) + "\n"


_NO_LICENCE = (
    "Not stated. Weights have the licence that their owner gives them, within the terms of the "
    "training data."
)


def _head(facts: GeneratorFacts) -> Iterator[str]:
    """The YAML head, line by line. JSON is YAML, and quotes what a name may hold."""
    if licence := facts.licence.lower():
        known = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence)
        yield f"license: {_json(licence if known else 'other')}"
        if not known:
            yield f"license_name: {_json(re.sub(r'[^a-z0-9.]+', '-', licence).strip('-'))}"
    yield "library_name: ganlab"
    yield "pipeline_tag: image-to-image"
    yield 'tags: ["ganlab", "gan", "super-resolution"]'
    if facts.scores:
        figures = [{"type": n, "name": n, "value": round(v, 4)} for n, v in facts.scores.items()]
        result = {
            "task": {"type": "image-to-image", "name": f"x{facts.scale} super-resolution"},
            "dataset": {"type": "held-out", "name": ", ".join(facts.held_out) or "held-out images"},
            "metrics": figures,
        }
        yield f"model-index: {_json([{'name': facts.title, 'results': [result]}])}"


def _about(facts: GeneratorFacts) -> str:
    at = "" if facts.iteration is None else f" at iteration {facts.iteration:,}"
    return (
        f"A generator that enlarges photographs x{facts.scale}, trained with ganlab {__version__}: "
        f"the weights of the run {_plain(facts.name)}{at}. It takes RGB in 0..1, [1, "
        f"{facts.condition_shape[0]}, height, width], of any size."
    )


def _scores(facts: GeneratorFacts) -> Iterator[str]:
    yield "## Scores"
    if not facts.scores:
        yield (
            "The records have none of these weights. `ganlab eval RUN --data FOLDER` scores them "
            "on images."
        )
        return
    images = f"{len(facts.held_out)} held-out images" if facts.held_out else "held-out images"
    names = ", ".join(map(_plain, facts.held_out[:8]))
    more = ", ..." if len(facts.held_out) > 8 else ""
    yield f"Means over {images}, never trained on{f' ({names}{more})' if names else ''}."
    rows = ["| score | generator | bicubic |", "|---|---|---|"]
    for name, value in facts.scores.items():
        other = facts.bicubic.get(name)
        rows.append(f"| {name} | {value:.4g} | {'' if other is None else f'{other:.4g}'} |")
    yield "\n".join(rows)


def _data(facts: GeneratorFacts) -> Iterator[str]:
    if facts.training:
        yield "## Training data"
        yield "\n".join(f"- {_plain(line)}" for line in facts.training)


def _training(record: RunRecord) -> list[str]:
    found = record.data.get("training", {})
    return [f"{plugin}: {len(items):,} items" for plugin, items in found.items()]


def _fenced(text: str) -> str:
    ticks = max([2, *map(len, re.findall(r"`+", text))]) + 1  # the text cannot end the block
    return f"{'`' * ticks}toml\n{text.rstrip()}\n{'`' * ticks}"


def _plain(text: str) -> str:
    """A name that Markdown takes as text."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(text))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
