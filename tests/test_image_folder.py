"""image_folder: what is read, when it is read again, and what a mistaken folder is told."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child
from click.testing import CliRunner
from ganlab_plugins import image_folder
from ganlab_plugins.image_folder import ImageFolder
from marks import posix
from PIL import Image

from ganlab import ImageStore, RecipeError, cache_folder
from ganlab.cli import main
from ganlab.testing import seeded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images, each of one value in all its pixels: 10, 20 ... 60."""
    root = tmp_path / "photographs"
    for i, name in enumerate(["a.png", "b.png", "sub/c.png", "sub/d.png", "sub/e/f.png", "z.png"]):
        draw(root / name, 10 * (i + 1))
    return root


def draw(path: Path, value: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def values(plugin: ImageFolder, number: int = 200) -> set[int]:
    crops = plugin.sample_real(number, CPU)
    return set((crops * 255).round().int().unique().tolist())


def test_crops_come_from_every_image_of_nested_folders(folder):
    plugin = ImageFolder(path=folder, held_out_share=0, crop=8)
    assert values(plugin) == {10, 20, 30, 40, 50, 60}
    crops = plugin.sample_real(3, CPU)
    assert crops.shape == (3, 3, 8, 8)
    assert crops.dtype == torch.float32


def test_crops_follow_the_streams_of_the_run(folder):
    def crops(seed: int) -> torch.Tensor:
        return seeded(ImageFolder(path=folder, crop=8), seed).sample_real(16, CPU)

    assert torch.equal(crops(1), crops(1))
    assert not torch.equal(crops(1), crops(2))


def test_a_grey_image_trains_as_rgb(tmp_path):
    (tmp_path / "grey").mkdir()
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "grey" / "a.png")
    crop = ImageFolder(path=tmp_path / "grey", crop=8).sample_real(1, CPU)
    assert (crop * 255).unique().tolist() == pytest.approx([77])
    assert crop.shape[1] == 3


# --- held-out images -----------------------------------------------------------------------------


def test_a_share_of_zero_holds_out_nothing(folder):
    assert ImageFolder(path=folder, held_out_share=0).evaluation_images() == {}


def held_out_by_hash(folder: Path, **options: float) -> set[str]:
    return set(ImageFolder(path=folder, evaluation_limit=99, **options).evaluation_images())


def test_without_an_evaluation_folder_a_share_is_held_out_and_not_trained_on(tmp_path):
    for i in range(100):
        draw(tmp_path / "many" / f"{i:02}.png", i, (8, 8))
    held_out = held_out_by_hash(tmp_path / "many", held_out_share=0.2, crop=8)
    assert len(held_out) == 17  # the hash is the same on every machine; 20 on average
    trained = ImageFolder(path=tmp_path / "many", held_out_share=0.2, crop=8).data_digest()
    assert set(trained) == {f"{i:02}.png" for i in range(100)} - held_out


def test_images_that_come_or_go_move_no_other_image(tmp_path):
    folder = tmp_path / "many"
    for i in range(60):
        draw(folder / f"{i:02}.png", i, (8, 8))
    before = held_out_by_hash(folder)
    for i in range(60, 90):
        draw(folder / f"{i:02}.png", i, (8, 8))
    for i in range(20):
        (folder / f"{i:02}.png").unlink()
    after = held_out_by_hash(folder)
    kept = {f"{i:02}.png" for i in range(20, 60)}
    assert before & kept == after & kept != set()


def test_of_few_images_one_is_held_out_and_an_only_image_is_trained_on(tmp_path):
    draw(tmp_path / "few" / "a.png", 1)
    assert held_out_by_hash(tmp_path / "few") == set()
    draw(tmp_path / "few" / "b.png", 2)
    assert len(held_out_by_hash(tmp_path / "few", held_out_share=0.001)) == 1


def test_of_many_held_out_images_an_added_one_replaces_at_most_one(tmp_path):
    folder = tmp_path / "many"
    for i in range(60):
        draw(folder / f"{i:02}.png", i, (8, 8))
    options = {"held_out_share": 0.5, "evaluation_limit": 4}
    before = set(ImageFolder(path=folder, **options).evaluation_images())
    draw(folder / "new.png", 99, (8, 8))
    after = set(ImageFolder(path=folder, **options).evaluation_images())
    assert len(before) == len(after) == 4
    assert len(before - after) <= 1


