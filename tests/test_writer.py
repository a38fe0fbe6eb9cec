"""Files are written in order beside the training, and a failure is not lost."""

import gc
import io
import json
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from ganlab import checkpoint, engine
from ganlab.assembly import assemble
from ganlab.generator_weights import Weights
from ganlab.iteration import iterate
from ganlab.limits import Limits
from ganlab.recipe.model import load_recipe
from ganlab.runs.journal import Journal
from ganlab.runs.writer import Writer
from ganlab.session import start
from ganlab.state import state_of


def test_what_is_given_is_done_in_order_and_beside_the_giver() -> None:
    writer, done, gate = Writer(), [], threading.Event()
    writer.later(gate.wait)
    for number in range(5):
        writer.later(lambda number=number: done.append((number, threading.current_thread())))
    assert done == []
    gate.set()
    writer.close()
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    (thread,) = {thread for _, thread in done}
    assert thread is not threading.current_thread() and not thread.is_alive()


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_is_raised_and_ends_what_was_given_after_it() -> None:
    writer, done, gate = Writer(), [], threading.Event()
    writer.later(gate.wait)
    writer.later(fail)
    writer.later(done.append, 1)
    gate.set()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert done == []


def test_a_failure_is_raised_at_the_next_time() -> None:
    writer = Writer()
    writer.later(fail)
    time.sleep(0.2)
    with pytest.raises(OSError, match="No space left"):
        writer.later(print)
    writer.close()  # and once only


def test_a_state_is_a_copy_that_training_leaves_alone(tiny: Path) -> None:
    run = assemble(load_recipe(tiny, ["ema={}"]), torch.device("cpu"))
    iterate(run)
    state = state_of(run)
    before = torch.save(state, tiny.with_suffix(".a"))
    for run.iteration in range(1, 4):
        iterate(run)
    assert before is None
    torch.save(state, tiny.with_suffix(".b"))
    assert tiny.with_suffix(".a").read_bytes() == tiny.with_suffix(".b").read_bytes()


def test_training_does_not_wait_for_the_disk(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, began, ended = checkpoint.write_checkpoint, [], []

    def slow(state: dict, *others: object) -> Path:
        iteration = state["iteration"]
        began.append(iteration)
        gate.wait(10)
        path = whole(state, *others)
        ended.append(iteration)
        return path

    gate = threading.Event()
    monkeypatch.setattr("ganlab.engine.write_checkpoint", slow)

    def called_off() -> bool:
        asked.append(len(asked))  # before each iteration but the first
        if asked[-1] == 2:  # the checkpoint of iteration 2 is on its way
            at_work.append((list(began), list(ended)))
            gate.set()
        return False

    asked: list[int] = []
    at_work: list[tuple[list[int], list[int]]] = []
    folder, code = start(
        load_recipe(tiny), "cpu", Limits(called_off=called_off), tiny.parent / "runs"
    )
    assert code == 0
    assert at_work == [([2], [])]
    assert ended == [2, 4]
    assert len(list(folder.checkpoints.glob("*.sha256"))) == 2


def test_the_copy_of_a_state_is_freed_when_it_is_in_the_file(tiny: Path) -> None:
    run = assemble(load_recipe(tiny, ["ema={}"]), torch.device("cpu"))
    iterate(run)
    state = state_of(run)
    copies = [weakref.ref(tensor) for tensor in state["networks"]["G"].values()]
    gone: list[bool] = []
    gc.disable()  # it must not take a collection, which comes late or never
    try:
        checkpoint.write_checkpoint(
            state, tiny.parent, others=[lambda: gone.extend(copy() is None for copy in copies)]
        )
    finally:
        gc.enable()
    assert gone == [True] * len(copies)
    assert checkpoint.last_checkpoint(tiny.parent) == 0


def test_a_checkpoint_counts_before_the_evaluation_of_its_iteration(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[list[int]] = []
    whole = engine.write_weights

    def write_weights(weights: Weights, path: Path) -> None:
        counted.append(checkpoint.checkpoints_of(path.parent / "checkpoints"))
        whole(weights, path)

    monkeypatch.setattr(engine, "write_weights", write_weights)
    changes = ["evaluate_every=2"]
    folder, _ = start(load_recipe(tiny, changes), "cpu", Limits(), tiny.parent / "runs")
    assert counted == [[2], [2, 4]]
    assert checkpoint.checkpoints_of(folder.checkpoints) == [2, 4]


def test_lines_are_on_the_disk_before_the_checkpoint_that_relies_on_them(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, list[int], str]] = []
    whole = Journal.sync

    def sync(journal: Journal) -> None:
        whole(journal)
        lines = journal.folder.stats.read_text().splitlines()
        last = json.loads(lines[-1])["iteration"]
        counted = checkpoint.checkpoints_of(journal.folder.checkpoints)
        synced.append((last, counted, threading.current_thread().name))

    monkeypatch.setattr(Journal, "sync", sync)
    start(load_recipe(tiny), "cpu", Limits(), tiny.parent / "runs")
    assert [(counted, name.startswith("writer")) for _, counted, name in synced] == [
        ([], True), ([2], True), ([2, 4], False),
    ]  # fmt: skip
    assert all(last >= due for (last, *_), due in zip(synced, (2, 4, 4), strict=True))


def test_a_disk_that_fills_up_ends_the_run_as_failed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ganlab.engine.write_checkpoint", lambda *_: fail())
    with pytest.raises(OSError, match="No space left"):
        start(load_recipe(tiny), "cpu", Limits(), tiny.parent / "runs")
    (status,) = (tiny.parent / "runs").glob("*/status.json")
    assert '"failed"' in status.read_text()


class Broken(io.BytesIO):
    """A file whose second write fails."""

    writes = 0

    def write(self, data: object) -> int:
        self.writes += 1
        if self.writes == 2:
            raise OSError(5, "Input/output error")
        return super().write(data)


def test_an_error_of_the_disk_stays_one_though_torch_raises_another_after_it() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint._save({"numbers": torch.arange(100_000)}, Broken())


def test_a_checkpoint_waits_until_the_one_before_is_on_the_disk(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, together = [], []

    def slow(*_: object) -> None:
        at_work.append(1)
        together.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()

    copied = []

    def state_of(run: object) -> dict[str, object]:
        copied.append(len(at_work))
        return {}

    monkeypatch.setattr(engine, "write_checkpoint", slow)
    monkeypatch.setattr(engine, "state_of", state_of)
    changes = ["iterations=6", "checkpoint_every=1"]
    _, code = start(load_recipe(tiny, changes), "cpu", Limits(), tiny.parent / "runs")
    assert code == 0
    assert len(copied) == 6
    assert copied == [0] * 6
    assert together == [1] * 6
