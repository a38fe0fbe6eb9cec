"""Bicubic resampling against its published taps, an exact oracle and MATLAB's own files."""

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ganlab.images import resampling
from ganlab.images.resampling import (
    passing_matrices,
    resize,
    resize_exact,
    round_to_8_bits,
    to_float,
    to_uint8,
)

X2 = [-3, -9, 29, 111, 111, 29, -9, -3]
X3 = [-1, -2, 0, 9, 21, 27, 21, 9, 0, -2, -1]
X4 = [-7, -45, -75, -49, 93, 399, 745, 987, 987, 745, 399, 93, -49, -75, -45, -7]


def row_weights(old: int, new: int) -> Tensor:
    """The matrix that resamples one axis, read off by resampling the identity."""
    return resize(torch.eye(old, dtype=torch.float64)[None, None], (new, old))[0, 0]


def oracle(image: list[list[int]], size: tuple[int, int]) -> list[list[int]]:
    """imresize written down literally, in fractions."""

    def cubic(x: Fraction) -> Fraction:
        x, a = abs(x), Fraction(-1, 2)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else Fraction(0)

    def one_axis(lines: list[list[int]], new: int) -> list[list[int]]:
        old, made = len(lines), []
        scale = Fraction(new, old)
        stretch = min(scale, Fraction(1))
        for i in range(new):
            centre = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
            taps = {j: cubic(stretch * (centre - j)) for j in range(-3 * old, 4 * old)}
            total = sum(taps.values())
            line = []
            for x in range(len(lines[0])):
                value = sum(w * lines[min(max(j, 0), old - 1)][x] for j, w in taps.items())
                line.append(min(max(floor(value / total + Fraction(1, 2)), 0), 255))
            made.append(line)
        return made

    rows_done = one_axis(image, size[0])
    columns = [list(column) for column in zip(*rows_done, strict=True)]
    return [list(row) for row in zip(*one_axis(columns, size[1]), strict=True)]


@pytest.mark.parametrize(("scale", "taps"), [(2, X2), (3, X3), (4, X4)])
def test_the_taps_of_whole_factors_are_the_published_ones(scale, taps):
    row = row_weights(16 * scale, 16)[8]
    inside = row[row != 0]
    expected = torch.tensor([tap for tap in taps if tap], dtype=torch.float64) / sum(taps)
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 7), (7, 1), (13, 5), (5, 13), (9, 9)])
def test_a_constant_stays_constant_up_to_the_border(old, new):
    images = torch.full((2, 3, old, old), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        resize(images, (new, new)), torch.full((2, 3, new, new), 0.3, dtype=torch.float64)
    )


def test_the_same_size_changes_nothing():
    images = torch.rand(1, 3, 7, 5)
    assert torch.equal(resize(images, (7, 5)), images)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_ramp_is_sampled_at_the_centres_of_the_new_pixels(scale):
    ramp = torch.arange(16.0 * scale, dtype=torch.float64).expand(1, 1, 4 * scale, -1)
    shrunk = resize(ramp, (4, 16))
    centres = torch.arange(16, dtype=torch.float64) * scale + (scale - 1) / 2
    torch.testing.assert_close(shrunk[0, 0, :, 2:-2], centres.expand(4, -1)[:, 2:-2])


