"""Runs that are struck on purpose, and what must hold of them afterwards.

The functions here work in a process that has imported all that a run needs, and fork it: a fork
begins in a hundredth of a second where a new Python takes four. `tests/test_faults.py` calls them
with small numbers. `python tests/ordeals.py --help` runs the long proofs of
docs/explanation/reliability.md.
"""

import functools
import hashlib
import importlib
import inspect
import io
import json
import math
import mmap
import os
import pickle
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest.mock import patch

import click
import torch
from click.testing import CliRunner
from faults import Disk, Files, Operation, State, after_power_cut, replayed, write_state

RECIPE = """\
iterations = 2
batch_size = 1
evaluate_every = 1
checkpoint_every = 1
report_every = 1
watch_every = 0
on_verdict = "carry on"

[plugins]
image_folder = { path = "photos", evaluation_path = "held_out", crop = 16 }
bicubic = {}
srresnet = { width = 4, num_blocks = 1 }
patch_discriminator = { width = 4, num_layers = 1 }
bce = {}
pixel_loss = { kind = "mse" }
ema = { decay = 0.9 }
"""

OWN = {"report.html", "timing.jsonl", "status.json", "log.txt", ".lock", ".holder.json"}
"""Files of a run that hold times, or the number of the process."""


def make_game(folder: Path) -> None:
    """Put a recipe and its pictures into a folder, and import what its run needs, for all forks."""
    import torch._dynamo  # imported by the first optimizer

    from ganlab.images.files import write_png
    from ganlab.recipe.model import load_recipe

    generator = torch.Generator().manual_seed(0)
    for part, names in (("photos", "ab"), ("held_out", "c")):
        (folder / part).mkdir(parents=True)
        for name in names:
            image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
            write_png(image, folder / part / f"{name}.png")
    (folder / "game.toml").write_text(RECIPE)
    load_recipe(folder / "game.toml")


def command(*arguments: object) -> tuple[int, str]:
    """A `ganlab` command in this process: its exit code and all that it printed.

    :raises Exception: what a user would see as a traceback.
    """
    from ganlab.cli import main

    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def forked(log: Path, work: Callable[[], object]) -> int:
    """Begin to work in a fork of this process, and return its number."""
    number = os.fork()
    if number == 0:
        _work_and_exit(log, work)
    return number


