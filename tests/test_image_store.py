"""ImageStore: a crop is the slice that it claims to be, from RAM, a file or a device."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ganlab import Entry, ImageError, ImageStore

CPU = torch.device("cpu")


def coded(index: int, height: int, width: int) -> torch.Tensor:
    """An image whose pixels say which image, row and column they are."""
    image = torch.empty(3, height, width, dtype=torch.uint8)
    image[0] = index
    image[1] = torch.arange(height)[:, None]
    image[2] = torch.arange(width)
    return image


IMAGES = [("a", coded(0, 9, 30)), ("b", coded(1, 50, 11)), ("c", coded(2, 8, 8))]


def from_number(first: int) -> list[tuple[str, torch.Tensor]]:
    return IMAGES[first:]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(crops: torch.Tensor) -> torch.Tensor:
    return (crops * 255).round().to(torch.uint8)


def test_every_crop_is_a_slice_of_one_image():
    crops = levels(ImageStore.of(IMAGES).crops(200, 7, seeded(), CPU, flips=False, turns=False))
    for crop in crops:
        index, top, left = crop[:, 0, 0].tolist()
        assert torch.equal(crop, IMAGES[index][1][:, top : top + 7, left : left + 7])


def test_images_and_positions_are_equally_likely_and_all_reached():
    store = ImageStore.of(IMAGES)
    corners = levels(store.crops(6000, 7, seeded(), CPU, flips=False, turns=False))[:, :, 0, 0]
    counts = corners[:, 0].long().bincount()
    # five standard deviations of a binomial of chance 1/3
    assert ((counts - 2000).abs() < 5 * (6000 * 2 / 9) ** 0.5).all()
    for index, (_, image) in enumerate(IMAGES):
        places = {tuple(c) for c in corners[corners[:, 0] == index, 1:].tolist()}
        assert len(places) == (image.shape[1] - 6) * (image.shape[2] - 6)


def test_flips_and_turns_lay_a_crop_down_in_exactly_its_8_ways():
    square = coded(7, 6, 6)
    quarters = [square.rot90(k, (1, 2)) for k in range(4)]
    mirrored = [image.flip(2) for image in quarters]

    def ways(**options: bool) -> set[bytes]:
        crops = levels(ImageStore.of([("s", square)]).crops(200, 6, seeded(), CPU, **options))
        return {crop.numpy().tobytes() for crop in crops}

    def of(*images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert ways(flips=True, turns=True) == of(*quarters, *mirrored)
    assert ways(flips=False, turns=True) == of(*quarters)
    assert ways(flips=True, turns=False) == of(square, mirrored[0])
    assert ways(flips=False, turns=False) == of(square)


def test_crops_are_scaled_to_exactly_0_and_1():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[1] = 255
    crop = ImageStore.of([("a", image)]).crops(1, 4, seeded(), CPU)
    assert crop.dtype == torch.float32
    assert crop.flatten(2).unique(dim=2).tolist() == [[[0.0], [1.0], [0.0]]]


def test_the_same_generator_state_gives_the_same_crops_and_others_are_left_alone():
    store = ImageStore.of(IMAGES)
    before = torch.get_rng_state()
    one, two = store.crops(8, 5, seeded(1), CPU), store.crops(8, 5, seeded(1), CPU)
    assert torch.equal(one, two)
    assert not torch.equal(one, store.crops(8, 5, seeded(2), CPU))
    assert torch.equal(before, torch.get_rng_state())


def test_turning_flips_off_does_not_move_the_crops():
    store = ImageStore.of(IMAGES)
    plain = store.crops(32, 5, seeded(), CPU, flips=False, turns=False)
    posed = store.crops(32, 5, seeded(), CPU)
    # the same pixels in another order
    assert torch.equal(plain.flatten(2).sort(2)[0], posed.flatten(2).sort(2)[0])


def test_a_mapped_file_gives_the_crops_of_ram(tmp_path):
    ImageStore.save(tmp_path / "s.store", from_number)
    mapped, ram = ImageStore.open(tmp_path / "s.store"), ImageStore.of(IMAGES)
    assert mapped.names == ["a", "b", "c"]
    assert torch.equal(mapped.crops(16, 8, seeded(), CPU), ram.crops(16, 8, seeded(), CPU))
    for index, (_, image) in enumerate(IMAGES):
        assert torch.equal(mapped.image(index), image)


def test_gathering_on_a_device_gives_the_crops_of_the_host():
    store = ImageStore.of(IMAGES)
    host = store.crops(64, 7, seeded(), CPU)
    store._resident = torch.from_numpy(store._pixels)
    assert torch.equal(store.crops(64, 7, seeded(), CPU), host)


@pytest.mark.cuda
def test_a_store_on_the_gpu_gives_the_crops_of_the_host(monkeypatch):
    monkeypatch.setattr("ganlab.images.store._PIECE", 1000)
    store, gpu = ImageStore.of(IMAGES), torch.device("cuda")
    host = store.crops(64, 7, seeded(), CPU)
    resident = store.to(gpu)
    assert resident.device.type == "cuda"
    crops = resident.crops(64, 7, seeded(), gpu)
    assert crops.device.type == "cuda"
    assert torch.equal(crops.cpu(), host)


def test_no_crop_at_all_is_a_batch_of_none():
    assert ImageStore.of(IMAGES).crops(0, 5, seeded(), CPU).shape == (0, 3, 5, 5)


def test_a_crop_larger_than_an_image_is_refused():
    assert ImageStore.of(IMAGES).crops(1, 8, seeded(), CPU).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="a crop of 9 pixels does not fit into an image of 8"):
        ImageStore.of(IMAGES).crops(1, 9, seeded(), CPU)


def test_the_smallest_image_is_the_one_with_the_shortest_side():
    store = ImageStore.of([("wide", coded(0, 9, 300)), ("even", coded(1, 20, 20))])
    assert store.smallest() == ("wide", 9, 300)


# --- the file ------------------------------------------------------------------------------------


def test_a_store_is_built_once(tmp_path):
    builds = []

    def build(first: int) -> list[tuple[str, torch.Tensor]]:
        builds.append(1)
        return IMAGES[first:]

    for _ in range(2):
        store = ImageStore.cached(tmp_path / "new" / "s.store", build)
        assert torch.equal(store.image(1), IMAGES[1][1])
    assert len(builds) == 1


def damage_pixel(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def damage_index(data: bytes) -> bytes:
    return data.replace(b'"sizes": [[9', b'"sizes": [[8')


def another_version(data: bytes) -> bytes:
    return data.replace(b"ganlab store 4", b"ganlab store 2")


@pytest.mark.parametrize(
    "damage",
    [
        damage_pixel,
        damage_index,
        another_version,
        lambda data: data[:-1],
        lambda data: data[5:],
        lambda _: b"",
    ],
)
def test_a_damaged_store_is_refused_and_built_again(tmp_path, damage):
    path = tmp_path / "s.store"
    ImageStore.save(path, from_number)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageError, match=r"s\.store: not a complete image store"):
        ImageStore.open(path)
    store = ImageStore.cached(path, from_number)
    assert torch.equal(store.image(0), IMAGES[0][1])


def test_what_a_build_wrote_before_it_failed_is_used_by_the_next(tmp_path):
    asked = []

    def build(first: int):
        asked.append(first)
        yield from IMAGES[first:2]
        if len(asked) == 1:
            raise KeyError("gone")
        yield IMAGES[2]

    with pytest.raises(KeyError):
        ImageStore.cached(tmp_path / "s.store", build)
    assert not (tmp_path / "s.store").exists()
    store = ImageStore.cached(tmp_path / "s.store", build)
    assert asked == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.store", "s.store.lock"]
    ImageStore.save(tmp_path / "whole.store", from_number)
    assert (tmp_path / "s.store").read_bytes() == (tmp_path / "whole.store").read_bytes()
    assert torch.equal(store.image(2), IMAGES[2][1])


@pytest.mark.parametrize(
    ("pixels", "notes", "kept"),
    [
        (lambda data: data, lambda lines: lines, 2),
        (lambda data: data + b"half an image", lambda lines: lines, 2),
        (lambda data: data[:-1], lambda lines: lines, 1),
        (lambda data: data, lambda lines: lines[:-20], 1),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda lines: lines, 1),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], lambda lines: lines, 0),
        (lambda data: data, lambda lines: "", 0),
    ],
)
def test_of_an_unfinished_store_just_what_is_whole_is_used(tmp_path, pixels, notes, kept):
    path, asked = tmp_path / "s.store", []

    def build(first: int):
        asked.append(first)
        yield from IMAGES[first:2]
        if len(asked) == 1:
            raise KeyboardInterrupt
        yield IMAGES[2]

    with pytest.raises(KeyboardInterrupt):
        ImageStore.save(path, build)
    part, lines = tmp_path / "s.store.part", tmp_path / "s.store.notes"
    part.write_bytes(pixels(part.read_bytes()))
    lines.write_text(notes(lines.read_text()))
    ImageStore.save(path, build)
    assert asked == [0, kept]
    for index, (_, image) in enumerate(IMAGES):
        assert torch.equal(ImageStore.open(path).image(index), image)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="GANLAB_CACHE"):
        ImageStore.cached(tmp_path / "file" / "s.store", from_number)


def test_of_several_that_need_a_store_one_builds_and_the_others_wait(tmp_path):
    start, builds = threading.Barrier(4), []

    def build(first: int):
        builds.append(1)
        time.sleep(0.1)  # long enough that the others find no file yet
        yield from IMAGES[first:]

    def need(_: int) -> torch.Tensor:
        start.wait()
        return ImageStore.cached(tmp_path / "s.store", build).image(2)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(image, IMAGES[2][1]) for image in pool.map(need, range(4)))
    assert len(builds) == 1


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4)])
def test_only_8_bit_rgb_is_stored(image):
    with pytest.raises(ValueError, match=r"a: a store takes uint8 \[3, H, W\]"):
        ImageStore.of([("a", image)])


def test_images_that_are_left_out_are_kept_by_name_and_counted_when_a_build_goes_on(tmp_path):
    entries = [Entry("a", IMAGES[0][1], "16 bits"), Entry("bad", None, "broken"), Entry(*IMAGES[1])]
    asked = []

    def build(first: int):
        asked.append(first)
        yield from entries[first : first + 2]
        if len(asked) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageStore.cached(tmp_path / "s.store", build)
    store = ImageStore.cached(tmp_path / "s.store", build)
    assert asked == [0, 2]
    assert store.names == ["a", "b"]
    assert (store.remarks, store.left_out) == ({"a": "16 bits"}, {"bad": "broken"})
    assert torch.equal(store.image(1), IMAGES[1][1])


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved store that counts as a large one: its images are checked when they are used."""
    monkeypatch.setattr("ganlab.images.store._HASHED_BYTES", 0)
    path = tmp_path / "large.store"
    ImageStore.save(path, lambda first: IMAGES[first:])
    return path


@pytest.mark.parametrize("use", ["crops", "image", "device"])
def test_a_flipped_bit_in_a_large_store_is_noticed_before_the_image_is_used(large, use):
    content = bytearray(large.read_bytes())
    content[5] ^= 1  # in the first image
    large.write_bytes(content)
    store = ImageStore.open(large)
    with pytest.raises(ImageError, match=IMAGES[0][0]):
        if use == "crops":
            store.crops(200, 7, seeded(), CPU)
        elif use == "image":
            store.image(0)
        else:
            store.to(torch.device("meta"))
    assert not large.exists()


def test_a_sound_large_store_is_checked_once(large, monkeypatch):
    store = ImageStore.open(large)
    store.crops(200, 7, seeded(), CPU)
    monkeypatch.setattr(store, "_is_as_saved", None)
    store.crops(200, 7, seeded(), CPU)


def test_a_flipped_bit_in_the_index_of_a_large_store_is_noticed(large):
    content = large.read_bytes()
    begins = content.index(b'{"sizes"')
    for at in range(begins, len(content), 17):
        large.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        with pytest.raises(ImageError):
            ImageStore.open(large)