def test_a_share_beside_an_evaluation_folder_is_refused(folder):
    with pytest.raises(ValueError, match="held_out_share has no effect beside evaluation_path"):
        ImageFolder(path=folder, evaluation_path=folder / "sub", held_out_share=0.2)


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, "0"), (2, "05"), (3, "036"), (9, "012345678"), (99, "0123456789")]
)
def test_held_out_images_are_taken_evenly(tmp_path, folder, limit, expected):
    for i in range(10):
        draw(tmp_path / "val" / f"{i}.png", i)
    plugin = ImageFolder(path=folder, evaluation_path=tmp_path / "val", evaluation_limit=limit)
    images = plugin.evaluation_images()
    assert list(images) == [f"{i}.png" for i in expected]
    assert [int(image[0, 0, 0]) for image in images.values()] == [int(i) for i in expected]
    assert all(image.dtype == torch.uint8 for image in images.values())


def test_held_out_images_of_one_name_keep_their_folders(tmp_path, folder):
    draw(tmp_path / "val" / "x" / "a.png", 1)
    draw(tmp_path / "val" / "y" / "a.png", 2)
    images = ImageFolder(path=folder, evaluation_path=tmp_path / "val").evaluation_images()
    assert list(images) == ["x-a.png", "y-a.png"]


def test_held_out_images_inside_the_folder_are_not_trained_on(folder):
    plugin = ImageFolder(path=folder, evaluation_path=folder / "sub", crop=8)
    assert values(plugin) == {10, 20, 60}
    evaluated = {int(image[0, 0, 0]) for image in plugin.evaluation_images().values()}
    assert evaluated == {30, 40, 50}


@pytest.mark.parametrize("held_out", [".", ".."])
def test_holding_out_the_training_folder_itself_is_refused(folder, held_out):
    with pytest.raises(RecipeError, match="holds out all images of path"):
        ImageFolder(path=folder, evaluation_path=folder / held_out, crop=8).sample_real(1, CPU)


# --- the cache -----------------------------------------------------------------------------------


def test_images_are_decoded_once_while_their_files_stay_as_they_are(folder, monkeypatch):
    first = values(ImageFolder(path=folder, crop=8))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "read_image", never)
        assert values(ImageFolder(path=folder, crop=12)) == first
        os.utime(folder / "a.png", ns=(1, 1))
        with pytest.raises(AssertionError, match="decoded again"):
            ImageFolder(path=folder, crop=8).sample_real(1, CPU)


def test_recipes_that_hold_out_other_images_of_a_folder_keep_their_stores(folder, monkeypatch):
    choices = [{}, {"held_out_share": 0}, {"evaluation_path": folder / "sub"}]
    first = [values(ImageFolder(path=folder, crop=8, **choice)) for choice in choices]
    monkeypatch.setattr(image_folder, "read_image", None)
    assert [values(ImageFolder(path=folder, crop=8, **choice)) for choice in choices] == first


def test_held_out_images_elsewhere_need_no_store_of_their_own(folder, tmp_path):
    for name in ("one", "two"):
        draw(tmp_path / name / "x.png", 1)
        values(ImageFolder(path=folder, crop=8, evaluation_path=tmp_path / name))
    assert len(list(cache_folder().glob("*.store"))) == 1


def test_a_changed_folder_is_read_anew_and_its_old_store_deleted(folder):
    values(ImageFolder(path=folder, held_out_share=0, crop=8))
    draw(folder / "new.png", 200)
    (folder / "a.png").unlink()
    assert values(ImageFolder(path=folder, held_out_share=0, crop=8)) == {20, 30, 40, 50, 60, 200}
    assert len(list(cache_folder().glob("*.store"))) == 1


