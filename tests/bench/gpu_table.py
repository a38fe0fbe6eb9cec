"""The table of speeds on a CUDA device, in eight minutes: every way to take a step, side by side.

SRResNet and RRDB at x4 against the VGG discriminator, HR crops of 128 x 128, L1 and an adversarial
loss, an average of G, G first. Needs nothing but ganlab.

    python tests/bench/gpu_table.py -o table.json               # all; Markdown on stdout
    python tests/bench/gpu_table.py --ways eager-bf16 graphs-bf16
    python tests/bench/gpu_table.py --device cpu --smoke        # does the script itself work?
"""

import argparse
import gc
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from against_plain import PHOTOGRAPHS

from ganlab.assembly import assemble
from ganlab.errors import RecipeError
from ganlab.iteration import iterate
from ganlab.recipe.model import load_recipe
from ganlab.run import Run
from ganlab.runs.environment import describe_environment
from ganlab.speed.device import begin_peak_memory, peak_memory, pick_device

RECIPE = """\
iterations = 1_000_000
batch_size = {batch}
first = "generator"
compile = "{compile}"
precision = "{precision}"
watch_every = 0

[plugins]
image_folder = {{ path = {images}, crop = {crop} }}
bicubic = {{ scale = 4 }}
{generator}
vgg_discriminator = {{ width = {d_width}, norm = "{norm}" }}
{objective}
pixel_loss = {{ weight = 1.0 }}
ema = {{ decay = 0.999, warmup = false }}
"""
GENERATORS = {
    "SRResNet-16": 'srresnet = {{ norm = "none", width = {width}, num_blocks = {num_residual} }}',
    "RRDB-23": "rrdb = {{ width = {width}, growth = {growth}, num_blocks = {num_rrdb} }}",
}
# name -> the discriminator's norm, and the plugins
GAMES = {
    "GAN": ("batch", "bce = { weight = 0.005 }"),
    "WGAN-GP": ("none", "wasserstein = { weight = 0.005 }\ngradient_penalty = { weight = 10.0 }"),
    "GAN + R1": ("none", "bce = { weight = 0.005 }\nr1 = { weight = 10.0 }"),
}
# name -> the recipe's compile and precision
WAYS = {
    "eager-fp32": ("off", "float32"),
    "eager-bf16": ("off", "bfloat16"),
    "graphs-bf16": ("graphs", "bfloat16"),
    "networks-bf16": ("networks", "bfloat16"),
}
FULL = {"width": 64, "num_residual": 16, "growth": 32, "num_rrdb": 23, "d_width": 64,
        "crop": 128}  # fmt: skip
SMOKE = {"width": 4, "num_residual": 1, "growth": 4, "num_rrdb": 1, "d_width": 4, "crop": 32}
ROUNDS = 3
NO_TIME, NO_MEMORY = "left out: no time", "out of memory"
WARM_UPS = 12  # the fourth iteration is captured; after the others a compiler has seen every case

# (generator, game, batch) -> images/s on an H200 in bf16, with operations and memory traffic wholly
# overlapped, and with none. Arithmetic, no measurement: the operations of a step at 790 TFLOP/s and
# its bytes at 4.3 TB/s, both as measured on that card. D judges G's images twice in it; once, as in
# ganlab, takes 0.91 of SRResNet's operations and 0.97 of RRDB's.
FLOORS = {
    ("SRResNet-16", "GAN", 16): (15_460, 6_860),
    ("SRResNet-16", "GAN", 32): (15_460, 7_100),
    ("SRResNet-16", "GAN", 64): (15_460, 7_270),
    ("SRResNet-16", "WGAN-GP", 16): (10_150, 4_820),
    ("RRDB-23", "GAN", 16): (5_420, 2_100),
    ("RRDB-23", "GAN", 32): (5_420, 2_140),
    ("RRDB-23", "GAN", 64): (5_420, 2_170),
    ("RRDB-23", "WGAN-GP", 16): (4_580, 1_860),
}


