"""A run ends well whenever it ends: signals, closed terminals, commands that are no run."""

import errno
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
from children import Child, _ganlab, wait_until
from click.testing import CliRunner
from marks import posix
from safetensors import safe_open
from tiny import TINY

import ganlab.checkpoint
import ganlab.disk
import ganlab.files
import ganlab.generator_weights
import ganlab.runs.journal
from ganlab import stopping
from ganlab.checkpoint import last_checkpoint
from ganlab.cli import main
from ganlab.cli.output import lasting_output, lost_output
from ganlab.commands.generator import load_for_use
from ganlab.errors import GanlabError
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.runs.folder import RunFolder
from ganlab.runs.records import read_run
from ganlab.session import resume, start
from ganlab.stopping import Stopped, heard, heeding, held, released

# it waits at a hook until it is stopped, and says that it is there
WAITING = '''\
import time
from pathlib import Path

from ganlab import Plugin, hookimpl


def wait(folder):
    Path(folder, "there").touch()
    while True:
        time.sleep(0.01)


class Waiting(Plugin):
    """Takes for ever."""

    place: str
    at: str

    @hookimpl
    def check_recipe(self):
        if self.at == "check_recipe":
            wait(self.place)

    @hookimpl
    def evaluate(self, run):
        if self.at == "evaluate":
            wait(self.place)
        return {"one": 1.0}
'''


def begun(tiny: Path, *words: object, at: str = "", **environment: str) -> Child:
    """A command at work on the tiny recipe, perhaps waiting at a hook."""
    if at:
        (tiny.parent / "waiting.py").write_text(WAITING)
        plugin = f'waiting = {{ use = "./waiting.py", place = "{tiny.parent}", at = "{at}" }}\n'
        tiny.write_text(tiny.read_text() + plugin)
    child = Child(*words, cwd=tiny.parent, **environment)
    if at:
        wait_until((tiny.parent / "there").exists, child)
    return child


LONG = ("--set", "iterations=100000", "--set", "checkpoint_every=100000", "--name", "r")