def test_a_folder_that_the_disk_cannot_hold_decoded_is_refused_at_once(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    needed = 6 * 20 * 24 * 3
    plugin = ImageFolder(path=folder, held_out_share=0, crop=8)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
        told = rf"need {needed:,} bytes, and {needed - 1:,} bytes are free there; set GANLAB"
        with pytest.raises(RecipeError, match=rf"{told}.*`ganlab data pack .*image_shards"):
            plugin.sample_real(1, CPU)
        assert not [*cache_folder().glob("*.part")]
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
        plugin.sample_real(1, CPU)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        ImageFolder(path=folder, held_out_share=0, crop=8).sample_real(1, CPU)  # it is there


def test_a_damaged_store_is_made_again(folder):
    first = values(ImageFolder(path=folder, held_out_share=0, crop=8))
    [path] = cache_folder().glob("*.store")
    path.write_bytes(path.read_bytes()[100:])
    assert values(ImageFolder(path=folder, held_out_share=0, crop=8)) == first


def test_what_is_behind_transparency_is_decoded_anew(tmp_path):
    (tmp_path / "clear").mkdir()
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "clear" / "a.png")
    for alpha, value in (("white", 255), ("black", 0)):
        assert values(ImageFolder(path=tmp_path / "clear", crop=8, alpha=alpha)) == {value}
    with pytest.raises(RecipeError, match=r"a\.png: has transparent pixels"):
        ImageFolder(path=tmp_path / "clear", crop=8, alpha="refuse").sample_real(1, CPU)


def test_more_images_than_are_decoded_at_once_keep_their_order(tmp_path):
    for i in range(70):
        draw(tmp_path / "many" / f"{i:02}.png", i, (8, 8))
    plugin = ImageFolder(path=tmp_path / "many", held_out_share=0, crop=8)
    plugin.sample_real(1, CPU)
    assert [int(plugin._store.image(i)[0, 0, 0]) for i in range(70)] == list(range(70))
    assert plugin._store.names == [f"{i:02}.png" for i in range(70)]


def decode(folder: str) -> None:
    ImageFolder(path=folder, held_out_share=0, crop=8).sample_real(1, CPU)


@posix
def test_decoding_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    (tmp_path / "many").mkdir()
    for number in range(150):
        pixels[0, 0, 0] = number
        Image.fromarray(pixels).save(tmp_path / "many" / f"{number:03}.png", compress_level=1)
    process = Child(tmp_path / "many", cwd=tmp_path, function=decode)
    notes: list[Path] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not notes or notes[0].read_text().count("\n") < 20):
        notes = list(cache_folder().glob("*.notes"))
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(cache_folder().glob("*.store")) == []
    there = notes[0].read_text().count("\n")
    read, count = image_folder.read_image, []
    monkeypatch.setattr(image_folder, "read_image", lambda *a: count.append(1) or read(*a))
    plugin = ImageFolder(path=tmp_path / "many", held_out_share=0, crop=8)
    plugin.sample_real(1, CPU)
    assert 20 <= there < 150
    assert 150 - there <= len(count) <= 150 - there + 1  # one may have been cut in two
    assert [int(plugin._store.image(i)[0, 0, 0]) for i in range(150)] == list(range(150))


def test_a_finished_run_needs_its_data_no_more(folder):
    shutil.rmtree(folder)
    plugin = ImageFolder(path=folder, evaluation_path=folder)
    with pytest.raises(RecipeError, match="no such folder"):
        plugin.sample_real(1, CPU)


# --- mistakes ------------------------------------------------------------------------------------


def test_a_missing_evaluation_folder_shows_before_training(folder):
    plugin = ImageFolder(path=folder, evaluation_path=folder / "nil", crop=8)
    with pytest.raises(RecipeError, match="nil: no such folder"):
        plugin.sample_real(1, CPU)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="empty: no image in it"):
        ImageFolder(path=tmp_path / "empty").sample_real(1, CPU)


