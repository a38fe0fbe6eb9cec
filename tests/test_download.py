"""A published file arrives whole and checked, or not at all, whatever the server does."""

import errno
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from loopback import Site, serving
from marks import posix

from ganlab import download as module
from ganlab.download import Watcher, download
from ganlab.errors import GanlabError
from ganlab.published import PublishedFile

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Heard(NamedTuple):
    told: list[str]
    progress: list[tuple[int, int]]
    pauses: list[float]

    @property
    def watcher(self) -> Watcher:
        return Watcher(
            self.told.append, lambda *bytes_: self.progress.append(bytes_), self.pauses.append
        )


@pytest.fixture
def heard() -> Heard:
    return Heard([], [], [])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "_BLOCK", 1000)
    monkeypatch.setenv("no_proxy", "*")
    with serving(Site(CONTENT)) as site:
        yield site


@pytest.fixture
def file(site: Site) -> PublishedFile:
    return PublishedFile("net", f"{site.address}/net.pth", "free", len(CONTENT), sha256=SHA256)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "net.pth"


def left(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    assert download(file, target, heard.watcher) == SHA256
    assert target.read_bytes() == CONTENT
    assert left(target) == {"net.pth"}
    assert heard.told == heard.pauses == []
    assert heard.progress[0] == (0, 10240) and heard.progress[-1] == (10240, 10240)
    assert len(site.asked) == 1 and "Range" not in site.asked[0]


def test_after_a_cut_the_rest_alone_is_asked_for(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.cuts = [3000, 2500]
    assert download(file, target, heard.watcher) == SHA256
    assert target.read_bytes() == CONTENT
    assert [asked.get("Range") for asked in site.asked] == [None, "bytes=3000-", "bytes=5500-"]
    assert [asked.get("If-Range") for asked in site.asked] == [None, '"one"', '"one"']
    assert site.sent == [3000, 2500, 4740]
    assert heard.told == [
        "the connection was cut; 3,000 bytes are here; trying again",
        "the connection was cut; 5,500 bytes are here; trying again",
    ]
    assert heard.pauses == [1, 1]  # each attempt brought something


def test_a_later_command_goes_on_where_an_earlier_one_ended(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.cuts = [3000, 0, 0, 0, 0, 0]
    with pytest.raises(
        GanlabError, match=r"cut, 5 times in a row; 3,000 bytes are here\. The same"
    ):
        download(file, target, heard.watcher)
    assert heard.pauses == [1, 2, 4, 8, 16][: len(heard.pauses)] and len(heard.pauses) >= 4
    assert "net.pth" not in left(target)
    site.cuts, site.sent = [], []
    assert download(file, target, heard.watcher) == SHA256
    assert site.sent == [7240]


def test_a_server_without_ranges_begins_again(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.ranges, site.cuts = False, [3000]
    assert download(file, target, heard.watcher) == SHA256
    assert target.read_bytes() == CONTENT
    assert site.sent == [3000, 10240]
    assert any("does not continue a file" in told for told in heard.told)


def test_parts_of_two_versions_are_never_put_together(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.cuts = [3000]
    file = replace(file, sha256="")
    original = heard.pauses.append

    def change(seconds: float) -> None:
        original(seconds)
        site.content, site.mark = CONTENT[::-1], '"two"'

    watcher = replace(heard.watcher, pause=change)
    assert download(file, target, watcher) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_without_digest_and_mark_a_part_is_not_continued(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.cuts, site.mark = [3000], None
    download(replace(file, sha256=""), target, heard.watcher)
    assert site.sent == [3000, 10240]
    assert "Range" not in site.asked[1]


def test_a_whole_part_that_was_not_checked_yet_is_not_fetched_again(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    target.parent.mkdir()
    (target.parent / "net.pth.part").write_bytes(CONTENT)
    assert download(file, target, heard.watcher) == SHA256
    assert target.read_bytes() == CONTENT
    assert site.sent == []


def test_a_part_that_is_longer_than_the_file_is_dropped(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    target.parent.mkdir()
    (target.parent / "net.pth.part").write_bytes(CONTENT + b"more")
    assert download(file, target, heard.watcher) == SHA256
    assert target.read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_not_believed(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.cuts, site.shift = [3000], 7
    assert download(file, target, heard.watcher) == SHA256
    assert target.read_bytes() == CONTENT
    assert any("another part of the file" in told for told in heard.told)


def test_a_wrong_digest_leaves_no_file_and_says_both_digests(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    target.parent.mkdir()
    target.write_bytes(b"older")
    site.content = CONTENT[:-1] + b"?"
    with pytest.raises(GanlabError, match="not the expected file") as caught:
        download(file, target, heard.watcher)
    found = hashlib.sha256(site.content).hexdigest()
    assert SHA256 in str(caught.value) and found in str(caught.value)
    assert left(target) == {"net.pth"}
    assert target.read_bytes() == b"older"


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_refused_before_anything_comes(
    site: Site, file: PublishedFile, target: Path, heard: Heard, change: int
) -> None:
    with pytest.raises(GanlabError, match=r"offers 10,240 bytes, and the file has 10,2\d\d"):
        download(replace(file, size=len(CONTENT) + change), target, heard.watcher)
    assert left(target) == set()


@pytest.mark.parametrize(("stated", "fits"), [(10200, True), (10300, True), (10400, False)])
def test_a_rounded_size_may_be_one_hundredth_off(
    file: PublishedFile, target: Path, heard: Heard, stated: int, fits: bool
) -> None:
    rounded = replace(file, size=stated, is_rounded=True)
    if fits:
        assert download(rounded, target, heard.watcher) == SHA256
        return
    with pytest.raises(GanlabError, match="has about 10,400"):
        download(rounded, target, heard.watcher)


def test_a_server_that_sends_without_end_is_stopped(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.states_length = False
    with pytest.raises(GanlabError, match=r"sends more than 5,000 bytes; nothing was kept"):
        download(replace(file, size=5000), target, heard.watcher)
    assert left(target) == set()


def test_a_cut_is_noticed_when_the_server_states_no_length(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.states_length, site.cuts = False, [3000]
    assert download(replace(file, sha256=""), target, heard.watcher) == SHA256
    assert site.sent[0] == 3000


def test_a_file_of_unknown_length_is_refused(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.states_length = False
    with pytest.raises(GanlabError, match="neither the server nor its publisher says how large"):
        download(replace(file, size=0), target, heard.watcher)


def test_a_compressed_answer_is_refused(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.compressed = True
    with pytest.raises(GanlabError, match="compressed, unasked"):
        download(file, target, heard.watcher)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_told_and_not_repeated(
    site: Site, file: PublishedFile, target: Path, heard: Heard, status: int
) -> None:
    site.statuses = [status] * 9
    with pytest.raises(GanlabError, match=rf"/net\.pth: the server answers {status} .*moved"):
        download(file, target, heard.watcher)
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.statuses = [503, 429]
    assert download(file, target, heard.watcher) == SHA256
    assert heard.pauses == [1, 2]


def test_a_machine_without_connection_is_told(
    file: PublishedFile, target: Path, heard: Heard
) -> None:
    closed = replace(file, source="http://127.0.0.1:9/net.pth")
    with pytest.raises(GanlabError, match=r"no connection: .*is this machine connected\?"):
        download(closed, target, heard.watcher)


# --- redirects -----------------------------------------------------------------------------------


def test_a_redirect_on_the_same_host_is_followed(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.leads_to = f"{site.address}/there"
    moved = replace(file, source=f"{site.address}/moved/net.pth", sha256="")
    assert download(moved, target, heard.watcher) == SHA256
    assert heard.told == []


def test_a_redirect_to_another_host_is_told_when_the_digest_is_known(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.leads_to = site.address.replace("127.0.0.1", "localhost") + "/there"
    moved = replace(file, source=f"{site.address}/moved/net.pth")
    assert download(moved, target, heard.watcher) == SHA256
    assert heard.told == ["the server leads to another host, localhost"]


def test_without_a_digest_only_a_named_host_may_follow(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    site.leads_to = site.address.replace("127.0.0.1", "localhost") + "/there"
    moved = replace(file, source=f"{site.address}/moved/net.pth", sha256="")
    with pytest.raises(GanlabError, match="leads to another host, localhost, and no digest"):
        download(moved, target, heard.watcher)
    assert left(target) == set() and site.sent == []
    named = replace(moved, hosts=("localhost",))
    assert download(named, target, heard.watcher) == SHA256


def test_a_host_is_named_with_those_below_it_and_no_others() -> None:
    file = PublishedFile("net", "https://hf.co/net", "free", hosts=("hf.co",))
    assert file.may_come_from("hf.co") and file.may_come_from("cdn.hf.co")
    assert not file.may_come_from("nothf.co") and not file.may_come_from("hf.co.example.org")


@pytest.mark.parametrize("goal", ["http://example.org/net.pth", "ftp://127.0.0.1/net.pth"])
def test_a_redirect_away_from_https_is_refused(
    site: Site, file: PublishedFile, target: Path, heard: Heard, goal: str
) -> None:
    site.leads_to = goal
    with pytest.raises(GanlabError, match="only https is allowed"):
        download(replace(file, source=f"{site.address}/moved"), target, heard.watcher)
    assert site.sent == []


def test_https_leads_to_no_http_even_on_this_machine(file: PublishedFile, heard: Heard) -> None:
    handler = module._Redirects(file, heard.watcher)
    request = module.urllib.request.Request("https://example.org/net.pth")
    with pytest.raises(GanlabError, match="an address that is not https, on localhost"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://localhost/net.pth")
    followed = handler.redirect_request(
        request, None, 302, "Found", {}, "https://example.org/other.pth"
    )
    assert followed is not None and followed.full_url == "https://example.org/other.pth"


@pytest.mark.parametrize("source", ["http://example.org/a", "file:///etc/passwd", "ftp://a/b", "a"])
def test_a_source_must_be_https(
    file: PublishedFile, target: Path, heard: Heard, source: str
) -> None:
    with pytest.raises(GanlabError, match="only https is allowed; nothing was fetched"):
        download(replace(file, source=source), target, heard.watcher)
    assert not target.parent.exists()


# --- the disk ------------------------------------------------------------------------------------


def test_what_the_disk_cannot_hold_is_not_begun(
    site: Site, file: PublishedFile, target: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=20479)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(GanlabError, match=r"20,480 bytes needed, 20,479 bytes free; make room"):
        download(file, target, heard.watcher, copies=2)
    assert left(target) == set()
    assert download(file, target, heard.watcher) == SHA256


def test_what_is_here_needs_no_room_any_more(
    site: Site, file: PublishedFile, target: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.cuts = [3000]
    sizes = iter([10240, 7240])
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(sizes)))
    assert download(file, target, heard.watcher) == SHA256


@posix
def test_a_disk_that_fills_up_keeps_what_is_here(
    site: Site, file: PublishedFile, target: Path, heard: Heard
) -> None:
    from faults import Disk

    writes = 0

    def strike(number: int, kind: str) -> None:
        nonlocal writes
        writes += kind == "write"
        if kind == "write" and writes > 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    target.parent.mkdir()
    with (
        Disk(target.parent, strike).between(),
        pytest.raises(GanlabError, match=r"net\.pth\.part: could not be written: No space.*room"),
    ):
        download(file, target, heard.watcher)
    kept = (target.parent / "net.pth.part").stat().st_size
    assert 0 < kept < len(CONTENT) and kept % 1000 == 0
    site.sent = []
    assert download(file, target, heard.watcher) == SHA256
    assert site.sent == [len(CONTENT) - kept]


@posix
def test_nothing_is_written_through_a_link(
    site: Site, file: PublishedFile, target: Path, heard: Heard, tmp_path: Path
) -> None:
    target.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (target.parent / "net.pth.part").symlink_to(victim)
    with pytest.raises(GanlabError, match="it is a link"):
        download(file, target, heard.watcher)
    assert victim.read_bytes() == b"mine"


def test_a_file_is_fetched_by_one_process_at_a_time(
    file: PublishedFile, target: Path, heard: Heard
) -> None:
    target.parent.mkdir()
    with (
        FileLock(target.parent / "net.pth.part.lock"),
        pytest.raises(GanlabError, match="another ganlab is fetching this file"),
    ):
        download(file, target, heard.watcher)
