"""builtin: the photographs are those of scikit-image, and none is both trained on and evaluated."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ganlab_plugins import builtin
from ganlab_plugins.builtin import Builtin

from ganlab import ImageStore, RecipeError, cache_folder
from ganlab.testing import seeded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))


def small(seed: int = 0, **options: object) -> Builtin:
    return seeded(Builtin(num_leaves=2, **options), seed)


def bundled(file: str) -> Path:
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / file


def rgb(array: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)
    return image.expand(3, -1, -1)


def counted(store: ImageStore) -> list[int]:
    """The numbers of crops that will be asked of this store."""
    counts: list[int] = []
    crops = store.crops

    def count(batch_size: int, *rest: object) -> torch.Tensor:
        counts.append(batch_size)
        return crops(batch_size, *rest)

    store.crops = count
    return counts


def test_held_out_images_are_what_scikit_image_returns():
    skimage_data = pytest.importorskip("skimage.data")
    images = Builtin().evaluation_images()
    assert list(images) == ["astronaut", "chelsea", "coffee", "camera"]
    for name, image in images.items():
        expected = np.atleast_3d(getattr(skimage_data, name)())
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert len(images["camera"]) == 1  # grey: scored as its own luma


def test_training_photographs_are_what_scikit_image_returns():
    skimage_data = pytest.importorskip("skimage.data")
    plugin = small()
    plugin.sample_real(1, CPU)
    photographs, _ = plugin._stores
    for index, name in enumerate(photographs.names):
        if name == "rocket.jpg":  # in Adobe RGB, and converted to sRGB
            continue
        expected = rgb(getattr(skimage_data, Path(name).stem)())
        assert torch.equal(photographs.image(index), expected)


def test_nothing_is_both_trained_on_and_judged():
    held_out = {hashlib.sha256(bundled(file).read_bytes()).digest() for file in builtin._HELD_OUT}
    trained_on = {hashlib.sha256(bundled(file).read_bytes()).digest() for file in builtin._TRAINING}
    assert len(held_out) == 4
    assert len(trained_on) == 6
    assert not held_out & trained_on


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_the_share_of_leaves_is_kept_in_every_batch(share, expected):
    plugin = small(leaves_share=share, crop=8)
    plugin.sample_real(1, CPU)
    photographs, leaves = (counted(store) for store in plugin._stores)
    assert plugin.sample_real(6, CPU).shape == (6, 3, 8, 8)
    assert (photographs, leaves) == ([6 - expected], [expected])


def test_a_batch_of_one_comes_from_either_source():
    plugin = small(crop=8)
    plugin.sample_real(1, CPU)
    leaves = counted(plugin._stores[1])
    for moment in range(200):
        seeded(plugin, 0, moment).sample_real(1, CPU)
    # five standard deviations of a binomial of chance 1/2
    assert abs(sum(leaves) - 100) < 36


def test_crops_follow_the_streams_of_the_run():
    one, two, other = (small(seed).sample_real(4, CPU) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_leaves_are_painted_once_and_again_when_damaged(monkeypatch):
    first = small().sample_real(4, CPU)
    [path] = cache_folder().glob("leaves-*.store")
    good = path.read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("painted again")

    with monkeypatch.context() as patch:
        patch.setattr(builtin, "paint", never)
        assert torch.equal(small().sample_real(4, CPU), first)
        path.write_bytes(good[:-1])
        with pytest.raises(AssertionError, match="painted again"):
            small().sample_real(4, CPU)
    assert torch.equal(small().sample_real(4, CPU), first)
    assert path.read_bytes() == good


def test_leaves_have_the_colours_of_the_training_photographs():
    photograph = torch.zeros(3, 64, 64, dtype=torch.uint8)
    photograph[0, :, 32:] = 200
    photograph[2, 0, 0] = 255
    colours = builtin._colours([photograph], np.random.default_rng(0))
    assert {tuple(c) for c in (colours * 255).round().tolist()} <= {
        (0, 0, 0),
        (200, 0, 0),
        (0, 0, 255),
    }


def test_dark_and_bright_colours_are_equally_likely_however_rare():
    photograph = torch.zeros(3, 64, 64, dtype=torch.uint8)
    photograph[:, 0] = 255  # one pixel in 64
    colours = builtin._colours([photograph], np.random.default_rng(0))
    assert abs(colours.mean() - 0.5) < 0.08


def test_a_held_out_image_that_was_changed_is_refused(monkeypatch):
    monkeypatch.setitem(builtin._HELD_OUT, "coffee.png", "0" * 64)
    with pytest.raises(RecipeError, match=r"scikit-image's coffee\.png is not the picture"):
        Builtin().evaluation_images()


def test_a_missing_scikit_image_or_photograph_is_named_with_a_way_out(monkeypatch):
    monkeypatch.setattr(builtin, "_TRAINING", ("no_such.png",))
    with pytest.raises(RecipeError, match=r"lacks data/no_such\.png.*image_folder"):
        Builtin().sample_real(1, CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match="is not installed; pip install scikit-image"):
        Builtin().sample_real(1, CPU)


def test_leaves_of_photographs_that_are_decoded_otherwise_are_painted_anew():
    for level in (50, 200):
        grey = torch.full((3, 400, 400), level, dtype=torch.uint8)
        photographs = ImageStore.of((name, grey) for name in "abcdef")
        leaves = Builtin(num_leaves=1)._leaves(photographs).image(0)
        assert abs(float(leaves.float().median()) - level) < 30