@pytest.mark.parametrize("size", [(8, 12), (64, 96)])
def test_it_is_torch_interpolation_of_an_image_padded_by_its_edge(size):
    images = torch.rand(2, 3, 32, 48)
    pad = 16
    bigger = [side + 2 * pad * side // old for side, old in zip(size, (32, 48), strict=True)]
    padded = F.pad(images, [pad] * 4, mode="replicate")
    reference = F.interpolate(padded, bigger, mode="bicubic", antialias=True)
    y, x = (big - side for big, side in zip(bigger, size, strict=True))
    reference = reference[..., y // 2 : -y // 2, x // 2 : -x // 2]
    torch.testing.assert_close(resize(images, size), reference, rtol=0, atol=1e-6)


def test_frequencies_that_lr_cannot_hold_fade_by_antialiasing_alone():
    wave = torch.cos(2 * torch.pi * 0.21 * torch.arange(128.0)).expand(1, 1, 8, -1)
    assert resize(wave, (2, 32))[..., 2:-2].std() < 0.12
    assert resize(wave, (2, 32), antialias=False)[..., 2:-2].std() > 0.5


@pytest.mark.parametrize("size", [(3, 4), (13, 9)])
def test_the_gradient_is_right_for_odd_sizes(size):
    images = torch.rand(1, 2, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resize(x, size), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_comes_back_and_is_computed_in_float32_at_least(dtype):
    images = torch.rand(1, 3, 16, 16).to(dtype)
    precise = resize(images.to(torch.float64), (4, 4))
    made = resize(images, (4, 4))
    assert made.dtype == dtype
    torch.testing.assert_close(made, precise.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_autocast_does_not_lower_its_precision():
    images = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize(images, (5, 5)), resize(images.clone(), (5, 5)))
        inside = resize(images, (4, 4))
    assert torch.equal(inside, resize(images, (4, 4)))


def test_a_matrix_first_made_in_inference_mode_serves_a_later_backward_pass():
    with torch.inference_mode():
        resize(torch.rand(1, 1, 34, 38), (17, 19))
    images = torch.rand(1, 1, 34, 38, requires_grad=True)
    resize(images, (17, 19)).sum().backward()
    assert images.grad is not None
    assert images.grad.sum().item() == pytest.approx(17 * 19, rel=1e-5)


def test_the_package_gives_the_function_whatever_was_asked_for_before():
    from ganlab import resize as second, to_uint8 as first

    assert first is to_uint8
    images = torch.rand(1, 1, 4, 4)
    assert torch.equal(second(images, (2, 2)), resize(images, (2, 2)))


@pytest.mark.cuda
def test_a_gpu_makes_the_same_images_with_tf32_allowed_and_in_a_captured_graph():
    images = torch.rand(2, 3, 32, 40)
    on_gpu = images.cuda()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        made = resize(on_gpu, (8, 10))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = resize(on_gpu, (8, 10))
        graph.replay()
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(made.cpu(), resize(images, (8, 10)), rtol=0, atol=1e-6)
    assert torch.equal(captured, made)
    levels = to_uint8(images)
    assert torch.equal(resize_exact(levels.cuda(), (8, 10)).cpu(), resize_exact(levels, (8, 10)))


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (7, 5), (18, 16), (1, 1)])
def test_8_bit_images_agree_with_exact_fractions(size):
    images = torch.randint(0, 256, (2, 9, 8), dtype=torch.uint8)
    images[1] = images[1] // 128 * 255  # black and white: much is clipped
    expected = [oracle(image.tolist(), size) for image in images]
    assert resize_exact(images, size).tolist() == expected


@pytest.mark.parametrize(("height", "expected"), [(1, 1), (3, 2), (5, 3)])
def test_a_tie_is_rounded_up(height, expected):
    step = torch.zeros(1, 16, 16, dtype=torch.uint8)
    step[:, 7:] = height  # between the two middle taps of row 3: half its height
    assert resize_exact(step, (8, 8))[0, 3].tolist() == [expected] * 8


def test_levels_are_rounded_half_up_and_clipped():
    halves = torch.tensor([-0.2, 0.5 / 255, 2.5 / 255, 1.3], dtype=torch.float64)
    assert to_uint8(halves).tolist() == [0, 1, 3, 255]
    expected = torch.tensor([0, 1, 3, 255], dtype=torch.float64) / 255
    assert torch.equal(round_to_8_bits(halves), expected)


def test_all_256_levels_survive_as_floats():
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    assert floats.dtype == torch.float32
    assert torch.equal(to_uint8(floats), levels)
    assert torch.equal(round_to_8_bits(floats), floats)


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="resize_exact"):
        resize(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (2, 2))
    with pytest.raises(ValueError, match="to_uint8"):
        resize_exact(torch.zeros(1, 1, 4, 4), (2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        resize(torch.zeros(1, 1, 4, 4), (0, 2))


def test_every_golden_lr_image_is_reproduced_bit_for_bit(shared_data):
    files = sorted((shared_data / "golden").rglob("*.png"))
    assert len(files) == 157
    different = [str(path) for path in files if not _reproduced(shared_data, path)]
    assert different == []


def _reproduced(shared_data: Path, path: Path) -> bool:
    lr = _load(path)
    (original,) = (shared_data / path.parts[-3]).glob(f"{path.stem}.*")
    scale = int(path.parts[-2].removeprefix("x"))
    height, width = lr.shape[-2:]
    hr = _load(original)[:, : height * scale, : width * scale]
    return torch.equal(resize_exact(hr, (height, width)), lr)


def _load(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def test_matrices_of_passing_images_are_dropped_and_those_of_training_stay_where_they_are(
    monkeypatch,
):
    monkeypatch.setattr(resampling, "_MATRICES", {})
    images = torch.rand(1, 1, 12, 12)
    resize(images, (6, 6))
    lasting = {key: matrix.data_ptr() for key, matrix in resampling._MATRICES.items()}
    assert len(lasting) == 1
    with pytest.raises(KeyError), passing_matrices():
        resize(images, (6, 24))
        resize_exact(to_uint8(images), (6, 30))
        assert len(resampling._MATRICES) == 4
        raise KeyError
    assert {key: m.data_ptr() for key, m in resampling._MATRICES.items()} == lasting


def test_passing_matrices_are_dropped_earlier_when_they_take_more_than_told(monkeypatch):
    monkeypatch.setattr(resampling, "_MATRICES", {})
    kept = []
    with passing_matrices() as drop:
        for side in range(20, 120):
            resize(torch.rand(1, 1, 10, side), (10, 2 * side))
            drop(2**18)
            kept.append(len(resampling._MATRICES))
            assert sum(matrix.nbytes for matrix in resampling._MATRICES.values()) <= 2**18
    assert 0 in kept and max(kept) > 10
    assert not resampling._MATRICES