def status_of(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def weights_are_of(run: Path) -> int:
    with safe_open(run / "generator.safetensors", "pt") as file:
        return json.loads(file.metadata()["ganlab"])["iteration"]


@posix
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_saved_and_with_weights_of_where_it_stopped(
    tiny: Path, name: str
) -> None:
    child = begun(tiny, "run", tiny, *LONG, "--set", "report_every=1")
    run = tiny.parent / "runs" / "r"
    wait_until(
        lambda: (run / "stats.jsonl").exists() and (run / "stats.jsonl").stat().st_size, child
    )
    child.send_signal(getattr(signal, name))
    assert child.wait() == (130 if name == "SIGINT" else 75), child.stderr
    status = status_of(run)
    assert status["state"] == "stopped"
    assert status["iteration"] == last_checkpoint(run / "checkpoints") == weights_are_of(run) > 0
    assert "finishing this iteration, then saving" in child.stderr
    assert "next: ganlab resume runs/r" in child.stderr


def test_a_run_that_is_stopped_as_it_begins_takes_one_iteration_and_keeps_it(tiny: Path) -> None:
    run = trained(tiny, called_off=lambda: True)
    status = status_of(run)
    assert (status["state"], status["iteration"]) == ("stopped", 1)
    assert last_checkpoint(run / "checkpoints") == weights_are_of(run) == 1


@posix
@pytest.mark.parametrize("words", [["run"], ["check"], ["bench"], ["compare", "other.toml"]])
def test_a_command_is_left_before_training_begins(tiny: Path, words: list[str]) -> None:
    (tiny.parent / "other.toml").write_text(f'extends = "{tiny.name}"\nbatch_size = 3\n')
    words = [*words[:1], str(tiny), *words[1:]]
    child = begun(tiny, *words, at="check_recipe")
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.stderr
    assert "Traceback" not in child.stderr
    assert "stopped by SIGTERM" in child.stderr or "interrupted" in child.stderr
    assert not list((tiny.parent / "runs").glob("*"))


@posix
def test_an_evaluation_is_left_and_the_run_saved_although_no_checkpoint_was_due(tiny: Path) -> None:
    child = begun(tiny, "run", tiny, *LONG, "--set", "evaluate_every=3", at="evaluate")
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.stderr
    run = tiny.parent / "runs" / "r"
    assert status_of(run)["state"] == "stopped"
    assert last_checkpoint(run / "checkpoints") == weights_are_of(run) == 3
    assert "the evaluation was stopped at iteration 3" in (run / "log.txt").read_text()


@posix
def test_a_second_signal_ends_a_run_at_once(tiny: Path) -> None:
    (tiny.parent / "stuck.py").write_text(
        "import time\nfrom pathlib import Path\nfrom ganlab import Plugin, hookimpl\n\n\n"
        "class Stuck(Plugin):\n    @hookimpl\n    def iteration_end(self, run):\n"
        "        while run.iteration == 1:\n"
        f"            Path({str(tiny.parent)!r}, 'there').touch()\n            time.sleep(0.01)\n"
    )
    tiny.write_text(tiny.read_text() + 'stuck = { use = "./stuck.py" }\n')
    child = begun(tiny, "run", tiny, *LONG)
    wait_until((tiny.parent / "there").exists, child)
    child.send_signal(signal.SIGTERM)
    wait_until(lambda: "once more: end now" in child.stderr, child)
    time.sleep(2 * stopping._AGAIN_SECONDS)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.stderr
    status = status_of(tiny.parent / "runs" / "r")
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert "nothing was saved" in status["message"]


def sent(*numbers: int, apart: float = 1.0, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Send signals to this process; how many came before it ended, None when it did not."""
    clock = iter(range(1000))
    monkeypatch.setattr(stopping.time, "monotonic", lambda: apart * next(clock))
    with heeding(), held():
        for count, number in enumerate(numbers, 1):
            try:
                signal.raise_signal(number)
            except Stopped:
                return count
        assert heard() == numbers[0]
    return None


@posix
@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (["SIGTERM", "SIGTERM"], 2),
        (["SIGTERM", "SIGINT"], 2),
        (["SIGHUP", "SIGHUP", "SIGHUP"], None),  # the system and the shell both send it
        (["SIGUSR1", "SIGTERM"], None),  # Slurm: soon, and now; it still waits for half a minute
        (["SIGUSR1", "SIGTERM", "SIGTERM"], 3),
    ],
)
def test_only_a_second_word_of_a_person_is_impatient(
    names: list[str], ends: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [getattr(signal, name) for name in names]
    assert sent(*numbers, monkeypatch=monkeypatch) == ends


@posix
def test_one_signal_that_is_delivered_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [signal.SIGTERM] * 2
    assert sent(*twice, apart=0.001, monkeypatch=monkeypatch) is None


@posix
def test_a_signal_that_is_ignored_at_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeding():
            signal.raise_signal(signal.SIGHUP)
            assert heard() is None
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_noted_while_held_and_raised_when_released() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(Stopped, match="stopped by SIGTERM"), heeding(), held():
        signal.raise_signal(signal.SIGTERM)
        done.append("went on")
        with released():
            done.append("never")
    assert done == ["went on"]
    assert signal.getsignal(signal.SIGTERM) is before


class Broken(io.StringIO):
    """A stream whose reader is gone, or whose disk is full."""

    number = errno.EPIPE

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_progress_that_nobody_reads_ends_no_run(
    tiny: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "number", number)
    monkeypatch.setattr(sys, "stderr", Broken())
    monkeypatch.chdir(tiny.parent)
    with pytest.raises(SystemExit) as end:
        main(["run", str(tiny), "--name", "r"])
    assert end.value.code == 0
    said = Path("runs/r/log.txt").read_text()
    assert "writing to runs/r" in said and "seed 0" in said


def test_lost_results_are_told_but_not_those_that_nobody_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, told in ((errno.EPIPE, ""), (errno.ENOSPC, "No space left")):
        monkeypatch.setattr(Broken, "number", number)
        monkeypatch.setattr(sys, "stdout", Broken())
        with lasting_output():
            print("figures")
            assert told in lost_output() and bool(told) == bool(lost_output())


def _into_nothing(*arguments: str) -> None:
    """The command with stdout and stderr in one pipe, whose reader goes after the first line."""
    reader, writer = os.pipe()
    for number in (1, 2):
        os.dup2(writer, number)
    os.close(writer)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # those there are of files
    if os.fork() == 0:
        os.close(1)
        os.close(2)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    _ganlab(*arguments)


@posix
def test_a_run_whose_output_ends_in_head_trains_to_its_end(tiny: Path) -> None:
    child = Child("run", tiny, "--name", "r", cwd=tiny.parent, function=_into_nothing)
    assert child.wait() == 0
    assert status_of(tiny.parent / "runs" / "r")["state"] == "done"


def test_what_a_failed_run_said_is_in_its_log_with_the_traceback(tiny: Path) -> None:
    (tiny.parent / "bad.py").write_text(
        "from ganlab import Plugin, hookimpl\n\n\nclass Bad(Plugin):\n    @hookimpl\n"
        "    def iteration_end(self, run):\n        {}['nothing']\n"
    )
    tiny.write_text(tiny.read_text() + 'bad = { use = "./bad.py" }\n')
    CliRunner().invoke(main, ["run", str(tiny), "--runs", str(tiny.parent / "runs"), "--name", "r"])
    said = (tiny.parent / "runs" / "r" / "log.txt").read_text()
    assert "Traceback" in said and "KeyError: 'nothing'" in said and "bad.py" in said


class Disk:
    """In the place of `os.write` and its kin: a disk that fails for some files from some time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.fails: tuple[str, ...] = ()
        self.number = number
        whole, append = ganlab.files.whole, ganlab.disk.append_whole

        @contextmanager
        def failing(path: Path, mode: str = "wb") -> Iterator[IO]:
            with whole(path, mode) as file:
                yield file
                self._fail(path)

        def failing_append(path: Path, content: bytes) -> None:
            with ganlab.disk.telling_disk(path, len(content)):
                self._fail(path)
            append(path, content)

        for module in (ganlab.files, ganlab.checkpoint, ganlab.generator_weights):
            monkeypatch.setattr(module, "whole", failing)
        monkeypatch.setattr(ganlab.runs.journal, "append_whole", failing_append)

    def _fail(self, path: Path) -> None:
        if path.name.endswith(self.fails):
            raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def trained(tiny: Path, *settings: str, called_off: Callable[[], bool] = lambda: False) -> Path:
    tiny.write_text(tiny.read_text().replace("evaluate_every = 100", "evaluate_every = 3"))
    recipe = load_recipe(tiny, ["iterations=8", "checkpoint_every=2", "report_every=1", *settings])
    runs = tiny.parent / "runs"
    with suppress(GanlabError):
        start(recipe, "cpu", Limits(called_off=called_off), runs, "r")
    return runs / "r"


FULL = ("ENOSPC", "EDQUOT", "EFBIG")
LIKE_OTHERS = ("EFBIG", "EACCES", "ENOENT")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in LIKE_OTHERS else [])
        for name in (*FULL, "EIO", "EROFS", "EACCES", "ENOENT")
    ],
)
def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once_with_the_reason(
    tiny: Path, disk: Disk, name: str
) -> None:
    disk.number = getattr(errno, name)
    checkpoints, iterations = tiny.parent / "runs" / "r" / "checkpoints", iter(range(100))

    def from_the_sixth_on() -> bool:
        number = next(iterations)
        while number == 5 and not (checkpoints / "0000004.sha256").exists():
            time.sleep(0.01)
        time.sleep(0.2 if number > 8 else 0)  # the writer's thread works meanwhile
        disk.fails = (".pt", "status.json") if number >= 5 else ()
        return False

    settings = ("iterations=100", "checkpoint_every=4", "evaluate_every=100")
    run = trained(tiny, *settings, called_off=from_the_sixth_on)
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "0000008.pt: could not be written: " + os.strerror(disk.number) in status["message"]
    assert "this run goes on from its checkpoint of iteration 4: ganlab resume" in status["message"]
    assert 8 <= status["iteration"] < 12, "not at the checkpoint after the next"
    room = "free in" in status["message"] and "needed" in status["message"]
    assert room == (name in FULL)
    disk.fails = ()
    assert resume(run, "cpu", Limits(max_iterations=10))[1] == 0


