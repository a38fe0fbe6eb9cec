"""`ganlab watch`: a run in the terminal, as it trains."""

import json
import math
import os
import signal
import struct
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import TINY

from ganlab.cli import main
from ganlab.commands import terminal_pictures, watch
from ganlab.commands.terminal_pictures import maker_for
from ganlab.runs.folder import RunFolder
from ganlab.runs.tail import Tail
from ganlab.stopping import Stopped
from ganlab.terminal import Terminal, sparkline

LINES = [
    {"iteration": 1, "G/pixel_loss": 0.5, "D/adversarial": 1.0},
    {"iteration": 2, "G/pixel_loss": 0.4, "D/adversarial": 0.0},
    {"iteration": 2, "evaluation/psnr_y": 20.0, "evaluation/psnr_rgb": 19.0},
    {"iteration": 3, "G/pixel_loss": 0.3, "D/adversarial": None},
    {"iteration": 4, "G/pixel_loss": 0.2, "D/adversarial": -1.0},
    {"iteration": 4, "evaluation/psnr_y": 21.5, "evaluation/psnr_rgb": 20.5},
]


def append(path: Path, *lines: dict) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunFolder]:
    """The folder of a run of 4 iterations that has taken none so far."""
    folder = RunFolder(tmp_path / "run-1")
    folder.samples.mkdir(parents=True)
    folder.recipe.write_text(TINY + "\n")
    folder.write_status("running", iteration=0, of=4)
    with folder.lock():
        yield folder


def plain() -> Terminal:
    return Terminal(file=StringIO(), width=100)


def screen() -> Terminal:
    return Terminal(file=StringIO(), width=100, height=50, force_terminal=True)


def written(console: Terminal) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_is_followed_until_it_ends(running: RunFolder) -> None:
    console, waits = plain(), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        append(running.stats, *LINES[3 * len(waits) - 3 : 3 * len(waits)])
        if len(waits) == 2:
            running.write_status(
                "done", iteration=4, of=4, bicubic={"psnr_y": 20.7}, best=[4, 21.5], message=""
            )

    assert watch.watch(running, console, wait) == "done"
    assert len(waits) == 2
    first, *rest = written(console).splitlines()
    assert first == "2/4  G/pixel_loss 0.4  D/adversarial 0  psnr_y 20"
    assert "run-1  done" in rest[0]
    assert "4/4" in rest[0]
    text = "\n".join(" ".join(line.split()) for line in rest)
    assert "psnr_y 21.5 ▁█ bicubic 20.7" in text
    assert "G/pixel_loss 0.2 █▆▃▁" in text
    assert "D/adversarial -1 █▅ ▁" in text
    assert "psnr_rgb" not in text


def test_a_run_that_has_ended_is_shown_once_with_how_it_ended(running: RunFolder) -> None:
    append(running.stats, *LINES)
    line = {"iteration": 4, "name": "dead", "since": 2, "sentence": "D is dead.", "action": "stop"}
    append(running.verdicts, line)
    running.write_status("diverged", iteration=4, of=4, message="G/x is \x1b[31mnot finite")
    console = plain()
    assert watch.watch(running, console, lambda _: pytest.fail("it waited")) == "diverged"
    assert "verdict: D is dead." in written(console)
    assert "diverged: G/x is \\x1b[31mnot finite" in written(console)
    assert "\x1b" not in written(console)


def test_a_run_without_its_process_is_shown_as_killed(running: RunFolder, tmp_path: Path) -> None:
    alone = RunFolder(tmp_path / "run-2")
    alone.path.mkdir()
    alone.recipe.write_text(TINY)
    alone.write_status("running", iteration=0, of=4)
    assert watch.watch(alone, plain(), lambda _: pytest.fail("it waited")) == "killed"


def test_the_pace_and_what_is_left_are_told(running: RunFolder) -> None:
    append(running.stats, *LINES[:3])
    append(running.timing, {"iteration": 1, "seconds": 30.0}, {"iteration": 2, "seconds": 50.0})
    seen = watch.Seen(running)
    seen.look()
    assert seen.pace() == (0.05, 50.0)
    seen.look()  # nothing new: the pace stays
    assert seen.pace() == (0.05, 50.0)
    console = plain()
    console.print(watch.display(seen, console))
    assert "0.05 iterations/s  ETA 0:40  trained 0:50" in written(console)


def test_the_pace_is_that_of_the_last_reports(running: RunFolder) -> None:
    slow = [{"iteration": n, "seconds": 9.0 * n} for n in range(1, 31)]
    fast = [{"iteration": 30 + n, "seconds": 270.0 + n} for n in range(1, watch.RECENT + 1)]
    append(running.timing, *slow, *fast)
    seen = watch.Seen(running)
    seen.look()
    assert seen.pace()[0] == 1.0


def test_ctrl_c_says_that_the_run_goes_on(running: RunFolder) -> None:
    def interrupt(_: float) -> None:
        raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped, match="the run itself is not stopped") as told:
        watch.watch(running, plain(), interrupt)
    assert told.value.exit_code == 130