def test_a_broken_file_is_named_and_no_store_is_left(folder):
    (folder / "sub" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(RecipeError, match=r"broken\.jpg: cannot be read"):
        ImageFolder(path=folder, held_out_share=0, crop=8).sample_real(1, CPU)
    assert list(cache_folder().glob("*.store")) == []


def test_a_crop_larger_than_an_image_is_told_which(folder):
    draw(folder / "tiny.png", 1, (9, 30))
    assert values(ImageFolder(path=folder, held_out_share=0, crop=9))
    with pytest.raises(RecipeError, match=r"crop = 10 .* 1 of the images.*tiny\.png \(30 x 9\)"):
        ImageFolder(path=folder, held_out_share=0, crop=10).sample_real(1, CPU)


# --- images that cannot be read ------------------------------------------------------------------


def spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def test_a_broken_image_is_left_out_on_request_and_its_name_and_reason_are_kept(folder):
    spoil(folder / "b.png")
    (folder / "sub" / "c.png").write_text("text")
    for _ in range(2):  # decoded, and then from the cache
        plugin = ImageFolder(path=folder, held_out_share=0, crop=8, on_broken="skip")
        assert values(plugin) == {10, 40, 50, 60}
        assert list(plugin.data_digest()) == ["a.png", "sub/d.png", "sub/e/f.png", "z.png"]
        assert list(plugin.left_out) == ["b.png", "sub/c.png"]
        assert "cannot be read as an image" in plugin.left_out["b.png"]
    with pytest.raises(RecipeError, match=r"b\.png: cannot be read"):
        ImageFolder(path=folder, held_out_share=0, crop=8).sample_real(1, CPU)


def test_an_image_that_is_left_out_moves_no_other_image_to_the_other_side(tmp_path):
    folder = tmp_path / "many"
    for i in range(60):
        draw(folder / f"{i:02}.png", i, (8, 8))
    options = {"held_out_share": 0.3, "evaluation_limit": 6, "crop": 8, "on_broken": "skip"}
    before = ImageFolder(path=folder, **options)
    held_out, trained = list(before.evaluation_images()), list(before.data_digest())
    spoil(folder / held_out[2])
    spoil(folder / trained[5])
    after = ImageFolder(path=folder, **options)
    assert list(after.evaluation_images()) == held_out[:2] + held_out[3:]
    assert list(after.data_digest()) == trained[:5] + trained[6:]
    assert sorted(after.left_out) == sorted([held_out[2], trained[5]])


def test_when_no_image_can_be_read_that_is_told(folder):
    for file in folder.rglob("*.png"):
        spoil(file)
    plugin = ImageFolder(path=folder, held_out_share=0, crop=8, on_broken="skip")
    with pytest.raises(RecipeError, match="none of the 6 images can be read"):
        plugin.sample_real(1, CPU)
    plugin = ImageFolder(path=folder, evaluation_path=folder / "sub", on_broken="skip")
    with pytest.raises(RecipeError, match=r"no held-out image can be read: c\.png"):
        plugin.evaluation_images()


def test_a_run_tells_what_it_left_out_and_keeps_it_in_its_folder_and_report(folder, tmp_path):
    spoil(folder / "b.png")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "iterations = 1\nbatch_size = 2\nd_steps = 0\n[plugins]\nbicubic = {scale = 2}\n"
        f"image_folder = {{ path = '{folder}', held_out_share = 0, crop = 16, "
        "on_broken = 'skip' }\nespcn = {}\npixel_loss = {}\nadam = {}\n"
    )
    command = ["run", str(recipe), "--runs", str(tmp_path), "--name", "r"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = "image_folder: 1 item is left out, since it cannot be read: b.png"
    assert f"note: {told}" in result.stderr
    data = json.loads((tmp_path / "r" / "data.json").read_text())
    assert list(data["left_out"]["image_folder"]) == ["b.png"]
    assert len(data["training"]["image_folder"]) == 5
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["data"]["left_out"]["number"] == 1
    page = (tmp_path / "r" / "report.html").read_text()
    assert told in page and "1 item left out" in page


# --- the device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "free", "moved"),
    [("auto", 40_000, True), ("auto", 30_000, False), ("yes", 0, True), ("no", 10**9, False)],
)
def test_images_move_to_a_gpu_with_room_for_four_times_their_size(
    folder, monkeypatch, keep, free, moved
):
    went = []
    store = ImageStore.of([("a", torch.zeros(3, 50, 60, dtype=torch.uint8))])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**10))
    monkeypatch.setattr(store, "to", lambda device: went.append(device.type) or store)
    plugin = ImageFolder(path=folder, keep_on_device=keep)
    assert plugin._settled(store, torch.device("cuda")) is store
    assert went == (["cuda"] if moved else [])


def test_images_that_do_not_fit_on_the_gpu_are_told_so(folder, monkeypatch):
    def full(_: torch.device) -> ImageStore:
        raise torch.OutOfMemoryError

    store = ImageStore.of([("a", torch.zeros(3, 50, 60, dtype=torch.uint8))])
    monkeypatch.setattr(store, "to", full)
    with pytest.raises(RecipeError, match='9000 bytes do not fit on cuda; choose "auto" or "no"'):
        ImageFolder(path=folder, keep_on_device="yes")._settled(store, torch.device("cuda"))
