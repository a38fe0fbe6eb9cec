"""image_shards: the crops of a folder, from shards on this machine or elsewhere, in any number."""

import gc
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ganlab_plugins.image_folder import ImageFolder
from ganlab_plugins.image_shards import ImageShards
from loopback import Folder, showing
from PIL import Image
from virtual import VirtualIndex

from ganlab import GanlabError, ImageError, ImageStore, RecipeError, Run, read_image
from ganlab.commands.pack_shards import pack_folder
from ganlab.commands.shard_images import Packing
from ganlab.images import ranges
from ganlab.images.permutation import Permutation
from ganlab.images.shard_crops import cut
from ganlab.images.shards import index_name
from ganlab.iteration import sample
from ganlab.ranks.world import ALONE, World, rows_of
from ganlab.testing import seeded, tiny_run

CPU = torch.device("cpu")
CROP = 8
LIST = 1  # read of index.json
ADDRESS = pytest.param("address", marks=pytest.mark.skipif(
    not ranges.find_spec("aiohttp"), reason="ganlab[shards] is not installed"
))  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ranges, "PAUSE", 0.001)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Sixty images of noise: colour, grey, 16 bits, transparent, PNG and JPEG."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 256, (9 + number % 7, 12 + number % 5, 4), np.uint8)
        kinds = [
            Image.fromarray(pixels[:, :, :3]), Image.fromarray(pixels[:, :, 0]),
            Image.fromarray(pixels.view(np.uint16)[:, :, 0]), Image.fromarray(pixels),
        ]  # fmt: skip
        file = root / f"{number % 4}" / f"{number:02}.{'jpg' if number % 8 < 2 else 'png'}"
        file.parent.mkdir(exist_ok=True)
        kinds[number % 4].save(file)
    return root


@pytest.fixture(scope="module")
def shards(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "shards"
    [*pack_folder(photos, folder, Packing(shard_bytes=40_960))]
    assert len([*folder.glob("*.tar")]) > 1
    return folder


def plugin(place: Path | str, *moment: object, seed: int = 0, **options: object) -> ImageShards:
    made = ImageShards(path=place, **({"crop": CROP} | options))
    return seeded(made, seed, *moment) if moment else made


def batch(place: Path | str, *moment: object, size: int = 5, **options: object) -> torch.Tensor:
    return plugin(place, *moment, **options).sample_real(size, CPU)


def drawn(made: ImageShards, *moment: object, size: int = 5) -> list[str]:
    seeded(made, 0, *moment).sample_real(size, CPU)
    return made.samples_drawn()


def name(sample: str) -> str:
    return sample.partition(" at ")[0]


def first_fails(server: Folder, number: int) -> str:
    """How a request fails if it is the first for its part of a file: three of five do."""
    is_first = server.asked[number] not in server.asked[:number]
    return ("cut", "slow", "503", "", "")[number % 5] if is_first else ""


# --- crops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", ADDRESS])
def test_a_crop_is_that_of_the_image_in_the_folder(place, photos, shards):
    server = Folder(shards, slow_seconds=1)
    server.faults = lambda number: first_fails(server, number)
    with showing(server):
        where = shards if place == "folder" else server.address
        made = plugin(where, 0, "D", 0, patience_seconds=0.5)
        crops = made.sample_real(40, CPU)
    for crop, told in zip((crops * 255).round().byte(), made.samples_drawn(), strict=True):
        left, top = map(int, told.partition(" at (")[2].rstrip(")").split(", "))
        image = read_image(photos / name(told)).permute(1, 2, 0).numpy()
        poses = [cut(image, top, left, CROP, pose) for pose in range(8)]
        assert any(np.array_equal(crop.numpy(), pose) for pose in poses), told
    assert len(set(map(name, made.samples_drawn()))) == 40
    assert place == "folder" or made._index.ranges.cuts >= 15


@pytest.mark.parametrize("pose", range(8))
def test_a_crop_is_turned_as_the_store_turns_it(pose):
    image = torch.randint(0, 256, (3, 11, 14), dtype=torch.uint8)
    store = ImageStore.of([("a", image)])
    place = torch.tensor([[0.5], [0.9]], dtype=torch.float64)
    window = store._windows(torch.tensor([0]), place, torch.tensor([pose]), CROP)
    expected = store._cut_on_host(window, CROP)[0].numpy()
    found = cut(image.permute(1, 2, 0).numpy(), 2, 6, CROP, pose)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("options", [{"flips": False}, {"turns": False}, {}])
def test_orientations_are_those_that_are_asked_for(options, tmp_path):
    (tmp_path / "one").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (CROP, CROP, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one" / "a.png")
    [*pack_folder(tmp_path / "one", tmp_path / "out", Packing())]
    crops = batch(tmp_path / "out", 0, "D", 0, size=200, held_out_share=0, **options)
    number = 8 // (2 if "flips" in options else 4 if "turns" in options else 1)
    assert len(torch.unique(crops, dim=0)) == number


# --- which image ---------------------------------------------------------------------------------


def order(length: int, *key: object) -> list[int]:
    return [*map(Permutation(length, *key), range(length))]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 1000, 65_537])