@dataclass
class Cell:
    """A row of the table: what is timed, then what was found."""

    generator: str
    game: str
    batch: int
    way: str
    fault: str = NO_TIME
    """Why there are no figures; "" when there are."""
    notes: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of an iteration, in each round."""
    data_seconds: float = 0.0
    """Of a batch alone, waited for."""
    peak: int = 0
    """Bytes of tensors at most, from the building of the networks on."""
    reserved: int = 0
    """Bytes that torch held at most; CUDA only."""

    @property
    def label(self) -> str:
        return f"{self.generator}, {self.game}, batch {self.batch}, {self.way}"

    @property
    def images_per_second(self) -> float:
        return self.batch / median(self.seconds)


class OutOfTimeError(BaseException):
    """The budget is used up. No Exception, since whatever tries a quicker way catches those."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError within it once so many seconds have passed, whatever is at work."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    if seconds <= 0:
        raise OutOfTimeError
    before = signal.signal(signal.SIGALRM, stop)
    # again and again: one that is raised in a callback of C code is lost
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def all_cells(batches: list[int], ways: list[str]) -> list[Cell]:
    """The table in order: penalties, and the compiler, which takes its time, at one batch size."""
    return [
        Cell(generator, game, batch, way)
        for generator in GENERATORS
        for game in GAMES
        for batch in (batches if game == "GAN" else batches[:1])
        for way in WAYS
        if way in ways and (way != "networks-bf16" or batch == batches[0])
    ]


def recipe_text(cell: Cell, sizes: dict[str, int], images: Path) -> str:
    compile_, precision = WAYS[cell.way]
    norm, objective = GAMES[cell.game]
    return RECIPE.format(
        **sizes,
        batch=cell.batch,
        compile=compile_,
        precision=precision,
        images=json.dumps(str(images)),
        generator=GENERATORS[cell.generator].format(**sizes),
        norm=norm,
        objective=objective,
    )


def measure(cell: Cell, recipe: Path, device: torch.device, warm_ups: int, seconds: float) -> None:
    """Fill in the cell.

    :param seconds: to be spent on the timing itself, in all rounds.
    """
    run = assemble(load_recipe(recipe), device)
    with run.execution.running():
        timed(run, warm_ups)
        count = max(1, round(seconds / ROUNDS / timed(run, min(3, warm_ups))))
        cell.seconds = [timed(run, count) for _ in range(ROUNDS)]
        cell.data_seconds = timed_data(run, min(count, 50))
    cell.notes += run.notes
    cell.peak = peak_memory(device)
    cell.reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    if not all(weight.isfinite().all() for weight in run.G.parameters()):
        cell.notes.append("the weights of G are not finite")
    cell.fault = ""


def timed(run: Run, count: int) -> float:
    """Seconds of an iteration, the mean of so many; the device is waited for before and after."""
    wait(run.device)
    began = time.perf_counter()
    for _ in range(count):
        iterate(run)
        run.iteration += 1
    wait(run.device)
    return (time.perf_counter() - began) / count