@pytest.fixture(scope="module")
def whole_stats(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """stats.jsonl of a run that nothing disturbs."""
    file = tmp_path_factory.mktemp("whole") / "tiny.toml"
    file.write_text(TINY)
    return (trained(file) / "stats.jsonl").read_bytes()


@pytest.mark.parametrize(
    "file", [".pt", ".sha256", "generator.safetensors", "stats.jsonl", "status.json"]
)
def test_a_run_that_carries_on_says_it_each_time_and_loses_nothing(
    tiny: Path, whole_stats: bytes, disk: Disk, file: str
) -> None:
    iterations = iter(range(100))

    def for_a_while() -> bool:
        time.sleep(0.05)
        disk.fails = (file,) if 3 <= next(iterations) < 6 else ()
        return False

    carries_on = 'on_failed_checkpoint="carry on"'
    run = trained(tiny, carries_on, called_off=for_a_while)
    assert status_of(run)["state"] == "done"
    assert f"{file}: could not be written: No space left" in (run / "log.txt").read_text()
    assert (run / "stats.jsonl").read_bytes() == whole_stats
    assert last_checkpoint(run / "checkpoints") == weights_are_of(run) == 8


def test_a_run_that_carries_on_does_not_end_as_done_when_its_last_state_is_lost(
    tiny: Path, disk: Disk
) -> None:
    disk.fails = (".pt",)
    run = trained(tiny, 'on_failed_checkpoint="carry on"')
    assert status_of(run)["state"] == "failed"
    assert (run / "log.txt").read_text().count("0000002.pt: could not be written") == 1


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    ganlab.disk.append_whole(file, b"one\n")
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
    try:
        with pytest.raises(ganlab.disk.NotWritten, match="4 bytes needed"):
            ganlab.disk.append_whole(file, b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "one\n"


def listed(runs: Path) -> str:
    result = CliRunner().invoke(main, ["runs", "--runs", str(runs), "--json"])
    return json.loads(result.stdout)[0]["state"]


@posix
def test_a_killed_run_is_told_from_a_running_one_and_who_runs_it_is_said(tiny: Path) -> None:
    child = begun(tiny, "run", tiny, *LONG, "--set", "evaluate_every=3", at="evaluate")
    run = tiny.parent / "runs" / "r"
    assert listed(run.parent) == "running"
    refused = CliRunner().invoke(main, ["resume", str(run), "--trust-code"])
    told = f"is in use by process {child.pid} on {socket.gethostname()} since 20"
    assert refused.exit_code == 1 and told in refused.stderr
    child.kill()
    child.wait()
    assert listed(run.parent) == read_run(run).state == "killed"
    with RunFolder(run).lock():  # what the killed process left does not keep others away
        assert listed(run.parent) == "running"
    assert listed(run.parent) == "killed"


@posix
def test_a_run_that_was_killed_before_its_first_step_is_told_so(tiny: Path) -> None:
    child = begun(tiny, "run", tiny, *LONG, at="check_recipe")
    (run,) = (tiny.parent / "runs").iterdir()
    assert listed(run.parent) == "running"
    child.kill()
    child.wait()
    assert listed(run.parent) == read_run(run).state == "killed"


def test_weights_that_are_older_than_the_run_say_so(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tiny)
    load_for_use(run, "last", "cpu")
    assert "weights are of" not in capsys.readouterr().err
    status = status_of(run)
    (run / "status.json").write_text(json.dumps(status | {"iteration": 11}))
    load_for_use(run, "last", "cpu")
    told = "the last weights are of iteration 8; the run has come to 11"
    assert told in capsys.readouterr().err