def test_the_order_is_a_bijection_and_another_for_another_key(length):
    orders = [order(length, 0, "order", key) for key in range(2)]
    for one in orders:
        assert sorted(one) == [*range(length)]
    assert length < 16 or orders[0] != orders[1]


@pytest.mark.parametrize("length", [10, 16])
def test_every_place_of_the_order_has_every_number_equally_often(length):
    found = np.zeros((length, length))
    for key in range(3000):
        found[np.arange(length), order(length, key)] += 1
    expected = 3000 / length
    freedom = (length - 1) ** 2
    chi_squared = ((found - expected) ** 2 / expected).sum()
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_neighbours_in_the_order_are_no_neighbours():
    numbers = np.array(order(10_000, 3))
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers, np.arange(10_000))[0, 1]) < 0.03


def test_a_place_far_out_in_a_hundred_million_is_found_at_once():
    far = [*map(Permutation(10**8, 7), (0, 1, 99_999_999))]
    assert len(set(far)) == 3
    assert max(far) < 10**8


def test_every_image_comes_once_before_any_comes_again(shards):
    made = plugin(shards, held_out_share=0)
    for role in "DG":
        names = [name(one) for step in range(12) for one in drawn(made, step, role, 0, size=10)]
        assert Counter(names) == dict.fromkeys(names, 2)
        assert len(set(names[:60])) == len(set(names[60:])) == 60
        assert names[:60] != names[60:]


def test_another_seed_cuts_other_places_of_the_same_image(tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (99, 99)).save(tmp_path / "one" / "a.png")
    [*pack_folder(tmp_path / "one", tmp_path / "out", Packing())]
    found = []
    for seed in range(2):
        made = plugin(tmp_path / "out", 0, "D", 0, seed=seed)
        made.sample_real(9, CPU)
        found.append(made.samples_drawn())
    assert len({*found[0], *found[1]}) > 15


def test_both_networks_have_orders_of_their_own(shards):
    made = plugin(shards)
    assert drawn(made, 0, "D", 0) != drawn(made, 0, "G", 0)


def test_the_draws_follow_the_seed_and_the_step_alone(shards):
    steps = [(0, "D", 0), (0, "G", 0), (1, "D", 0), (1, "G", 0), (2, "D", 0)]
    made = plugin(shards)
    in_order = [seeded(made, 0, *step).sample_real(5, CPU) for step in steps]
    for step, expected in zip(steps, in_order, strict=True):
        for options in ({}, {"readers": 1, "batches_ahead": 0}, {"batches_ahead": 9}):
            assert torch.equal(batch(shards, *step, **options), expected)
    assert not torch.equal(in_order[0], in_order[2])
    assert not torch.equal(in_order[0], plugin(shards, *steps[0], seed=1).sample_real(5, CPU))


