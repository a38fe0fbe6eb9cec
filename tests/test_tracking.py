"""A run is shown in other tools, and no tool can slow, change or end it."""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

from ganlab import RecipeError, Tracked, tracking
from ganlab.limits import Limits
from ganlab.recipe.model import Recipe, load_recipe
from ganlab.runs.folder import RunFolder
from ganlab.session import resume, start

HELD = """\
import torch
from ganlab import Plugin, hookimpl


class Held(Plugin):
    @hookimpl
    def evaluation_images(self):
        return {"a": torch.arange(3 * 48 * 48).remainder(255).byte().reshape(3, 48, 48)}
"""
SPY = '''\
from pathlib import Path

from ganlab import Tracker

CALLS = []
DO = {}


class Spy(Tracker):
    """Notes what it is given."""

    package, extra = "json", "ganlab[json]"

    def _note(self, what, *values):
        CALLS.append((what, *values))
        DO.get(what, lambda *v: None)(*values)

    def begin(self, run):
        self._note("begin", run)

    def log(self, iteration, figures):
        self._note("log", iteration, figures)

    def picture(self, iteration, file):
        assert file.is_file()
        self._note("picture", iteration, file.name)

    def flush(self):
        self._note("flush")

    def end(self, state):
        self._note("end", state)
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe with evaluations and a tracker that notes what it is given."""
    monkeypatch.setattr(tracking, "EVERY_SECONDS", 0.01)
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "spy.py").write_text(SPY)
    file = tmp_path / "tiny.toml"
    file.write_text(
        TINY.replace(
            "evaluate_every = 100", "evaluate_every = 2\nreport_every = 1\nwatch_every = 2"
        )
        + "held = { use = './held.py' }\nspy = { use = './spy.py' }\n"
    )
    return file


def spy_of(loaded: Recipe) -> Any:
    """The module of the spy: its `CALLS`, and `DO`, what it does at a call."""
    module = sys.modules[type(loaded.plugins["spy"]).__module__]
    module.CALLS.clear()
    module.DO.clear()
    return module


def train(recipe: Path, *changes: str, name: str = "run", **limits: Any) -> RunFolder:
    loaded = load_recipe(recipe, changes)
    folder, _ = start(loaded, "cpu", Limits(**limits), recipe.parent / "runs", name)
    return folder


def logged(calls: list[Any]) -> list[dict[str, float]]:
    """The lines that a tracker was given, as they stand in stats.jsonl."""
    return [{"iteration": call[1], **call[2]} for call in calls if call[0] == "log"]


def lines(folder: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in folder.stats.read_text().splitlines()]


def test_a_tracker_gets_each_line_and_picture_once_in_its_own_thread(recipe: Path) -> None:
    spy, threads = spy_of(load_recipe(recipe)), set()
    spy.DO["log"] = lambda *_: threads.add(threading.current_thread().name)
    folder = train(recipe)
    assert logged(spy.CALLS) == lines(folder)
    assert [call[2] for call in spy.CALLS if call[0] == "picture"] == ["0000002.png", "0000004.png"]
    assert threads == {"tracker spy"}
    names = {name for line in logged(spy.CALLS) for name in line}
    assert {"D/adversarial", "share/G/pixel_loss", "evaluation/psnr_y"} <= names
    (_, about), end = spy.CALLS[0], spy.CALLS[-1]
    assert end == ("end", "done")
    assert (about.name, about.iteration, about.best_metric) == ("run", 0, "evaluation/psnr_y")
    assert about.settings["gradient_penalty.weight"] == 10.0
    assert about.settings["batch_size"] == 2
    assert about.id == json.loads(folder.manifest.read_text())["id"]


def test_a_resumed_run_goes_on_without_a_point_twice(recipe: Path) -> None:
    spy = spy_of(load_recipe(recipe))
    folder = train(recipe, max_iterations=3)
    assert spy.CALLS[-1] == ("end", "stopped")
    resume(folder.path, "cpu", Limits())
    assert logged(spy.CALLS) == lines(folder)
    begun = [call[1] for call in spy.CALLS if call[0] == "begin"]
    assert [about.iteration for about in begun] == [0, 3]
    assert len({about.id for about in begun}) == 1


@pytest.mark.parametrize("when", ["begin", "log", "picture", "flush", "end"])
def test_a_tracker_that_fails_ends_no_run_and_is_told_once(
    recipe: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spy = spy_of(load_recipe(recipe))

    def fail(*_: object) -> None:
        raise SystemExit("no connection")  # the worst that a tool may do

    spy.DO[when] = fail
    folder = train(recipe)
    assert folder.read_status()["state"] == "done"
    told = [line for line in capsys.readouterr().err.splitlines() if "warning: tracker" in line]
    assert told == [
        "warning: tracker spy: SystemExit: no connection; it gets nothing more. The run folder has "
        "everything"
    ]
    names = [call[0] for call in spy.CALLS]
    assert {*names[names.index(when) + 1 :]} <= {"flush"}  # of what was taken before the error
    assert len(lines(folder)) == 6


def test_lines_that_a_tracker_missed_are_handed_over_in_the_next_sitting(recipe: Path) -> None:
    spy = spy_of(load_recipe(recipe))
    spy.DO["log"] = lambda iteration, _: time.sleep(1 / 0 if iteration == 2 else 0)
    folder = train(recipe, max_iterations=3)
    assert logged(spy.CALLS)[-1]["iteration"] == 2  # the call that failed
    spy_of(load_recipe(recipe))  # it is mended
    resume(folder.path, "cpu", Limits())
    assert logged(spy.CALLS) == [line for line in lines(folder) if line["iteration"] >= 2]


def test_training_does_not_wait_for_a_tracker_and_a_hung_one_is_left_behind(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spy, gate = spy_of(load_recipe(recipe)), threading.Event()
    spy.DO["begin"] = lambda *_: gate.wait(60)
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.1)
    folder = train(recipe)  # to its end, though the tracker has not even begun
    assert folder.read_status()["state"] == "done"
    assert [call[0] for call in spy.CALLS] == ["begin"]
    assert "warning: tracker spy: not done after 0 s" in capsys.readouterr().err
    gate.set()


def test_a_tracker_changes_no_byte_of_a_run(recipe: Path) -> None:
    spy_of(load_recipe(recipe))
    with_it = train(recipe, name="with")
    without = train(recipe, "spy=false", name="without")
    for name in ("stats.jsonl", "scores.jsonl", "samples/0000004.png"):
        assert (with_it.path / name).read_bytes() == (without.path / name).read_bytes()
    assert (with_it.path / "stats.jsonl").stat().st_size > 1000
    assert not [thread for thread in threading.enumerate() if "tracker" in thread.name]


def test_a_line_that_is_only_half_written_waits(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    spy, folder = spy_of(loaded), RunFolder(tmp_path)
    about = Tracked(tmp_path, "id", 0)
    follower = tracking.Follower(loaded.plugins["spy"], about, folder, print)
    folder.stats.write_text('{"iteration": 1, "G/a": 1.0}\n{"iteration": 2, "G/a"')
    follower._hand_over()
    assert logged(spy.CALLS) == [{"iteration": 1, "G/a": 1.0}]
    with folder.stats.open("a") as file:
        file.write(': null, "G/b": 2.0}\nnot a line\n{"iteration": 3, "G/a": 3.0}\n')
    follower._hand_over()
    assert logged(spy.CALLS)[1:] == [{"iteration": 2, "G/b": 2.0}, {"iteration": 3, "G/a": 3.0}]


def test_a_file_that_was_replaced_gives_only_its_new_lines(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    spy, folder = spy_of(loaded), RunFolder(tmp_path)
    follower = tracking.Follower(loaded.plugins["spy"], Tracked(tmp_path, "id", 0), folder, print)
    folder.stats.write_text('{"iteration": 1, "G/a": 1.0}\n')
    follower._hand_over()
    other = tmp_path / "other"
    other.write_text('{"iteration": 1, "G/a": 1.0}\n{"iteration": 1, "G/b": 2.0}\n')
    other.replace(folder.stats)
    follower._hand_over()
    assert logged(spy.CALLS) == [{"iteration": 1, "G/a": 1.0}, {"iteration": 1, "G/b": 2.0}]


def test_a_missing_package_is_told_before_data_are_read(recipe: Path) -> None:
    spy = recipe.parent / "spy.py"
    spy.write_text(spy.read_text().replace('"json", "ganlab[json]"', '"absent_tool", "ganlab[x]"'))
    with pytest.raises(RecipeError, match=r"tiny\.toml:\d+: .*spy: needs the package absent_tool: "
                       r"pip install 'ganlab\[x\]'"):  # fmt: skip
        train(recipe)
    assert not (recipe.parent / "runs").exists()


def test_tensorboard_has_what_stats_jsonl_has_across_two_sittings(recipe: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(recipe, "spy=false", "tensorboard={}", max_iterations=3)
    resume(folder.path, "cpu", Limits())
    read = EventAccumulator(str(folder.path / "tensorboard"))
    read.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in read.Tags()["scalars"]:
        for point in read.Scalars(name):
            assert name not in found.setdefault(point.step, {}), "a point twice"
            found[point.step][name] = point.value
    expected: dict[int, dict[str, float]] = {}
    for line in lines(folder):
        expected.setdefault(int(line.pop("iteration")), {}).update(line)
    assert found.keys() == expected.keys()
    for iteration, figures in expected.items():
        assert found[iteration] == pytest.approx(figures, rel=1e-6)  # it keeps float32
    assert [point.step for point in read.Images("samples")] == [2, 3, 4]
    assert read.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def expected_of(folder: RunFolder) -> dict[str, dict[int, float]]:
    """By name and iteration, what stats.jsonl has."""
    found: dict[str, dict[int, float]] = {}
    for line in lines(folder):
        iteration = int(line.pop("iteration"))
        for name, value in line.items():
            found.setdefault(name, {})[iteration] = value
    return found


def two_sittings(recipe: Path, tracker: str) -> RunFolder:
    folder = train(recipe, "spy=false", tracker, max_iterations=3)
    resume(folder.path, "cpu", Limits())
    assert "warning: tracker" not in folder.log.read_text()
    return folder


def test_mlflow_has_what_stats_jsonl_has_across_two_sittings(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    folder = two_sittings(recipe, "mlflow={}")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"  # no connection is opened
    client = MlflowClient((recipe.parent / "runs" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("ganlab")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["gradient_penalty.weight"] == "10.0"
    expected = {n.replace(",", ":"): values for n, values in expected_of(folder).items()}
    assert run.data.metrics.keys() == expected.keys()
    for name, values in expected.items():
        points = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in points] == list(values.items()), name
    kept = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "samples")]
    assert kept == ["0000002.png", "0000003.png", "0000004.png"]


def test_trackio_has_what_stats_jsonl_has_across_two_sittings(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(recipe.parent / "trackio"))  # read at the import
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    folder = two_sittings(recipe, "trackio={}")
    id_ = json.loads(folder.manifest.read_text())["id"]
    logs = SQLiteStorage.get_logs("ganlab", f"run-{id_[:8]}")
    for name, values in expected_of(folder).items():
        points = [(log["step"], log[name]) for log in logs if name in log]
        assert points == [(step, pytest.approx(value)) for step, value in values.items()], name
    assert [log["step"] for log in logs if "samples" in log] == [2, 3, 4]
    assert capsys.readouterr().out == ""  # stdout is for results


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, block = file.read_bytes(), 7, b"", 32768
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:
            place += left  # padding at the end of a block
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_has_what_stats_jsonl_has_across_two_sittings(recipe: Path) -> None:
    pytest.importorskip("wandb")
    folder = two_sittings(recipe, "wandb={}")
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    found: dict[str, dict[int, float]] = {}
    samples, ids, settings = [], set(), {}
    for record in (record for file in files for record in wandb_records(file)):
        if record.run.run_id:
            ids.add(record.run.run_id)
            items = record.run.config.update
            settings |= {item.key: json.loads(item.value_json) for item in items}
        row = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        samples += row.get("samples/captions", [])
        for name in row:
            if not name.startswith(("_", "samples")):
                known = found.setdefault(name, {})
                assert row["_step"] not in known, "a point twice"
                known[row["_step"]] = row[name]
    assert found == expected_of(folder)
    assert samples == ["iteration 2", "iteration 3", "iteration 4"]
    assert ids == {json.loads(folder.manifest.read_text())["id"]}
    assert settings["gradient_penalty.weight"] == 10.0


def test_the_tracker_that_the_page_shows_works(recipe: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "trackers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (recipe.parent / "one_file.py").write_text(code)
    path = recipe.parent / "evaluations.jsonl"
    shown = f"one_file={{ use = './one_file.py', path = '{path.as_posix()}' }}"
    folder = train(recipe, "spy=false", shown)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    expected = [line for line in lines(folder) if "evaluation/psnr_y" in line]
    assert written == [{"run": "run", **line} for line in expected]
    assert len(written) == 2
