"""`ganlab export`: a generator as a file for other programs, compared with it on photographs."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ganlab.commands.generator import load_file_for_use, load_for_use
from ganlab.commands.model_card import (
    GeneratorFacts,
    checked_licence,
    facts_of_file,
    facts_of_run,
    model_card,
)
from ganlab.errors import GanlabError, RecipeError, first_line, printable
from ganlab.export.comparison import PHOTOGRAPHS, Difference, difference, photographs
from ganlab.export.formats import FORMATS, Format, Opened, Source
from ganlab.files import new_folder, remove_stale, write_text
from ganlab.images.resampling import passing_matrices
from ganlab.runs.reference import is_run

FOLDER = Path("exported")
CARD = "README.md"
_OF_A_RUN = {"generator.safetensors": "last", "best.safetensors": "best"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    card: Path
    """The model card, a Markdown file."""
    is_new_card: bool
    """False where one was there already; it was kept."""
    difference: Difference
    """Between the file and the generator, on photographs."""
    opened_by: str
    """The program that opened the file for that."""
    tools: str
    """Which programs open such a file."""


def export_generator(
    run: Path,
    to: str,
    output: Path | None = None,
    weights: str = "last",
    half: bool = False,
    licence: str = "",
    overwrite: bool = False,
) -> Exported:
    """Write a generator as a file for other programs, open it there, and compare the pictures.

    The file appears only when they agree; an older one stays until then. A model card is written
    beside it.

    :param run: a run folder, or a .safetensors file of weights that ganlab wrote.
    :param to: a key of `FORMATS`.
    :param output: the folder; default: exported/ and the run's name, with -best for the best
        generator.
    :param weights: "last" or "best".
    :param half: float16 instead of float32.
    :param licence: of the weights, as their owner states it.
    :param overwrite: replace files and the card that are there already.
    :raises RecipeError: when the run has no weights or enlarges nothing, the generator has no such
        form, a package is missing, or a file is there already.
    :raises GanlabError: when the file gives other pictures than the generator; it is removed.
    """
    FORMATS[to].require()
    facts, source = _source(run, weights, licence)
    source.half = half
    folder = output or FOLDER / facts.name
    name = facts.title + "-fp16" * half
    targets = [folder / f"{name}{suffix}" for suffix in FORMATS[to].suffixes]
    if not overwrite and (there := [file for file in targets if file.exists()]):
        raise RecipeError(f"{there[0]} exists; give --overwrite, or another folder with --output")
    was_there = folder.is_dir()
    remove_stale(_made(folder))
    try:
        with new_folder(folder) as place:
            files = [place / file.name for file in targets]
            opened, found = _written(FORMATS[to](source), files)
            for file, target in zip(files, targets, strict=True):
                file.replace(target)
    finally:
        if not was_there:
            with suppress(OSError):  # something is in it
                folder.rmdir()
    card = folder / CARD
    if is_new := overwrite or not card.exists():
        write_text(card, model_card(facts))
    return Exported(tuple(targets), card, is_new, found, opened.by, opened.tools)


def as_data(found: Exported) -> dict[str, Any]:
    """What `ganlab export --json` prints."""
    return {
        "files": [str(file) for file in found.files],
        "card": str(found.card),
        "levels": found.difference.levels,
        "psnr": found.difference.psnr if found.difference.levels else None,  # JSON has no inf
        "opened_by": found.opened_by,
        "tools": found.tools,
    }


def lines(found: Exported) -> Iterator[str]:
    """The same for people."""
    for file in found.files:
        yield f"{file}: {file.stat().st_size:,} bytes"
    yield (
        f"opened by {found.opened_by}, on {len(PHOTOGRAPHS)} photographs it differs from the "
        f"generator by {found.difference}"
    )
    yield f"opens in: {found.tools}"
    kept = "" if found.is_new_card else " (it was there already and is kept)"
    yield f"model card: {found.card}{kept}"


def _source(run: Path, weights: str, licence: str) -> tuple[GeneratorFacts, Source]:
    """What is known of the generator, and the generator, in float32 on the CPU."""
    if run.is_file() and is_run(run.parent) and run.name in _OF_A_RUN:
        run, weights = run.parent, _OF_A_RUN[run.name]
    if run.is_file():
        facts = facts_of_file(run)
        facts = replace(facts, licence=checked_licence(licence) or facts.licence)
        generator = load_file_for_use(run, facts)
    else:
        facts = facts_of_run(run, weights, licence)
        _, generator, _ = load_for_use(run, weights, "cpu")
        facts = replace(facts, name=facts.name + "-best" * (weights == "best"))
    plain = generator.to(torch.float32).to(memory_format=torch.contiguous_format).eval()
    plain.requires_grad_(False)
    return facts, Source(plain, facts.scale, facts.condition_shape[0], facts.as_data())


def _written(made: Format, files: list[Path]) -> tuple[Opened, Difference]:
    """Write the files, open them again, and compare.

    :raises GanlabError: when the pictures differ by more than the bound.
    """
    made.write(*files)
    name, found, by = printable(files[0].name), None, ""
    try:
        opened = made.open(*files)
        by = opened.by
        with passing_matrices():
            pictures = photographs(made.source.channels)
            found = difference(opened.network, opened.expected, pictures)
        fault = found.fault(made.source.half)
    except RecipeError:
        raise
    except Exception as error:  # of all kinds: it is the other program's
        fault = first_line(error)
    if fault or found is None:
        told = f" (it differs by {found})" if found else ""
        raise GanlabError(
            f"{name} does not give the generator's pictures{by and f' in {by}'}: {fault}{told}; "
            "the file was not kept"
        )
    return opened, found


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"{folder}: cannot be made ({error.strerror}); choose another --output"
        ) from None
    return folder
