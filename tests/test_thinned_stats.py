"""stats.jsonl of a long run: a rule of the iteration alone says which lines are written."""

from pathlib import Path

import pytest
import torch

from ganlab.runs import journal as journals
from ganlab.runs.folder import RunFolder
from ganlab.runs.journal import EACH_UNTIL, Journal, is_written
from ganlab.runs.reading import Log


def test_every_iteration_is_written_up_to_ten_thousand_and_then_fewer_and_fewer() -> None:
    assert all(is_written(number) for number in range(1, EACH_UNTIL + 1))
    after = [number for number in range(EACH_UNTIL + 1, 80_000) if is_written(number)]
    assert after[:2] == [10_003, 10_010]
    assert [number for number in after if number > 70_000][:2] == [70_021, 70_070]
    assert sum(map(is_written, range(1, 490_001))) < 28_000


@pytest.mark.parametrize("interval", [2, 3, 4, 8, 16])
def test_what_is_computed_at_an_interval_is_still_seen(interval: int) -> None:
    seen = {number % interval for number in range(70_001, 75_000) if is_written(number)}
    assert seen == {*range(interval)}


def logged(folder: Path, stops: list[int]) -> bytes:
    """stats.jsonl of 40 iterations that are watched at each ninth and evaluated at each tenth."""
    folder.mkdir()
    begun = 0
    written = None
    for stop in [*stops, 40]:
        journal = Journal(RunFolder(folder), 40, 1, 3)
        journal.begin(begun, written=written)
        for number in range(begun + 1, stop + 1):
            extra = {"gradient/G/x": torch.tensor(2.0)} if number % 9 == 0 else {}
            journal.record(number, {"G/x": torch.tensor(1.0 / number), **extra})
            if number % 10 == 0:
                journal.evaluation(number, {"psnr_y": 30.0}, {}, {}, {})
        journal.flush()
        begun, written = stop, journal.written()
        journal.end()
    return (folder / "stats.jsonl").read_bytes()


def test_a_resumed_run_has_the_same_lines_and_watched_and_evaluated_ones_are_always_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "EACH_UNTIL", 5)
    whole = logged(tmp_path / "whole", [])
    assert logged(tmp_path / "resumed", [4, 17, 20, 38]) == whole
    numbers = [line["iteration"] for line in Log(tmp_path / "whole" / "stats.jsonl")]
    assert numbers == [1, 2, 3, 4, 5, 7, 9, 10, 14, 18, 20, 21, 27, 28, 30, 35, 36, 40]


def test_losses_beyond_the_written_ones_are_still_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "EACH_UNTIL", 5)
    journal = Journal(RunFolder(tmp_path), 40, 1, 100)
    journal.begin(8)
    journal.record(9, {"G/x": torch.tensor(float("nan"))})
    with pytest.raises(journals.Diverged):
        journal.flush()
