"""`ganlab data list` and `fetch`: published images arrive whole in their folder, or not at all."""

import hashlib
import io
import json
import re
import shlex
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from loopback import Site, serving
from PIL import Image

from ganlab import Archive, DataSet, PublishedFile, RecipeError, published
from ganlab.cli import main
from ganlab.commands import data_sets, fetch, weights
from ganlab.commands.apply import evaluate_folder
from ganlab.commands.unpack import unpack
from ganlab.errors import GanlabError

Declare = Callable[[DataSet], None]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments], catch_exceptions=False)


def picture(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


FILES = {
    "Tiny/HR/a.png": picture(1),
    "Tiny/HR/b.PNG": picture(2),
    "Tiny/HR/readme.txt": b"words",
    "Tiny/LR/a.png": picture(3),
    "__MACOSX/Tiny/._a.png": b"rubbish",
}


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


CONTENT = zipped(FILES)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("GANLAB_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(fetch, "LARGE", 10_000)
    monkeypatch.chdir(tmp_path)
    with serving(Site(CONTENT)) as site:
        yield site


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Makes a data set the only one that is installed."""

    def only(data: DataSet) -> None:
        points = [SimpleNamespace(name=data.name, value="here:data", load=lambda: data)]
        monkeypatch.setattr(published, "entry_points", lambda group: points)
        published.data_sets.cache_clear()

    yield only
    published.data_sets.cache_clear()


@pytest.fixture
def tiny(site: Site, declare: Declare) -> DataSet:
    file = PublishedFile(
        "tiny", f"{site.address}/Tiny.zip", "to look at", len(CONTENT), sha256=SHA256
    )
    data = DataSet("Tiny", "two images", "https://example.org", (Archive(file, "HR", "Tiny", 2),))
    declare(data)
    return data


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the commands --------------------------------------------------------------------------------


def test_a_set_arrives_as_a_folder_of_its_images_alone(tiny: DataSet, tmp_path: Path) -> None:
    done = invoke("data", "fetch", "tiny")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "data" / "Tiny"
    assert names(folder) == {"a.png", "b.PNG", "SHA256SUMS"}
    assert (folder / "a.png").read_bytes() == picture(1)
    assert names(tmp_path / "data") == {"Tiny"}  # the archive is gone
    assert done.stdout.endswith(f"data/Tiny: 2 images; the archive's sha256 was {SHA256}\n")
    verified = invoke("data", "verify", "data/Tiny", "--json")
    assert verified.exit_code == 0 and json.loads(verified.stdout)["manifest"] is True


def test_size_terms_and_digest_are_shown_before_anything_is_asked_for(
    site: Site, tiny: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch, "LARGE", 10)
    refused = invoke("data", "fetch", "Tiny", "--to", "elsewhere")
    assert refused.exit_code == 2 and "again with --yes" in refused.stderr
    file = tiny.archives[0].file
    for fact in (tiny.about, tiny.page, file.source, "licence: to look at", SHA256, "elsewhere"):
        assert fact in refused.stdout
    assert site.asked == [] and not (tmp_path / "elsewhere").exists()
    assert invoke("data", "fetch", "Tiny", "--to", "elsewhere", "--yes").exit_code == 0


def test_what_is_there_is_not_fetched_again(site: Site, tiny: DataSet) -> None:
    invoke("data", "fetch", "tiny")
    again = invoke("data", "fetch", "tiny")
    assert again.exit_code == 0 and again.stdout == "data/Tiny: is there already\n"
    assert len(site.asked) == 1


def test_a_folder_of_ones_own_is_never_touched(site: Site, tiny: DataSet, tmp_path: Path) -> None:
    (tmp_path / "data" / "Tiny").mkdir(parents=True)
    (tmp_path / "data" / "Tiny" / "mine.png").write_bytes(b"mine")
    refused = invoke("data", "fetch", "tiny")
    assert refused.exit_code == 1 and "move it away, or choose another folder" in refused.stderr
    assert names(tmp_path / "data" / "Tiny") == {"mine.png"} and site.asked == []


def test_an_archive_that_is_there_already_is_not_fetched(
    site: Site, tiny: DataSet, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Tiny.zip").write_bytes(CONTENT)
    assert invoke("data", "fetch", "tiny").exit_code == 0
    assert site.asked == [] and names(tmp_path / "data") == {"Tiny"}


def test_a_cut_download_goes_on_in_the_next_command(
    site: Site, tiny: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ganlab import download

    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    site.cuts = [300]
    cut = invoke("data", "fetch", "tiny")
    assert cut.exit_code == 1 and "300 bytes are here. The same command goes on" in cut.stderr
    assert names(tmp_path / "data") == {"Tiny.zip.part", "Tiny.zip.part.json"}
    assert invoke("data", "fetch", "tiny").exit_code == 0
    assert site.sent == [300, len(CONTENT) - 300]


def test_an_archive_with_too_few_images_makes_no_folder(
    site: Site, tiny: DataSet, declare: Declare, tmp_path: Path
) -> None:
    declare(replace(tiny, archives=(replace(tiny.archives[0], num_images=3),)))
    failed = invoke("data", "fetch", "tiny")
    assert failed.exit_code == 1
    assert "2 images in HR, and 3 are published; elsewhere: 1 in Tiny/LR" in failed.stderr
    assert names(tmp_path / "data") == {"Tiny.zip"}


def test_sets_are_listed_with_size_and_terms_and_whether_they_are_here(tiny: DataSet) -> None:
    listed = invoke("data", "list").stdout
    assert re.search(r"^Tiny +\d+ bytes +2 images  -\n +two images\n +terms: to look at$",
                     listed, flags=re.MULTILINE)  # fmt: skip
    invoke("data", "fetch", "tiny")
    assert "2 images  here" in invoke("data", "list").stdout
    (found,) = json.loads(invoke("data", "list", "--json").stdout)
    assert found["folders"]["Tiny"]["is_there"] is True


def test_a_name_that_no_set_has_is_refused_with_the_nearest(tiny: DataSet) -> None:
    wrong = invoke("data", "fetch", "tinny")
    assert wrong.exit_code == 2 and "'tinny'; did you mean 'Tiny'?" in wrong.stderr


def test_a_declaration_that_is_broken_is_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ImportError("no such module")

    points = [SimpleNamespace(name="Odd", value="odd:DATA", load=fail)]
    monkeypatch.setattr(published, "entry_points", lambda group: points)
    published.data_sets.cache_clear()
    assert published.data_sets() == {}
    assert "the data set Odd (odd:DATA) is left out" in capsys.readouterr().err
    published.data_sets.cache_clear()


# --- what the messages name ----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["data/Tiny", "other/place/Tiny"])
def test_the_message_of_a_missing_folder_names_a_command_that_makes_it(
    tiny: DataSet, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / place
    missing = invoke("data", "verify", str(folder))
    command = re.search(r"`ganlab (data fetch .*)` gets it", missing.stderr)
    assert missing.exit_code == 1 and command, missing.stderr
    assert str(tmp_path) not in command[1]  # as one would type it
    assert invoke(*shlex.split(command[1])).exit_code == 0
    assert invoke("data", "verify", str(folder)).exit_code == 0


def test_a_recipe_and_an_evaluation_name_the_command_too(tiny: DataSet, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        "iterations = 1\nd_steps = 0\n[plugins]\nimage_folder = { path = 'data/Tiny', crop = 8 }\n"
        "bicubic = {}\nencoder_decoder = {}\npixel_loss = {}\n"
    )
    assert "`ganlab data fetch Tiny` gets it" in invoke("check", "r.toml").stderr
    with pytest.raises(RecipeError, match=r"no such folder; `ganlab data fetch Tiny` gets it"):
        evaluate_folder("runs/a", Path("data/Tiny"), "last", "cpu")


def test_a_user_is_asked_before_a_large_download(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = iter([True, True, False])

    def confirm(text: str, err: bool) -> bool:
        asked.append(text)
        return next(answers)

    monkeypatch.setattr(fetch.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(fetch.click, "confirm", confirm)
    fetch.require_consent([0, 2**27], False)
    fetch.require_consent([0], False)
    with pytest.raises(RecipeError, match="nothing was fetched"):
        fetch.require_consent([2**27], False)
    assert asked == [
        "fetch 128.0 MiB and a file of unknown size?",
        "fetch a file of unknown size?",
        "fetch 128.0 MiB?",
    ]
    fetch.require_consent([2**27], True)
    fetch.require_consent([2**20], False)
    assert len(asked) == 3


def test_another_missing_folder_names_no_command(tiny: DataSet) -> None:
    assert "ganlab data fetch" not in invoke("data", "verify", "photographs").stderr


# --- the first-party sets ------------------------------------------------------------------------


def test_the_sets_of_the_literature_are_declared_without_invented_facts() -> None:
    published.data_sets.cache_clear()
    sets = published.data_sets()
    assert set(sets) == {"DIV2K", "Flickr2K", "Set5", "Set14", "BSD100", "Urban100"}
    for data in sets.values():
        assert data.page.startswith("https://") and data.about
        for archive in data.archives:
            file = archive.file
            assert file.source.startswith("https://") and file.licence
            assert file.sha256 == "" or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    folders = {archive.folder for data in sets.values() for archive in data.archives}
    assert {"DIV2K_train_HR", "DIV2K_valid_HR"} <= folders  # the names in recipes/div2k


@pytest.mark.parametrize("kind", ["data", "weights"])
def test_what_the_heads_of_the_recipes_name_can_be_fetched(kind: str) -> None:
    published.data_sets.cache_clear()
    recipes = (Path(__file__).parents[1] / "recipes").rglob("*.toml")
    texts = [recipe.read_text() for recipe in recipes]
    named = {name for text in texts for name in re.findall(rf"`ganlab {kind} fetch (\w+)`", text)}
    assert named == ({"DIV2K"} if kind == "data" else {"vgg19"})
    for name in named:
        assert data_sets._named(name) if kind == "data" else weights._named(name)


# --- archives that a stranger made ---------------------------------------------------------------


def packed(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "archive").write_bytes(content)
    return tmp_path / "archive"


def taken(path: Path, num_images: int = 2, inside: str = "HR") -> Path:
    file = PublishedFile("x", "https://example.org/x", "none")
    unpack(path, Archive(file, inside, "Tiny", num_images), path.parent / "Tiny")
    return path.parent / "Tiny"


@pytest.mark.parametrize(
    "pack", [zipped, tarred, lambda f: tarred(f, "w"), lambda f: tarred(f, "w:xz")]
)
def test_zip_and_tar_give_the_same_folder(
    tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    folder = taken(packed(tmp_path, pack({f"./{name}": c for name, c in FILES.items()})))
    assert names(folder) == {"a.png", "b.PNG", "SHA256SUMS"}
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    assert listed[0] == f"{hashlib.sha256(picture(1)).hexdigest()}  a.png"


def link(kind: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("HR/a.png")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    return stream.getvalue()


def zip_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo("HR/a.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return stream.getvalue()


ONE = picture()
EVIL = {
    "up": (zipped({"HR/../../HR/a.png": ONE}), "leads out of it"),
    "root": (tarred({"/HR/a.png": ONE}), "leads out of it"),
    "link": (link(tarfile.SYMTYPE), "is a link"),
    "hard link": (link(tarfile.LNKTYPE), "is a link"),
    "device": (link(tarfile.CHRTYPE), "is a link"),
    "zip link": (zip_link(), "is a link"),
    "hidden": (zipped({"HR/.a.png": ONE}), "no name that every system allows"),
    "backslash": (tarred({"HR/..\\a.png": ONE}), "no name that every system allows"),
    "device of Windows": (zipped({"HR/con.png": ONE}), "no name that every system allows"),
    "case": (zipped({"HR/a.png": ONE, "HR/A.png": ONE}), "two images are called A.png"),
    "twice": (tarred({"x/HR/a.png": ONE, "y/HR/a.png": ONE}), "two images are called a.png"),
    "empty": (b"", "damaged"),
    "page": (b"<html>sign in</html>", "damaged"),
    "cut zip": (zipped(FILES)[:-30], "damaged"),
    "cut tar": (tarred(FILES, "w")[:540], "damaged"),
    "nothing": (zipped({"LR/a.png": ONE}), "0 images in HR, and 2 are published; elsewhere: 1 in"),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_odd_archive_makes_no_folder_and_writes_nowhere(tmp_path: Path, name: str) -> None:
    content, fault = EVIL[name]
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(GanlabError, match=re.escape(fault)) as caught:
        taken(packed(inner, content))
    assert str(caught.value).endswith("no folder was made of it")
    assert names(inner) == {"archive"} and names(tmp_path) == {"inner"}


def test_an_archive_that_unpacks_to_far_more_is_stopped(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("HR/a.png", bytes(2**26 + 2**20))
    with pytest.raises(GanlabError, match="unpacks to far more than images take"):
        taken(packed(tmp_path, stream.getvalue()), 1)
    assert names(tmp_path) == {"archive"}


def test_a_damaged_image_is_noticed_by_the_archives_own_check(tmp_path: Path) -> None:
    content = bytearray(zipped(FILES))
    content[content.index(b"IDAT") + 8] ^= 1
    with pytest.raises(GanlabError, match="damaged: Bad CRC-32"):
        taken(packed(tmp_path, bytes(content)))