def test_on_a_screen_each_new_strip_is_drawn_once(
    running: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderable = pytest.importorskip("textual_image.renderable")
    maker = terminal_pictures._scaled(renderable.SixelImage)
    monkeypatch.setattr(watch, "maker_for", lambda console: (maker, ""))
    steps = iter([2, 2, None, 4])

    def wait(_: float) -> None:
        number = next(steps, None)
        if number:
            picture = running.samples / f"{number:07d}.png"
            Image.new("RGB", (40, 60), "red").save(picture)
        elif len(list(running.samples.iterdir())) == 2:
            running.write_status("done", iteration=4, of=4)

    console = screen()
    assert watch.watch(running, console, wait) == "done"
    assert written(console).count("\x1bP") == 2
    assert "last strip" not in written(console)


def test_a_strip_that_is_no_picture_is_passed_over(running: RunFolder) -> None:
    broken = running.samples / "0000002.png"
    broken.write_text("half")
    drawn: list[object] = []
    strip = terminal_pictures.Strip(screen(), lambda image: str(drawn.append(image)))
    strip.show(broken, 20)
    strip.show(None, 20)
    assert drawn == []
    good = running.samples / "0000004.png"
    Image.new("L", (4, 4)).save(good)
    strip.show(good, 20)
    strip.show(good, 20)
    assert len(drawn) == 1


def test_without_the_extra_one_line_names_it(
    running: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "__stdin__", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setitem(sys.modules, "textual_image.renderable", None)
    make, told = maker_for(screen())
    assert make is None
    assert "pip install 'ganlab[terminal]'" in told
    assert maker_for(plain()) == (None, "")  # a file has no pictures, with or without it
    sample = Path("runs/x/samples/0000002.png")
    assert watch.told_of(sample, told) == f"last strip: {sample} ({told})"
    assert watch.told_of(None, told) == ""


def test_a_log_is_read_from_where_the_last_look_ended(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    tail = Tail(path)
    assert tail.look() == ([], False)
    append(path, *LINES[:2])
    assert tail.look() == (LINES[:2], True)
    with path.open("a") as file:
        file.write('not JSON\n{"iteration": "two"}\n{"iteration": 3, "G/x"')
    assert tail.look() == ([], False)
    with path.open("a") as file:
        file.write(": 1.5}\n")
    assert tail.look() == ([{"iteration": 3, "G/x": 1.5}], False)
    path.write_text(json.dumps(LINES[0]) + "\n")  # a sitting has begun: later lines are cut
    assert tail.look() == (LINES[:1], True)


def test_curves_of_a_sitting_that_began_anew_have_no_lines_twice(running: RunFolder) -> None:
    append(running.stats, *LINES)
    seen = watch.Seen(running)
    seen.look()
    other = running.stats.with_suffix(".new")
    append(other, *LINES[:2])
    other.replace(running.stats)
    seen.look()
    assert seen.series == {"G/pixel_loss": [0.5, 0.4], "D/adversarial": [1.0, 0.0]}
    assert seen.iteration == 2


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 2, 10, 12, 4, 8], 3, "▁█▅"),  # means of two: 1, 11, 6
        ([3, 3, 3], 8, "▅▅▅"),
        ([1, math.nan, 2], 8, "▁ █"),
        ([1e-4, 1e-2, 1.0], 8, "▁▅█"),  # on a logarithmic scale
        ([math.inf, math.nan], 8, ""),
        ([], 8, ""),
    ],
)
def test_a_sparkline_goes_from_the_lowest_value_to_the_highest(
    values: list[float], width: int, line: str
) -> None:
    assert sparkline(values, width) == line
    assert sparkline(values, width, ascii_only=True).isascii()


def test_the_command_shows_a_finished_run(running: RunFolder) -> None:
    append(running.stats, *LINES)
    running.write_status("stopped", iteration=4, of=4, message="time")
    result = CliRunner().invoke(main, ["watch", str(running.path)])
    assert result.exit_code == 0, result.output
    assert "G/pixel_loss" in result.stdout
    assert "stopped: time" in result.stdout
    assert f"next: ganlab resume {running.path}" in result.stderr


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "mark"), [("sixel", b"\x1bP"), ("kitty", b"f=100"), ("", b"")])
def test_in_a_real_terminal_the_strip_comes_in_the_way_that_it_knows(
    running: RunFolder, answer: str, mark: bytes
) -> None:
    pytest.importorskip("textual_image")
    Image.new("RGB", (40, 60), "red").save(running.samples / "0000004.png")
    append(running.stats, *LINES)
    running.write_status("done", iteration=4, of=4)
    output = in_terminal(answer, "watch", str(running.path))
    assert b"G/pixel_loss" in output
    assert mark in output
    assert (b"last strip" in output) == (answer == "")


def in_terminal(answer: str, *arguments: str) -> bytes:
    """What a command writes to a terminal that answers questions as one with such graphics does."""
    import fcntl
    import pty
    import termios

    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "ganlab", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 110, 1100, 1000))
    output = b""
    try:
        while chunk := os.read(terminal, 2**16):
            output += chunk
            if b"\x1b[c" in chunk:
                os.write(terminal, b"\x1b[?62;4c" if answer == "sixel" else b"\x1b[?62c")
            if answer == "kitty" and b"a=q" in chunk:
                os.write(terminal, b"\x1b_Gi=1;OK\x1b\\")
    except OSError:  # Linux: the other side has closed it
        pass
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output.decode(errors="replace")
    return output