def _work_and_exit(log: Path, work: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w"), "utf-8") for n in (1, 2))
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def ended(number: int) -> int:
    """Wait for a fork; its exit code, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def ganlab(*arguments: object) -> None:
    """A `ganlab` command as a fork carries it out."""
    from ganlab.cli import main

    sys.argv = ["ganlab", *map(str, arguments)]
    main()


def differences(one: Path, other: Path, was_done: bool = False) -> list[str]:
    """The names of files in which two runs differ; empty when they are equal to the byte.

    :param was_done: leave out temporary files: they are removed when a run goes on, and a run
        that was struck after its end does not.
    """
    left, right = contents(one), contents(other)
    names = sorted(left.keys() | right.keys())
    if was_done:
        names = [name for name in names if not name.endswith(".tmp")]
    return [name for name in names if left.get(name) != right.get(name)]


def contents(run: Path) -> dict[str, str]:
    """A digest of each file of a run, but those that hold times.

    Of a checkpoint and its digest, what counts is the state: the file also names its run.
    """
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name in OWN or path.suffix in (".sha256", ".log"):
            continue
        data = path.read_bytes()
        if path.suffix == ".pt":
            data = _state(path)
        if name == "manifest.json":
            data = json.dumps(_without_id(json.loads(data))).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _state(path: Path) -> bytes:
    """The tensors and numbers of a checkpoint as one text; equal values give equal texts."""

    def told(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            content = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
        if isinstance(value, dict):
            return [[repr(key), told(inner)] for key, inner in value.items()]
        return [told(inner) for inner in value] if isinstance(value, list | tuple) else repr(value)

    return json.dumps(told(_without_id(torch.load(path, weights_only=True)))).encode()


def _without_id(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in values.items() if key not in ("id", "run", "run_id", "begun")
    }


# --- what must hold after a strike ---------------------------------------------------------------


def outlived(folder: Path, name: str, whole: Path) -> str:
    """Look at a struck run, resume it, and compare it with the whole one.

    :returns: "equal", "not begun" when there is no run folder yet, or what is wrong.
    """
    run = folder / "runs" / name
    try:
        if (run / "recipe.toml").is_file():
            for looking in (("runs", "--runs", folder / "runs"), ("report", run)):
                code, told = command(*looking)
                if code not in (0, 1, 2) or (code and looking[0] == "runs"):
                    return f"{looking[0]}: exit code {code}: {told}"
        command_again = ("run", "game.toml", "--name", name, "--continue")
        with chdir(folder):
            code, told = command(*command_again)
    except Exception as error:
        return "traceback: " + "".join(traceback.format_exception(error)[-3:])
    if code != 0:
        return f"resume: exit code {code}: {told.strip().splitlines()[-1:]}"
    unequal = differences(whole, run, "nothing to continue" in told)
    return f"unequal: {', '.join(unequal)}" if unequal else "equal"


def some(total: int, number: int, rng: random.Random) -> list[int]:
    """Numbers 1 to `total`: all, or `number` of them, spread evenly from a random first one."""
    if not number or number >= total:
        return list(range(1, total + 1))
    first = rng.random()
    return [1 + int((first + index) * total / number) % total for index in range(number)]


def whole_run(folder: Path) -> Path:
    """The run that nothing struck."""
    log = folder / "whole.log"
    with chdir(folder):
        code = ended(forked(log, lambda: ganlab("run", "game.toml", "--name", "whole")))
    assert code == 0, log.read_text()
    return folder / "runs" / "whole"


# --- strikes at the n-th operation on the run's files --------------------------------------------


def failing(errno: int, from_then_on: bool) -> Callable[[int], Callable[[int, str], None]]:
    """A strike that raises an error at the n-th operation, or also at all that need space later."""

    def at(number: int) -> Callable[[int, str], None]:
        def strike(count: int, kind: str) -> None:
            later = from_then_on and count > number and kind in ("open", "write", "mkdir", "fsync")
            if count == number or later:
                raise OSError(errno, os.strerror(errno))

        return strike

    return at


def exiting(number: int) -> Callable[[int, str], None]:
    def strike(count: int, kind: str) -> None:
        if count == number:
            os._exit(EXITED)

    return strike


EXITED = 99
STRIKES: dict[str, Callable[[int], Callable[[int, str], None]]] = {
    "exit": exiting,
    "no space left": failing(28, from_then_on=True),
    "input/output error": failing(5, from_then_on=False),
}


def struck_run(folder: Path, name: str, strike: Callable[[int, str], None]) -> None:
    """Train in a new folder `name`, with a strike between Python and the system."""
    disk = Disk(folder / "runs", strike)
    with disk.between():
        try:
            ganlab("run", "game.toml", "--name", name)
        finally:
            (folder / "count").write_text(str(disk.count))


def strikes(kind: str, folder: Path, number: int, seed: int) -> Iterator[str]:
    """Strike runs at some or all of their operations; yields how each came out of it."""
    whole, rng, log = whole_run(folder), random.Random(seed), folder / "struck.log"
    with chdir(folder):
        ended(forked(log, lambda: struck_run(folder, "counted", lambda *_: None)))
        total = int((folder / "count").read_text())
        for at in some(total, number, rng):
            name = f"struck-{at}"
            strike = STRIKES[kind](at)
            code = ended(
                forked(log, lambda name=name, strike=strike: struck_run(folder, name, strike))
            )
            told = log.read_text()
            if "Traceback" in told or code < 0:
                yield f"{kind} at {at} of {total}: exit code {code}: {told[-2000:]}"
                continue
            found = outlived(folder, name, whole)
            yield found if found == "equal" else f"{kind} at {at} of {total}: {found}"
            shutil.rmtree(folder / "runs" / name)


# --- power cuts ----------------------------------------------------------------------------------


def power_cuts(folder: Path, number: int, seed: int) -> Iterator[str]:
    """Cut the power after some or all operations of one run; yields how it came out of each.

    What an acknowledged checkpoint needs must have been synced: its iteration is in the journal.
    """
    whole, rng, log = whole_run(folder), random.Random(seed), folder / "struck.log"
    with chdir(folder):
        assert ended(forked(log, lambda: noted_run(folder))) == 0, log.read_text()
        journal: list[Operation] = pickle.loads((folder / "journal").read_bytes())
        chosen = set(some(len(journal), number, rng))
        seen: set[bytes] = set()
        acknowledged = 0
        for at, files in enumerate(replayed(journal)):
            if at and journal[at - 1].kind == "acknowledged":
                acknowledged = journal[at - 1].data
            if at not in chosen:
                continue
            for way, state in ways_to_stop(files, rng).items():
                key = hashlib.sha256(pickle.dumps((state, acknowledged))).digest()
                if key not in seen:
                    seen.add(key)
                    found = after_a_cut(folder, state, acknowledged, whole)
                    where = f"{way} after {at} of {len(journal)}"
                    yield found if found in ("equal", "not begun") else f"{where}: {found}"


def noted_run(folder: Path) -> None:
    """A run whose operations are written into a file, with the checkpoints that counted."""
    from ganlab import engine

    real = engine.write_checkpoint

    def write_checkpoint(state: dict[str, Any], *rest: Any) -> Any:
        iteration = state["iteration"]
        path = real(state, *rest)
        disk.note("acknowledged", data=iteration)
        return path

    (folder / "runs").mkdir(exist_ok=True)
    disk = Disk(folder / "runs")
    with disk.between(), patch.object(engine, "write_checkpoint", write_checkpoint):
        try:
            ganlab("run", "game.toml", "--name", "cut")
        finally:
            (folder / "journal").write_bytes(pickle.dumps(disk.journal))


def ways_to_stop(files: Files, rng: random.Random) -> dict[str, State]:
    return {
        "synced names, synced contents": after_power_cut(files, "synced"),
        "all names, synced contents": after_power_cut(files, "all"),
        "all names, any contents": after_power_cut(files, "all", rng),
    }


def after_a_cut(folder: Path, state: State, acknowledged: int, whole: Path) -> str:
    """Whether a run survives as what is on the disk: its last counted checkpoint, at least."""
    from ganlab.checkpoint import last_checkpoint

    shutil.rmtree(folder / "cut", ignore_errors=True)
    shutil.rmtree(folder / "runs" / "cut", ignore_errors=True)
    write_state(state, folder / "cut")
    if not (folder / "cut" / "cut").is_dir():
        return f"lost: all of {acknowledged} iterations" if acknowledged else "not begun"
    (folder / "cut" / "cut").rename(folder / "runs" / "cut")
    kept = last_checkpoint(folder / "runs" / "cut" / "checkpoints") or 0
    if kept < acknowledged:
        return f"lost: the checkpoint of iteration {acknowledged}; there is that of {kept}"
    return outlived(folder, "cut", whole)


# --- kills and signals at random instants --------------------------------------------------------

PHASES = {
    "ganlab.session:new_run_folder": "making the folder",
    "ganlab.session:assemble": "assembling",
    "ganlab.images.store:ImageStore.save": "decoding",
    "ganlab.session:complete_record": "manifest",
    "ganlab.session:load_checkpoint": "loading a checkpoint",
    "ganlab.engine:iterate": "training",
    "ganlab.engine:Loop.evaluate": "evaluating",
    "ganlab.engine:state_of": "copying the state",
    "ganlab.engine:write_checkpoint": "writing a checkpoint",
    "ganlab.engine:write_weights": "writing weights",
    "ganlab.engine:write_samples": "writing samples",
    "ganlab.engine:keep_pictures": "writing pictures",
    "ganlab.live_page:Page.write": "writing the page",
    "ganlab.checkpoint:delete_checkpoint": "deleting a checkpoint",
}
_LABELS = ["between", *PHASES.values()]


class Watched:
    """What the forks of this process are at: shared memory that outlives them."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 16)

    def begin(self) -> None:
        self._shared[:16] = bytes(16)

    @property
    def acknowledged(self) -> int:
        return int.from_bytes(self._shared[8:12], "little")

    @property
    def begun(self) -> bool:
        """Whether it has entered any phase; before that, it cannot heed a signal yet."""
        return bool(self._shared[2])

    @property
    def phases(self) -> list[str]:
        """Of the main thread, then of the one that writes."""
        return [_LABELS[self._shared[slot]] for slot in (0, 1)]

    def watch(self) -> None:
        """Note from here on, in this fork, what it is at."""
        for number, where in enumerate(PHASES, 1):
            module, _, name = where.partition(":")
            owner: Any = importlib.import_module(module)
            *classes, name = name.split(".")
            for each in classes:
                owner = getattr(owner, each)
            setattr(owner, name, self._noting(number, inspect.getattr_static(owner, name)))

    def _noting(self, number: int, function: Any) -> Any:
        static = isinstance(function, classmethod)
        real = function.__func__ if static else function

        @functools.wraps(real)
        def noting(*arguments: Any, **options: Any) -> Any:
            slot = 0 if threading.current_thread() is threading.main_thread() else 1
            before, self._shared[slot], self._shared[2] = self._shared[slot], number, 1
            iteration = arguments[0]["iteration"] if real.__name__ == "write_checkpoint" else 0
            try:
                return real(*arguments, **options)
            finally:
                self._shared[slot] = before
                if iteration and sys.exc_info()[0] is None:
                    self._shared[8:12] = iteration.to_bytes(4, "little")

        return classmethod(noting) if static else noting


class Tally(NamedTuple):
    """What a loop of kills or signals has seen."""

    faults: list[str]
    strikes: Counter[str]
    """How often each phase of the main thread was struck."""
    beside: Counter[str]
    """And of the thread that writes."""
    codes: Counter[str]
    runs: int


def sweep(
    folder: Path, number: int, seed: int, signals: Sequence[int], until: float = math.inf
) -> Tally:
    """Strike runs with signals at random instants, until the number is reached.

    Each run is struck again and again while it starts or goes on, until it is done. Then it must
    equal the whole one. A strike that comes when the run is done already does not count.

    :param until: end at this time of `time.monotonic`, though the number is not reached.
    """
    rng, watched, tally = (
        random.Random(seed),
        Watched(),
        Tally([], Counter(), Counter(), Counter(), 0),
    )
    began = time.monotonic()
    whole = whole_run(folder)
    took = time.monotonic() - began
    while tally.strikes.total() < number and time.monotonic() < until:
        name = f"run-{seed}-{tally.runs}"
        tally = tally._replace(runs=tally.runs + 1)
        code = -1
        while code != 0:
            delay = rng.random() * rng.choice(SPANS) * took
            code = _struck_once(folder, name, rng, delay, rng.choice(signals), watched, tally)
            if code not in ALLOWED and watched.begun:
                log = (folder / "struck.log").read_text()[-2000:]
                tally.faults.append(f"{name}: exit code {code} at {watched.phases}: {log}")
                break
        else:
            was_done = "nothing to continue" in (folder / "struck.log").read_text()
            if unequal := differences(whole, folder / "runs" / name, was_done):
                tally.faults.append(f"{name}: unequal: {', '.join(unequal)}")
        shutil.rmtree(folder / "runs" / name, ignore_errors=True)
    return tally


ALLOWED = (0, -signal.SIGKILL, 75, 130)
SPANS = (0.3, 1.0, 2.0)  # of the time of a whole run: some strikes come early, some late


def _struck_once(
    folder: Path, name: str, rng: random.Random, delay: float, kind: int, watched: Watched,
    tally: Tally,
) -> int:  # fmt: skip
    """Begin or continue a run, and strike it; returns its exit code."""

    def work() -> None:
        watched.watch()
        ganlab("run", "game.toml", "--name", name, "--continue")

    if rng.random() < 0.3:  # decode the pictures again
        shutil.rmtree(os.environ["GANLAB_CACHE"], ignore_errors=True)
    watched.begin()
    with chdir(folder):
        child = forked(folder / "struck.log", work)
    time.sleep(delay)
    os.kill(child, kind)  # until it is waited for, a number is not given again
    main, other = watched.phases
    code = ended(child)
    tally.codes[str(code)] += 1
    if code != 0:
        tally.strikes[main] += 1
        tally.beside[other] += 1
        _check_kept(folder / "runs" / name, watched.acknowledged, tally)
    return code


def _check_kept(run: Path, acknowledged: int, tally: Tally) -> None:
    """Note it as a fault when a checkpoint that counted is lost, or the run cannot be read."""
    from ganlab.checkpoint import last_checkpoint
    from ganlab.runs.records import read_run

    kept = last_checkpoint(run / "checkpoints") or 0
    if kept < acknowledged:
        tally.faults.append(f"{run.name}: lost the checkpoint of iteration {acknowledged}")
    if (run / "recipe.toml").is_file():
        try:
            read_run(run)
        except Exception as error:
            tally.faults.append(f"{run.name}: cannot be read: {error!r}")


def comparisons(folder: Path, number: int, seed: int) -> Iterator[str]:
    """Kill comparisons with two workers, the parent alone or all three, and go on each time."""
    rng, took = random.Random(seed), 0.0
    recipes = [folder / f"{name}.toml" for name in ("one", "two")]
    for file, width in zip(recipes, (3, 4), strict=True):
        file.write_text(RECIPE.replace("srresnet = { width = 4", f"srresnet = {{ width = {width}"))
    for index in range(number + 1):
        runs = folder / f"compared-{index}"
        words = [*map(str, recipes), "--seeds", "0..1", "--jobs", "2", "--runs", str(runs)]
        call = [sys.executable, "-m", "ganlab", "compare", *words, "-o", str(runs / "page.html")]
        began = time.monotonic()
        process = subprocess.Popen(call, start_new_session=True, stderr=subprocess.PIPE)
        workers: set[int] = set()
        if index:
            time.sleep(rng.random() * took)
            workers = children_of(process.pid)
            rng.choice([os.kill, os.killpg])(process.pid, signal.SIGKILL)
            process.communicate()
            if left := still_there(workers, seconds=30):
                yield f"workers {left} live on after their parent"
            process = subprocess.Popen(call, start_new_session=True, stderr=subprocess.PIPE)
        told = process.communicate()[1].decode()
        took = took or time.monotonic() - began
        if process.returncode:
            yield f"exit code {process.returncode}: {told[-500:]}"
        elif index:
            yield _same_runs(folder / "compared-0", runs)


def _same_runs(one: Path, other: Path) -> str:
    names = sorted({run.name for runs in (one, other) for run in runs.iterdir() if run.is_dir()})
    unequal = {name: found for name in names if (found := differences(one / name, other / name))}
    return f"unequal: {unequal}" if unequal else "equal"


def children_of(parent: int) -> set[int]:
    """The numbers of all processes below one."""
    own = Path(f"/proc/{parent}/task/{parent}/children")
    direct = set(map(int, own.read_text().split())) if own.is_file() else set()
    return direct.union(*map(children_of, direct))


def still_there(processes: set[int], seconds: float) -> set[int]:
    """Those of some processes that live after a number of seconds."""
    deadline = time.monotonic() + seconds
    while (left := {n for n in processes if _lives(n)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def enlargements(folder: Path, number: int, seed: int) -> Iterator[str]:
    """Kill `ganlab upscale` of a folder at random instants, and call it again each time."""
    rng, run, log = random.Random(seed), whole_run(folder), folder / "upscale.log"

    def work(output: Path) -> Callable[[], None]:
        return lambda: ganlab("upscale", run, folder / "photos", "-o", output)

    began = time.monotonic()
    assert ended(forked(log, work(folder / "first"))) == 0, log.read_text()
    took = time.monotonic() - began
    for index in range(number):
        output = folder / f"enlarged-{index}"
        child = forked(log, work(output))
        time.sleep(rng.random() * took)
        os.kill(child, signal.SIGKILL)
        ended(child)
        if code := ended(forked(log, work(output))):
            yield f"exit code {code}: {log.read_text()[-500:]}"
        else:
            unequal = differences(folder / "first", output)
            yield f"unequal: {', '.join(unequal)}" if unequal else "equal"


# --- hours of training ---------------------------------------------------------------------------


def soak(folder: Path, seconds: int) -> dict[str, Any]:
    """Train for some time; memory, open files and files on the disk at its end.

    :returns: "growth" of the resident memory in its second half, as MiB an hour; the most and the
        least number of "open_files" in it; names of "temporary" files; "checkpoints" kept.
    """
    make_game(folder)
    recipe = RECIPE.replace("iterations = 2", "iterations = 100_000_000")
    recipe = recipe.replace("evaluate_every = 1", "evaluate_every = 20")
    (folder / "game.toml").write_text(recipe.replace("report_every = 1", "report_every = 10"))
    words = ("run", "game.toml", "--name", "long", "--max-time", f"{seconds}s")
    with chdir(folder):
        child = forked(folder / "long.log", lambda: ganlab(*words))
    process, samples, began = Path(f"/proc/{child}"), [], time.monotonic()
    while _lives(child):
        pages = int((process / "statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        samples.append((time.monotonic() - began, memory, len(list((process / "fd").iterdir()))))
        time.sleep(0.5)
    code = ended(child)
    times, memory, opened = zip(*samples[len(samples) // 2 : -2], strict=True)
    run = folder / "runs" / "long"
    return {
        "code": code,
        "iterations": json.loads((run / "status.json").read_text())["iteration"],
        "growth": 3600 * statistics.linear_regression(times, memory).slope,
        "open_files": [min(opened), max(opened)],
        "temporary": [path.name for path in run.rglob("*.tmp")],
        "checkpoints": len(list(run.glob("checkpoints/*.pt"))),
    }


# --- flipped bits and lost ends ------------------------------------------------------------------

RECORDS = ("stats.jsonl", "scores.jsonl", "timing.jsonl", "verdicts.jsonl", "status.json",
           "manifest.json", "data.json", "pictures/index.json", "recipe.toml")  # fmt: skip


def damaged(file: Path, rng: random.Random) -> str:
    """Flip one bit of a file, or cut off its end; says which."""
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        content[at] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        return f"a bit of byte {at:,} of {file.name}"
    file.write_bytes(content[:at])
    return f"{file.name} cut at {at:,} of {len(content):,} bytes"


def flips_of_checkpoints(run: Path, number: int, seed: int) -> Iterator[str]:
    """Damage the newest checkpoint or its digest; it must be told from a sound one each time."""
    from ganlab.checkpoint import checkpoint_file, checkpoints_of, is_sound, last_checkpoint

    rng, folder = random.Random(seed), run / "checkpoints"
    before, newest = checkpoints_of(folder)[-2:]
    file = checkpoint_file(folder, newest)
    for _ in range(number):
        target = rng.choice([file, file, file.with_suffix(".sha256")])
        content = target.read_bytes()
        what = damaged(target, rng)
        sound = is_sound(file)
        passed_over = last_checkpoint(folder) == before
        if target.suffix == ".sha256":  # the file's name in it counts for nothing
            same = target.read_bytes()[:64] == content[:64]
            yield "noticed" if passed_over or (same and sound) else f"unnoticed: {what}"
        else:
            yield "noticed" if passed_over and not sound else f"unnoticed: {what}"
        target.write_bytes(content)


def flips_of_weights(run: Path, number: int, seed: int) -> Iterator[str]:
    """Damage the weights for use; reading them must fail in one sentence that names the file."""
    from ganlab.commands.generator import load_for_use
    from ganlab.errors import GanlabError

    rng, file = random.Random(seed), run / "generator.safetensors"
    content = file.read_bytes()
    for _ in range(number):
        what = damaged(file, rng)
        try:
            load_for_use(run, "last", "cpu")
            yield f"unnoticed: {what}"
        except GanlabError as error:
            yield "noticed" if file.name in str(error) else f"not named: {what}: {error}"
        except Exception as error:
            yield f"traceback: {what}: {error!r}"
        file.write_bytes(content)


def flips_of_records(run: Path, number: int, seed: int) -> Iterator[str]:
    """Damage a record; looking at the run and its checkpoints must not end in a traceback."""
    rng, commands = random.Random(seed), ("report", "runs", "checkpoints")
    for index in range(number):
        file = run / rng.choice(RECORDS)
        if not file.is_file() or not (content := file.read_bytes()):
            continue
        what, which = damaged(file, rng), commands[index % len(commands)]
        try:
            code, told = command(which, *(["--runs", run.parent] if which == "runs" else [run]))
            yield "told" if code in (0, 1, 2) else f"{which}: exit code {code}: {what}: {told}"
        except Exception as error:
            yield f"traceback: {which}: {what}: {error!r}"
        file.write_bytes(content)


# --- many at once --------------------------------------------------------------------------------


def at_once(folder: Path, arguments: Sequence[object], number: int) -> tuple[Counter[int], str]:
    """Begin a command many times at one instant; the exit codes, and all that was said."""
    gate = mmap.mmap(-1, 1)

    def work() -> None:
        while not gate[0]:
            time.sleep(0.001)
        ganlab(*arguments)

    logs = [folder / f"at-once-{index}.log" for index in range(number)]
    with chdir(folder):
        children = [forked(log, work) for log in logs]
    time.sleep(0.1)
    gate[0] = 1
    codes = Counter(map(ended, children))
    return codes, "".join(log.read_text() for log in logs)


def many_at_once(folder: Path, number: int) -> dict[str, Any]:
    """Start one run many times at once, and resume one many times at once."""
    make_game(folder)
    run = ("run", "game.toml", "--name")
    started = at_once(folder, [*run, "same"], number)
    with chdir(folder):
        command(*run, "stopped", "--max-iterations", 1)
    resumed = at_once(folder, ["resume", "stopped"], number)
    whole = whole_run(folder)
    unequal = [differences(whole, folder / "runs" / name) for name in ("same", "stopped")]
    return {"started": started, "resumed": resumed, "unequal": unequal}


# --- one by one, from a test or from the command line --------------------------------------------

GOOD = frozenset({"equal", "not begun", "noticed", "told"})
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


def ordeal(name: str, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Put runs to one ordeal in an empty folder; figures for docs/explanation/reliability.md.

    :param number: of strikes; 0 means one at each operation, where operations are struck.
    :returns: "faults", a list that should be empty, and counts.
    """
    began = time.monotonic(), sum(os.times()[:4])
    make_game(folder)
    if name in ("kills", "signals"):
        signals = [signal.SIGKILL] if name == "kills" else STOPS
        found = sweep(folder, number, seed, signals)._asdict()
    else:
        outcomes = Counter(ORDEALS[name](folder, number, seed))
        faults = [f"{told} ({times})" for told, times in outcomes.items() if told not in GOOD]
        found = {"faults": faults, "outcomes": {t: n for t, n in outcomes.items() if t in GOOD}}
    took = time.monotonic() - began[0], sum(os.times()[:4]) - began[1]
    seconds, cpu_seconds = (round(each, 1) for each in took)
    return {"ordeal": name, "seed": seed, "seconds": seconds, "cpu_seconds": cpu_seconds} | found


def _flips(flip: Callable[[Path, int, int], Iterator[str]]) -> Callable[..., Iterator[str]]:
    return lambda folder, number, seed: flip(whole_run(folder), number, seed)


ORDEALS: dict[str, Callable[[Path, int, int], Iterator[str]]] = {
    kind: functools.partial(strikes, kind) for kind in STRIKES
} | {
    "power cuts": power_cuts,
    "enlargements": enlargements,
    "comparisons": comparisons,
    "flips of checkpoints": _flips(flips_of_checkpoints),
    "flips of weights": _flips(flips_of_weights),
    "flips of records": _flips(flips_of_records),
}


def from_a_test(name: str, number: str, seed: str) -> None:
    """An ordeal in the current folder; the figures go to stdout."""
    folder = Path("game").resolve()
    special = {
        "many at once": lambda: many_at_once(folder, int(number)),
        "soak": lambda: soak(folder, int(number)),
    }
    work = special.get(name, lambda: ordeal(name, int(number), int(seed), folder))
    print(json.dumps(work()))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*ORDEALS, "kills", "signals"]))
@click.option("--number", default=1000, help="Strikes of each ordeal in all; 0: each operation.")
@click.option("--tally", type=click.Path(path_type=Path), default="tally.jsonl")
def main(names: Sequence[str], number: int, tally: Path) -> None:
    """Put runs to ordeals, and add the figures to a file, a line for each part.

    The file is read first: what it counts already is not done again. So the same command goes on
    where it was stopped. At the end it prints a summary.
    """
    for name in names or [*ORDEALS, "kills", "signals"]:
        known = [json.loads(line) for line in _lines(tally)]
        known = [line for line in known if line["ordeal"] == name]
        while (done := sum(map(_count, known))) < number or not (number or known):
            with tempfile.TemporaryDirectory() as place:
                os.environ |= {"GANLAB_CACHE": f"{place}/cache", "GANLAB_STATE": f"{place}/state"}
                part = number and min(PART, number - done)
                known.append(ordeal(name, part, len(known), Path(place, "game")))
            with tally.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
        print(summary(name, known))


PART = 50  # strikes after which the figures are written


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _count(line: dict[str, Any]) -> int:
    return sum((line.get("strikes") or line.get("outcomes") or {}).values()) + len(line["faults"])


def summary(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """The figures of all parts of one ordeal in one line."""
    kinds: Counter[str] = Counter()
    for line in lines:
        for key in ("outcomes", "strikes", "beside", "codes"):
            kinds.update({f"{key[:-1]} {n}": c for n, c in line.get(key, {}).items()})
    faults = [fault for line in lines for fault in line["faults"]]
    seconds = sum(line["seconds"] for line in lines)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return "\n".join([f"{name}: {sum(map(_count, lines)):,} strikes in {seconds:,.0f} s, "
                      f"{len(faults)} faults; {told}", *faults])  # fmt: skip


if __name__ == "__main__":
    main()
