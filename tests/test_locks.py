"""File systems without locks: the folder, the fault and the remedy are told before any work."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from marks import posix

from ganlab import ImageError, ImageStore
from ganlab.cli import main
from ganlab.runs.folder import RunFolder

GONE = 2**22 + 1  # Linux gives no process a number that large
NUMBERS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """flock fails, as on NFS without a lock server, on some SMB and FUSE mounts."""
    import fcntl

    def refused(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)
    return int(request.param)


@posix
@pytest.mark.parametrize("no_locks", NUMBERS, indirect=True)
def test_a_run_in_a_folder_without_locks_is_refused_and_leaves_nothing(
    no_locks: int, tiny: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["run", str(tiny), "--runs", str(tmp_path / "far")])
    assert result.exit_code == 1
    assert f"{tmp_path / 'far'}: cannot be locked ({os.strerror(no_locks)})" in result.stderr
    assert "--runs" in result.stderr
    assert "Traceback" not in result.output
    assert list((tmp_path / "far").iterdir()) == []


@posix
@pytest.mark.parametrize("no_locks", NUMBERS, indirect=True)
def test_a_cache_without_locks_is_named_with_the_remedy(no_locks: int, tmp_path: Path) -> None:
    images = [("a", torch.zeros(3, 4, 4, dtype=torch.uint8))]
    with pytest.raises(ImageError, match=r"far: cannot keep decoded.*GANLAB_CACHE.*with locks"):
        ImageStore.cached(tmp_path / "far" / "s.store", lambda first: images[first:])


@posix
@pytest.mark.parametrize("no_locks", NUMBERS[:1], indirect=True)
@pytest.mark.parametrize(
    ("host", "process", "in_use"),
    [
        ("", 0, False),
        (socket.gethostname(), os.getpid(), True),
        (socket.gethostname(), GONE, False),
        ("elsewhere", GONE, True),  # whose processes nobody here knows
    ],
    ids=["no holder", "at work", "gone", "of another machine"],  # the same in all test processes
)
def test_on_such_a_disk_a_run_is_in_use_if_its_holder_may_be_at_work(
    no_locks: int, tmp_path: Path, host: str, process: int, in_use: bool
) -> None:
    folder = RunFolder(tmp_path)
    if host:
        folder.holder.write_text(json.dumps({"host": host, "process": process}))
    assert folder.is_in_use() == in_use


def test_the_holder_of_a_lock_is_written_as_long_as_it_is_held(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock():
        told = json.loads(folder.holder.read_text())
        assert (told["process"], told["host"]) == (os.getpid(), socket.gethostname())
    assert not folder.holder.exists()
