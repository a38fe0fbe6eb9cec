"""`ganlab data pack`, `index` and `verify` of shards: equal bytes, whole, every fault found."""

import io
import json
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from children import Child
from click.testing import CliRunner, Result
from loopback import Folder, showing
from marks import posix
from PIL import Image

from ganlab import Ranges, ShardIndex, name_rank
from ganlab.cli import main
from ganlab.commands import pack_shards as module
from ganlab.commands.pack_shards import pack_folder
from ganlab.commands.shard_images import Packing


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (16, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    long = "n" * 120
    for number, name in enumerate(["a.png", "b.jpg", "x/ü.png", f"x/{long}.png", "x/y/a.v2.png"]):
        draw(root / name, number)
    (root / "notes.txt").write_text("text")
    return root


def data(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def small(photos: Path, out: Path, **options: object) -> list[str]:
    """Packed into shards of about two images each."""
    return [*pack_folder(photos, out, Packing(**({"shard_bytes": 10_240} | options)))]


def lacking(command: Result) -> str:
    assert command.exit_code == 1, command.output
    assert "Traceback" not in command.output
    return command.stderr


# --- pack ----------------------------------------------------------------------------------------


def test_a_folder_becomes_shards_that_tar_and_numpy_can_read(photos, tmp_path):
    result = data("pack", photos, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out'}: 5 images in 1 shard, 20,480 bytes\n"
    assert sorted(contents(tmp_path / "out")) == [
        "index.json", "shard-000000.npy", "shard-000000.tar"
    ]  # fmt: skip
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    expected = {p.relative_to(photos).as_posix(): p for p in photos.rglob("*.[pj]*g")}
    assert found == {name: path.read_bytes() for name, path in expected.items()}
    assert list(found) == sorted(found, key=name_rank)
    table = np.load(tmp_path / "out" / "shard-000000.npy", allow_pickle=False)
    content = (tmp_path / "out" / "shard-000000.tar").read_bytes()
    for row in table:
        part = content[row["offset"] : row["offset"] + row["size"]]
        assert part == found[row["name"].decode()]
        assert (row["width"], row["height"]) == (20, 16)


def test_equal_images_give_equal_bytes(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    small(photos, tmp_path / "one")
    small(Path(copy), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len([*(tmp_path / "one").glob("*.tar")]) > 1


def test_no_shard_is_larger_than_asked_but_for_a_large_image(tmp_path):
    for number in range(30):
        draw(tmp_path / "many" / f"{number}.png", number)
    draw(tmp_path / "many" / "large.png", 99, (200, 200))
    small(tmp_path / "many", tmp_path / "out", shard_bytes=20_480)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert all(size <= 20_480 for size in sizes[:-1])
    assert sizes[-1] > 100_000
    index = ShardIndex.open(Ranges(tmp_path / "out"))
    assert len(index) == 31
    assert index.num_bytes == sum(sizes)


def test_what_is_broken_is_listed_and_left_out_where_that_is_asked(photos, tmp_path):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:100])
    (photos / "empty.png").touch()
    draw(photos / "tiny.png", 7, (4, 40))
    out = tmp_path / "out"
    told = lacking(data("pack", photos, out, "--min-side", 8))
    assert "2 images cannot be read:" in told
    assert "broken.png: " in told
    assert "empty.png: " in told
    assert "--skip-broken" in told
    assert not (out / "index.json").exists()
    result = data("pack", photos, out, "--min-side", 8, "--skip-broken")
    assert result.exit_code == 0, result.output
    assert "left out: broken.png" in result.stdout
    assert "left out: 1 image with a side shorter than 8 pixels (tiny.png)" in result.stdout
    assert "5 images in 1 shard" in result.stdout


def test_a_mended_image_goes_where_it_belongs(photos, tmp_path):
    names = sorted((p.relative_to(photos).as_posix() for p in photos.rglob("*.png")), key=name_rank)
    sound = (photos / names[0]).read_bytes()
    (photos / names[0]).write_bytes(b"")
    with pytest.raises(module.GanlabError, match="cannot be read"):
        small(photos, tmp_path / "out")
    (photos / names[0]).write_bytes(sound)
    small(photos, tmp_path / "out")
    small(photos, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_a_folder_that_holds_something_else_is_left_alone(photos, tmp_path):
    assert "is not empty" in lacking(data("pack", photos, photos / "x"))
    assert data("pack", photos, tmp_path / "out").exit_code == 0
    assert "is packed already" in lacking(data("pack", photos, tmp_path / "out"))
    (tmp_path / "out" / "index.json").unlink()
    assert "is not empty" in lacking(data("pack", photos, tmp_path / "out"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "packing.txt").write_text("--shard-size 7 --min-side 1\n")
    told = lacking(data("pack", photos, tmp_path / "begun"))
    assert "was begun with --shard-size 7 --min-side 1" in told


def test_a_disk_without_room_is_told_before_anything_is_written(photos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    told = lacking(data("pack", photos, tmp_path / "out"))
    assert "the shards need" in told
    assert "1,000 bytes are free" in told
    assert not [*(tmp_path / "out").glob("*.tar")]


def pack_slowly(folder: str) -> None:
    read = module.examined
    module.examined = lambda *found: (time.sleep(0.01), read(*found))[1]
    [*pack_folder(Path(folder), Path("out"), Packing(shard_bytes=30_720))]


@posix
def test_packing_that_was_killed_goes_on_after_the_last_whole_shard(tmp_path, monkeypatch):
    for number in range(120):
        draw(tmp_path / "many" / f"{number:03}.png", number)
    out = tmp_path / "out"
    process = Child(tmp_path / "many", cwd=tmp_path, function=pack_slowly)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len([*out.glob("*.npy")]) < 2:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "index.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.npy")}
    read: list[str] = []
    examined = module.examined
    monkeypatch.setattr(
        module, "examined", lambda name, content: (read.append(name), examined(name, content))[1]
    )
    small(tmp_path / "many", out, shard_bytes=30_720)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert 0 < len(read) < 120
    small(tmp_path / "many", tmp_path / "other", shard_bytes=30_720)
    assert contents(out) == contents(tmp_path / "other")


# --- verify --------------------------------------------------------------------------------------


def test_sound_shards_are_read_whole(photos, tmp_path):
    small(photos, tmp_path / "out")
    result = data("verify", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "5 images in 2 shards" in result.stdout
    assert result.stdout.endswith("read whole and as the index says\n")


def test_every_fault_of_shards_is_listed(photos, tmp_path):
    small(photos, tmp_path / "out", shard_bytes=1)
    ours = sorted((tmp_path / "out").glob("*.tar"))
    assert len(ours) == 5
    first = ShardIndex.open(Ranges(tmp_path / "out")).row(0, 0)
    for place, file in enumerate(ours[:3]):
        content = bytearray(file.read_bytes())
        if place == 0:
            content[first.offset + first.size // 2] ^= 1
        elif place == 1:
            del content[700:]
        else:
            content[10] ^= 1  # in the head of the member
        file.write_bytes(content)
    ours[3].unlink()
    ours[4].with_suffix(".npy").write_bytes(b"x")
    result = data("verify", tmp_path / "out", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert len(found["faults"]) == 5
    for file in ours:
        assert [name for name in found["faults"] if name.startswith(file.name)], file
    assert data("verify", tmp_path / "out").stdout.endswith("; 5 with a fault\n")


def test_shards_at_an_address_are_verified_too(photos, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="ganlab[shards] is not installed")
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    small(photos, tmp_path / "out")
    with showing(Folder(tmp_path / "out")) as server:
        result = data("verify", server.address)
    assert result.exit_code == 0, result.output


def test_shards_have_no_list_of_digests_to_write(photos, tmp_path):
    small(photos, tmp_path / "out")
    assert data("verify", tmp_path / "out", "--write").exit_code == 2


def test_shards_without_an_index_are_not_taken_for_an_empty_folder(tmp_path):
    webdataset(tmp_path)
    assert "`ganlab data index" in lacking(data("verify", tmp_path))


# --- index ---------------------------------------------------------------------------------------


def webdataset(folder: Path) -> None:
    """A shard as webdataset's own writer makes it: samples with JSON, text and a pickle."""
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for number in range(4):
            picture = io.BytesIO()
            Image.new("RGB", (12, 10), (number, 0, 0)).save(picture, "PNG")
            members = {"png": picture.getvalue(), "json": b"{}", "pkl": b"cos\nsystem\n(S'x'\ntR."}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"./{number:04}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_shards_of_another_tool_get_an_index(tmp_path):
    webdataset(tmp_path)
    before = (tmp_path / "train-0.tar").read_bytes()
    result = data("index", tmp_path)
    assert result.exit_code == 0, result.output
    assert "no images, left alone: 4 .json, 4 .pkl\n" in result.stdout
    assert f"{tmp_path}: 4 images in 1 shard" in result.stdout
    assert (tmp_path / "train-0.tar").read_bytes() == before
    assert data("verify", tmp_path).exit_code == 0
    index = ShardIndex.open(Ranges(tmp_path))
    rows = list(index.rows(0))
    assert [row.rank for row in rows] == sorted(row.rank for row in rows)
    assert sorted(int(index.image(0, row)[0, 0, 0]) for row in rows) == [0, 1, 2, 3]


def test_held_out_images_are_found_in_shards_of_any_order(tmp_path):
    names = [f"{number:02}.png" for number in range(30)]
    draw(tmp_path / "image.png")
    for shard in range(5):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name in names[6 * shard : 6 * shard + 6]:
                tar.add(tmp_path / "image.png", name)
    assert data("index", tmp_path).exit_code == 0
    index = ShardIndex.open(Ranges(tmp_path))
    for number in (0, 1, 4, 30):
        found = [row.name for _, row in index.smallest_ranks(number)]
        assert found == sorted(names, key=name_rank)[:number]
    for share in (0.0, 0.1, 0.5, 1.0):
        below = [sum(name_rank(n) < share for n in names[6 * s : 6 * s + 6]) for s in range(5)]
        assert index.below(share).tolist() == below


def test_a_broken_member_is_named_with_its_shard(tmp_path):
    webdataset(tmp_path)
    content = bytearray((tmp_path / "train-0.tar").read_bytes())
    content[512 + 40] ^= 255
    (tmp_path / "train-0.tar").write_bytes(content)
    assert "train-0.tar: ./0000.png: " in lacking(data("index", tmp_path))
    assert not (tmp_path / "index.json").exists()
    assert data("index", tmp_path, "--skip-broken").exit_code == 0
    assert len(ShardIndex.open(Ranges(tmp_path))) == 3


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_compressed_shards_are_told_how_to_be_unpacked(tmp_path, name):
    (tmp_path / name).touch()
    assert "is compressed" in lacking(data("index", tmp_path))


def test_what_is_no_tar_file_is_named(tmp_path):
    assert "no shards in it" in lacking(data("index", tmp_path))
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    assert "a.tar: cannot be read as a tar file" in lacking(data("index", tmp_path))