def timed_data(run: Run, count: int) -> float:
    """Seconds of one batch, the mean of so many, with nothing beside it."""
    wait(run.device)
    began = time.perf_counter()
    for _ in range(count):
        run.hook.sample_batch(batch_size=run.recipe.batch_size, device=run.device)
    wait(run.device)
    return (time.perf_counter() - began) / count


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attempt(cell: Cell, device: torch.device, folder: Path, images: Path, smoke: bool,
            seconds: float) -> None:  # fmt: skip
    """Measure a cell; what is in the way becomes its fault, and its memory is given back."""
    recipe = folder / "cell.toml"
    recipe.write_text(recipe_text(cell, SMOKE if smoke else FULL, images))
    wait(device)  # CUDA has begun then, which the next line wants
    begin_peak_memory(device)
    try:
        measure(cell, recipe, device, 2 if smoke else WARM_UPS, seconds)
    except torch.OutOfMemoryError:
        cell.fault = NO_MEMORY
    except RecipeError:
        raise  # such as a folder without images: the same for every cell
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        cell.fault = f"{type(error).__name__}: {first}"
    # after the except clauses, whose errors hold all that was on the stack
    if cell.way == "networks-bf16":
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(cells: list[Cell], device_name: str) -> str:
    """All cells in Markdown."""
    floors = FLOORS if "H200" in device_name else {}
    head = ["generator", "game", "batch", "way", "images/s", "ms an iteration"]
    head += ["of the floor", "of it without overlap"] if floors else []
    head += ["data", "peak GiB", "held GiB"]
    rows = [head, ["---"] * 2 + ["---:"] + ["---"] + ["---:"] * (len(head) - 4)]
    for cell in cells:
        row = [cell.generator, cell.game, str(cell.batch), cell.way]
        if cell.fault:
            row += [cell.fault.replace("|", "\\|")] + [""] * (len(head) - 5)
        else:
            step = median(cell.seconds)
            row += [f"{cell.images_per_second:,.0f}", f"{1000 * step:.2f}"]
            if floors:
                known = floors.get((cell.generator, cell.game, cell.batch), ())
                of = [f"{cell.images_per_second / floor:.0%}" for floor in known]
                # they are those of bf16
                row += of if of and cell.way.endswith("bf16") else ["", ""]
            row += [f"{cell.data_seconds / step:.1%}", f"{cell.peak / 2**30:.2f}"]
            row += [f"{cell.reserved / 2**30:.2f}" if cell.reserved else ""]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report(cells: list[Cell], environment: dict[str, Any]) -> str:
    """The machine, the table, how to read it, and what ganlab said on the way."""
    versions, device_name = environment["versions"], environment["device_name"]
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    lines = [
        f"{device_name}, torch {versions['torch']}{cuda if torch.version.cuda else ''}, ganlab "
        f"{versions['ganlab']} ({environment['code'][:12]}), {date.today().isoformat()}",
        "",
        table(cells, device_name),
        "",
        f"An iteration is a G and a D step; the median of {ROUNDS} rounds. data: a batch made "
        "alone and waited for, as a part of an iteration. peak: of tensors, from assembly on, the "
        "trial of a quicker way included. held: by torch's allocator, the graphs' pool included. "
        "fp32: as torch has it, convolutions in TF32. cuDNN tries its algorithms for graphs alone.",
    ]
    if "H200" in device_name:
        lines.append(
            "The floors are arithmetic: operations at 790 TFLOP/s, bytes at 4.3 TB/s, of a step in "
            "which D judges G's images twice; ganlab has it judge them once."
        )
    notes = [f"- {cell.label}: {note}" for cell in cells for note in cell.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def photographs(folder: Path) -> Path:
    data = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    (folder / "photographs").mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(data / name, folder / "photographs")
    return folder / "photographs"


def measure_all(cells: list[Cell], given: argparse.Namespace, device: torch.device,
                tell: Callable[[], None]) -> None:  # fmt: skip
    """Attempt one cell after another, and `tell` after each.

    By way, so that the compiler comes last: it may take all the time there is.
    """
    order = sorted(cells, key=lambda cell: list(WAYS).index(cell.way))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = given.images or photographs(folder)
        if not given.images:
            os.environ["GANLAB_CACHE"] = str(folder / "cache")
        for number, cell in enumerate(order, 1):
            attempt(cell, device, folder, images.resolve(), given.smoke, given.seconds)
            found = cell.fault or f"{cell.images_per_second:,.0f} images/s"
            print(f"{number} of {len(order)}: {cell.label}: {found}", file=sys.stderr, flush=True)
            tell()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=float, default=450, help="seconds for all; 450")
    parser.add_argument("--seconds", type=float, default=2.4, help="of timing, for a cell; 2.4")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--images", type=Path, help="a folder; else five of scikit-image's")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few iterations")
    parser.add_argument("-o", "--output", type=Path, help="write all figures as JSON")
    given = parser.parse_args(arguments)
    try:
        device = pick_device(given.device)
    except RecipeError as error:
        parser.error(str(error))
    if device.type != "cuda" and not given.smoke:
        parser.error("the table is of a CUDA device; elsewhere --smoke tries the script")
    if given.smoke:
        given.batches, given.seconds = [2], 0.0
    environment = describe_environment(device)
    cells = all_cells(given.batches, given.ways)

    def tell() -> None:
        if given.output:
            found = {"date": date.today().isoformat(), "environment": environment}
            found["cells"] = [asdict(cell) for cell in cells]
            given.output.write_text(json.dumps(found, indent=1))

    tell()
    with suppress(OutOfTimeError), at_most(given.budget):
        measure_all(cells, given, device, tell)
    print(report(cells, environment))
    known = ("", NO_TIME, NO_MEMORY)
    return 0 if all(cell.fault in known for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