def test_a_run_that_went_back_sees_other_crops(shards):
    made = plugin(shards)
    assert drawn(made, 5, "D", 0) != drawn(made, 5, "D", 0, "rolled back", 1)


class Rank(World):
    """One of several processes, which needs nothing of the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def rows(self, whole: torch.Tensor, parts: int = 1) -> torch.Tensor:
        return rows_of(whole, self.rank, self.size, parts)


def small_run(shards: Path, **settings: object) -> Run:
    return tiny_run(plugin(shards, held_out_share=0), **settings)


@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_read_the_rows_of_one_batch_and_nothing_else(shards, parts):
    run = small_run(shards, batch_size=8, accumulate=parts)
    whole = batch(shards, 4, "D", 0, size=8)
    for rank in range(2):
        made = plugin(shards, 4, "D", 0, batches_ahead=0)
        made.check_recipe(run)
        made._world = Rank(rank, 2)
        mine = made.sample_real(4, CPU)
        assert torch.equal(mine, rows_of(whole, rank, 2, parts))
        assert made._index.ranges.reads == 4 + LIST


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_has_its_rows_in_the_trial_too_whose_batch_is_smaller(shards, rank):
    run = small_run(shards, batch_size=8)
    for size in (8, 4):
        run.recipe = run.recipe.model_copy(update={"batch_size": size})
        found = []
        for world in (Rank(rank, 2), ALONE):
            run.take_part_in(world)
            run.streams.moment(0, "D", 0)
            found.append(sample(run).real)
        assert torch.equal(found[0], found[1].chunk(2)[rank])


def test_several_crops_of_an_image_are_for_batches_in_a_row(shards):
    made = plugin(shards, crops_per_image=3, batches_ahead=2, held_out_share=0)
    made._steps = {"D": 1}
    batches = [drawn(made, step, "D", 0, size=6) for step in range(9)]
    for row in range(6):
        begins = [3 * turn - row % 3 for turn in range(3)]
        names = [name(samples[row]) for samples in batches]
        for first in begins:
            seen = names[max(first, 0) : first + 3]
            assert len(set(seen)) == 1
    assert len({sample for samples in batches for sample in samples}) > 40  # of 54
    images = {name(sample) for samples in batches for sample in samples}
    made._crops._pool.shutdown(wait=True)
    threads_read = made._index.ranges.reads
    # nine batches of six: a third of the reads, and some for the two batches ahead
    assert len(images) <= threads_read - LIST <= len(images) + 6


# --- reading ahead -------------------------------------------------------------------------------


def test_the_batches_to_come_are_read_before_they_are_asked_for(shards, monkeypatch):
    made = plugin(shards, batches_ahead=3)
    made._steps = {"D": 2, "G": 1}
    drawn(made, 0, "D", 0)
    made._crops._pool.shutdown(wait=True)  # what was begun is finished; nothing new can begin
    assert made._index.ranges.reads == 4 * 5 + LIST
    pending = made._crops._pending
    assert {key.stream for key in pending} == {("D",), ("G",)}
    monkeypatch.setattr(made._crops, "_begin", lambda *_: None)
    other = plugin(shards)
    other._steps = made._steps
    for moment in ((0, "D", 1), (0, "G", 0), (1, "D", 0)):
        assert drawn(made, *moment) == drawn(other, *moment)
    assert made._index.ranges.reads == 4 * 5 + LIST
    assert not pending


def test_with_the_generator_first_there_is_one_batch_an_iteration(shards):
    made = plugin(shards, batches_ahead=2)
    made._steps = {"G": 1}
    _, coming = seeded(made, 0, 7, "G", 0)._batches()
    assert [next(coming).number for _ in range(2)] == [8, 9]


def test_few_crops_are_in_memory_whatever_the_size_of_the_images(tmp_path):
    (tmp_path / "large").mkdir()
    for number in range(12):
        Image.new("RGB", (900, 700), (number, 0, 0)).save(tmp_path / "large" / f"{number}.png")
    [*pack_folder(tmp_path / "large", tmp_path / "out", Packing())]
    made = plugin(tmp_path / "out", batches_ahead=2, readers=1)
    drawn(made, 0, "D", 0)
    made._crops._pool.shutdown(wait=True)
    held = [crop for one in made._crops._pending.values() for crop in one.result().values()]
    assert len(held) == 10
    assert all(crop.pixels.base is None for crop in held)  # no crop keeps its image


def cost(folder: Path, length: int) -> tuple[int, int, int]:
    """Bytes that are kept after some steps, reads, and entries that are kept."""
    gc.collect()
    tracemalloc.start()
    made = plugin(folder, batches_ahead=2, readers=1)
    vars(made)["_index"] = index = VirtualIndex(folder, length)
    for step in range(40):
        drawn(made, step, "D", 0)
    for future in made._crops._pending.values():
        future.result()
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    entries = len(made._crops._pending) + len(made._crops._begun)
    made._crops.close()
    return kept, index.ranges.reads, entries


def test_a_hundred_million_images_cost_what_a_thousand_cost(tmp_path):
    (tmp_path / "alike").mkdir()
    for number in range(20):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "alike" / f"{number:02}.png")
    [*pack_folder(tmp_path / "alike", tmp_path / "out", Packing())]
    cost(tmp_path / "out", 1000)  # what is cached in the process
    few, many = cost(tmp_path / "out", 1000), cost(tmp_path / "out", 10**8)
    assert many[1:] == few[1:]
    assert few[2] == 2 * 5 + 2  # crops and batches ahead; the batches of G are never asked for
    assert many[0] < 1.05 * few[0] + 2**14


def test_a_finished_run_leaves_no_thread(shards):
    made = plugin(shards)
    drawn(made, 0, "D", 0)
    threads = [*made._crops._pool._threads]
    made.run_end(tiny_run())
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


# --- held-out images -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"held_out_share": 0.4, "evaluation_limit": 5},
                                     {"held_out_share": 1e-6}, {"held_out_share": 0}])  # fmt: skip
def test_the_images_held_out_are_those_of_the_folder(photos, shards, options):
    ours, theirs = plugin(shards, **options), ImageFolder(path=photos, crop=CROP, **options)
    found, expected = ours.evaluation_images(), theirs.evaluation_images()
    assert list(found) == list(expected)
    assert all(torch.equal(found[each], expected[each]) for each in found)
    trained = {name(one) for step in range(12) for one in drawn(ours, step, "D", 0, size=10)}
    assert trained == set(theirs.data_digest())


def test_held_out_images_may_be_files_elsewhere(photos, shards):
    made = plugin(shards, evaluation_path=photos / "1", evaluation_limit=3)
    expected = ImageFolder(path=photos, evaluation_path=photos / "1", evaluation_limit=3)
    assert list(made.evaluation_images()) == list(expected.evaluation_images())
    assert int(made._held_out.sum()) == 0


def test_a_share_beside_an_evaluation_folder_is_refused(shards):
    with pytest.raises(ValueError, match="held_out_share has no effect beside evaluation_path"):
        plugin(shards, evaluation_path=shards, held_out_share=0.2)


# --- what goes wrong -----------------------------------------------------------------------------


def damaged(shards: Path, folder: Path) -> Path:
    return Path(shutil.copytree(shards, folder / "copy"))


def test_wrong_bytes_are_named(shards, tmp_path):
    copy = damaged(shards, tmp_path)
    for file in copy.glob("*.tar"):
        content = bytearray(file.read_bytes())
        content[600:-1024] = bytes(len(content) - 1624)
        file.write_bytes(content)
    with pytest.raises(ImageError, match=r"shard-00000\d\.tar: \d/\d\d\.\w+: its bytes [\d,]+ to"):
        batch(copy, 0, "D", 0)


def test_an_index_that_was_changed_is_named(shards, tmp_path):
    copy = damaged(shards, tmp_path)
    for file in copy.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(GanlabError, match=r"shard-00000\d\.npy: is not the index that index\.json"):
        batch(copy, 0, "D", 0)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "ganlab shards 1", "shards": []}',
                                  '{"format": "ganlab shards 1", "shards": [{"name": "../a.tar"}]}',
                                  '{"format": "ganlab shards 9", "shards": [LINE]}'])  # fmt: skip
def test_a_list_of_shards_that_is_none_is_one_message(shards, tmp_path, text):
    copy = damaged(shards, tmp_path)
    line = (copy / "index.json").read_text().splitlines()[1].rstrip(",")
    (copy / "index.json").write_text(text.replace("LINE", line))
    with pytest.raises(RecipeError, match=r"index\.json: (is no list of shards|has the format)"):
        batch(copy, 0, "D", 0)


def test_shards_without_an_index_are_told_the_command(shards, tmp_path):
    copy = damaged(shards, tmp_path)
    (copy / "index.json").unlink()
    with pytest.raises(RecipeError, match=r"no index\.json; `ganlab data index .*` makes it"):
        batch(copy, 0, "D", 0)
    with pytest.raises(RecipeError, match="holds no shards; `ganlab data pack IMAGES"):
        batch(tmp_path, 0, "D", 0)
    with pytest.raises(RecipeError, match="no such folder"):
        batch(tmp_path / "gone", 0, "D", 0)


def test_a_crop_larger_than_an_image_is_refused_before_training(shards):
    with pytest.raises(RecipeError, match=r"crop = 12 is larger than an image, .*--min-side"):
        batch(shards, 0, "D", 0, crop=12)


def test_a_protocol_that_is_not_known_is_an_error_of_the_recipe():
    with pytest.raises(RecipeError, match="reads folders and http, https, s3, not ftp"):
        batch("ftp://host/x", 0, "D", 0)


def test_a_transparent_image_is_refused_where_that_is_asked(shards):
    with pytest.raises(ImageError, match=r"\.png: has transparent pixels"):
        batch(shards, 0, "D", 0, size=50, alpha="refuse")


def test_an_index_from_elsewhere_is_kept_and_fetched_once(shards, tmp_path):
    pytest.importorskip("aiohttp", reason="ganlab[shards] is not installed")
    with showing(Folder(shards)) as server:
        for _ in range(2):
            batch(server.address, 0, "D", 0, size=40)
        asked = Counter(path for path, _ in server.asked)
    assert {asked[f"/{index_name(one.name)}"] for one in shards.glob("*.tar")} == {1}
    assert len([*(tmp_path / "cache").glob("shard-*.npy")]) == len([*shards.glob("*.tar")])


@pytest.mark.long  # some minutes
def test_twenty_thousand_images_from_a_bad_server_are_those_of_the_folder(tmp_path):
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for number in range(20_000):
        file = root / f"{number % 200:03}" / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(file)
    out = tmp_path / "out"
    [*pack_folder(root, out, Packing(shard_bytes=10 * 2**20))]
    assert len([*out.glob("*.tar")]) > 2
    server = Folder(
        out, lambda number: {0: "cut", 7: "503", 20: "slow"}.get(number % 40, ""), slow_seconds=0.2
    )
    with showing(server):
        made = plugin(server.address, 0, "D", 0, readers=16, held_out_share=0)
        local = plugin(out, 0, "D", 0, held_out_share=0)
        for step in range(0, 20_000 // 100):
            crops = seeded(made, 0, step, "D", 0).sample_real(100, CPU)
            assert torch.equal(crops, seeded(local, 0, step, "D", 0).sample_real(100, CPU))
            for crop, told in zip((crops * 255).round().byte(), made.samples_drawn(), strict=True):
                left, top = map(int, told.partition(" at (")[2].rstrip(")").split(", "))
                image = read_image(root / name(told)).permute(1, 2, 0).numpy()
                assert any(
                    np.array_equal(crop.numpy(), cut(image, top, left, CROP, pose))
                    for pose in range(8)
                ), told
        assert made._index.ranges.cuts > 900
