"""Parts of files at an address: cut connections and slow servers are tried again, and then told."""

from pathlib import Path

import pytest
from loopback import Folder, showing

from ganlab import ImageError, Ranges
from ganlab.images import ranges as module
from ganlab.images.ranges import Refused

CONTENT = bytes(range(256)) * 40

pytest.importorskip("aiohttp", reason="ganlab[shards] is not installed")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.001)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "a b.tar").write_bytes(CONTENT)
    return tmp_path


def failing(*faults: str):
    """Faults of the first requests, in turn."""
    return lambda number: faults[number] if number < len(faults) else ""


def test_a_part_is_read_alike_from_a_folder_and_an_address(root):
    with showing(Folder(root)) as server:
        for place in (root, server.address, f"{server.address}/"):
            assert Ranges(place).read("a b.tar", 1000, 77) == CONTENT[1000:1077]
            assert Ranges(place).whole("a b.tar", len(CONTENT)) == CONTENT
        assert server.asked[0] == ("/a%20b.tar", "bytes=1000-1076")


@pytest.mark.parametrize("fault", ["cut", "reset", "503", "429"])
def test_what_was_cut_is_tried_again_four_times(root, fault):
    with showing(Folder(root, failing(*[fault] * 4))) as server:
        ranges = Ranges(server.address)
        assert ranges.read("a b.tar", 5, 100) == CONTENT[5:105]
        assert (ranges.reads, len(server.asked)) == (1, 5)
        assert ranges.cuts == 4 or fault == "reset"  # aiohttp tries some of these itself


@pytest.mark.parametrize(
    ("fault", "told"), [("cut", "connection was cut"), ("500", "server answers 500")]
)
def test_after_five_cuts_the_read_is_one_error(root, fault, told):
    with showing(Folder(root, lambda number: fault)) as server:
        with pytest.raises(ImageError, match=f"a b.tar: the {told}.*, 5 times in a row"):
            Ranges(server.address).read("a b.tar", 5, 100)
        assert len(server.asked) == 5


def test_a_slow_answer_counts_as_cut(root):
    with showing(Folder(root, failing("slow"), slow_seconds=1)) as server:
        ranges = Ranges(server.address, patience=0.2)
        assert ranges.read("a b.tar", 0, 9) == CONTENT[:9]
        assert ranges.cuts == 1
        slow = Ranges(server.address, patience=0.05, attempts=2)
        server.faults = lambda number: "slow"
        with pytest.raises(ImageError, match=r"no whole answer within 0\.05 seconds, 2 times"):
            slow.read("a b.tar", 0, 9)


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_a_refusal_is_told_at_once(root, status):
    with showing(Folder(root, lambda number: status)) as server:
        with pytest.raises(ImageError, match=r"a(%20| )b\.tar: (the server answers|no such file)"):
            Ranges(server.address).read("a b.tar", 0, 9)
        assert len(server.asked) == 1


def test_a_server_that_sends_whole_files_is_refused_before_they_come(root):
    with (
        showing(Folder(root, ranges=False)) as server,
        pytest.raises(ImageError, match="sends whole files only"),
    ):
        Ranges(server.address).read("a b.tar", 3, 9)


def test_a_file_that_ends_too_early_is_named(root):
    with pytest.raises(ImageError, match=r"a b\.tar: has 40 of the 100 bytes from byte 10,200 on"):
        Ranges(root).read("a b.tar", 10_200, 100)
    with pytest.raises(ImageError, match=r"gone\.tar: cannot be read \(No such file"):
        Ranges(root).read("gone.tar", 0, 1)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ftp://host/x", "reads folders and http, https, s3, not ftp"),
        ("http://example.org/x", "http is allowed on this machine only; use https"),
        ("simplecache::https://h/x", "not simplecache"),
        ("file:///etc", "not file"),
    ],
)
def test_other_addresses_are_refused(address, told):
    with pytest.raises(Refused, match=told) as caught:
        Ranges(address)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [("https://h/x", "aiohttp", "shards"), ("s3://bucket/x", "s3fs", "s3")],
)
def test_a_missing_package_is_told_in_one_line(monkeypatch, address, package, extra):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    told = rf"needs the package {package}: pip install 'ganlab\[{extra}\]'$"
    with pytest.raises(Refused, match=told):
        Ranges(address)


def test_closing_ends_the_waiting(root, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 1000.0)
    with showing(Folder(root, lambda number: "500")) as server:
        ranges = Ranges(server.address)
        ranges.close()
        with pytest.raises(ImageError, match="server answers 500"):
            ranges.read("a b.tar", 0, 1)
        assert len(server.asked) == 1
