"""PSNR, SSIM and detail against closed forms, scikit-image and the published bicubic figures."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from ganlab.images import metrics
from ganlab.images.metrics import high_frequency_ratio, luma, psnr, ssim, stride_power
from ganlab.images.resampling import resize, resize_exact, to_float, to_uint8


def noise(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, generator=rng, dtype=torch.uint8)


def flat(value: int, side: int = 16) -> Tensor:
    return torch.full((1, 1, side, side), value, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((0, 0, 0), 16), ((255, 255, 255), 235), ((255, 0, 0), 81.481), ((0, 0, 255), 40.966)],
)
def test_luma_of_known_colours(colour, expected):
    pixel = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1)
    assert luma(pixel).item() == pytest.approx(expected, abs=1e-12)


def test_a_grey_image_is_its_own_luma():
    grey = noise(2, 1, 5, 3)
    assert luma(grey).dtype == torch.float64
    assert torch.equal(luma(grey), grey.to(torch.float64))


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_an_error_of_one_level_is_48_decibels(channel):
    assert psnr(flat(7), flat(8), 0, channel).item() == pytest.approx(20 * math.log10(255))


def test_a_grey_error_reads_higher_on_y_than_on_rgb_by_the_range_of_y():
    reference = noise(2, 3, 9, 7, low=20, high=200)
    image = reference + noise(2, 1, 9, 7, high=30)
    difference = psnr(image, reference, 1, "y") - psnr(image, reference, 1, "rgb")
    expected = torch.full([2], 20 * math.log10(255 / 219), dtype=torch.float64)
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-12)


def test_equal_images_have_infinite_psnr_and_ssim_one():
    image = noise(1, 3, 12, 13)
    assert psnr(image, image, 0).item() == math.inf
    assert ssim(image, image, 0).item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_what_is_cut_off_does_not_count(measure):
    reference = noise(1, 3, 20, 19)
    image = reference.clone()
    image[..., 4:-4, 4:-4] ^= 3
    spoilt = 255 - image
    spoilt[..., 3:-3, 3:-3] = image[..., 3:-3, 3:-3]
    assert torch.equal(measure(spoilt, reference, 3), measure(image, reference, 3))
    assert not torch.equal(measure(spoilt, reference, 2), measure(image, reference, 2))


@pytest.mark.parametrize("measure", [psnr, ssim, high_frequency_ratio])
def test_each_image_of_a_batch_is_measured_alone(measure):
    image, reference = noise(3, 3, 17, 16), noise(3, 3, 16, 17).transpose(2, 3)
    together = measure(image, reference, 2)
    alone = [measure(image[i : i + 1], reference[i : i + 1], 2).item() for i in range(3)]
    assert together.dtype == torch.float64
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 110)])
def test_ssim_of_flat_images_is_the_luminance_term(a, b):
    c1 = (0.01 * 255) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(flat(a), flat(b), 0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 3, 33, 40), (1, 1, 25, 12), (1, 3, 11, 11)])
def test_ssim_is_that_of_scikit_image(shape):
    reference = noise(*shape)
    image = (reference // 2 + noise(*shape, high=100)).to(torch.uint8)
    expected = [
        structural_similarity(
            a.to(torch.float64).numpy(),
            b.to(torch.float64).numpy(),
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(image[0], reference[0], strict=True)
    ]
    assert ssim(image, reference, 0, "rgb").item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_shave_that_leaves_nothing_is_refused():
    image = noise(1, 3, 14, 30)
    psnr(image, image, 6)
    with pytest.raises(ValueError, match="leaves less than 1 x 1"):
        psnr(image, image, 7)
    ssim(image, image, 1)
    with pytest.raises(ValueError, match="leaves less than 11 x 11"):
        ssim(image, image, 2)


@pytest.mark.parametrize("measure", [psnr, ssim, high_frequency_ratio])
def test_images_that_cannot_be_compared_are_refused(measure):
    image = noise(1, 3, 16, 16)
    with pytest.raises(ValueError, match="differ in shape"):
        measure(image, image[..., 1:], 1)
    with pytest.raises(ValueError, match="uint8"):
        measure(to_float(image), to_float(image), 1)
    with pytest.raises(ValueError, match="C 3 or 1"):
        measure(image[:, :2], image[:, :2], 1)


def test_twice_the_detail_has_four_times_the_power():
    detail = noise(1, 1, 31, 20, high=50)
    assert high_frequency_ratio(60 + 2 * detail, 80 + detail, 2).item() == pytest.approx(4)


def test_what_lr_can_hold_does_not_count_as_detail():
    wave = torch.cos(2 * torch.pi * 0.04 * torch.arange(64.0)).expand(1, 1, 64, -1)
    detail = noise(1, 1, 64, 64, high=40)
    both = detail + (80 + 60 * wave).to(torch.uint8)
    assert high_frequency_ratio(both, detail, 4).item() == pytest.approx(1, abs=0.02)
    assert high_frequency_ratio(both, detail, 32).item() > 3  # now LR cannot hold the wave


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_tiny_image_keeps_its_own_detail(side):
    image = noise(1, 1, side, 9)
    assert high_frequency_ratio(image, image, 4).item() == 1


def test_enlarged_noise_lacks_detail_and_added_noise_has_too_much():
    hr = noise(1, 3, 64, 64, low=60, high=190)
    smooth = to_uint8(resize(resize(to_float(hr), (16, 16)), (64, 64)))
    assert high_frequency_ratio(smooth, hr, 4).item() < 0.05
    assert high_frequency_ratio(hr + noise(1, 3, 64, 64, high=60), hr, 4).item() > 1.1


@pytest.mark.cuda
@pytest.mark.parametrize("measure", [psnr, ssim, high_frequency_ratio])
def test_a_gpu_measures_the_same(measure):
    image, reference = noise(2, 3, 30, 41), noise(2, 3, 41, 30).transpose(2, 3)
    on_gpu = measure(image.cuda(), reference.cuda(), 2)
    torch.testing.assert_close(on_gpu.cpu(), measure(image, reference, 2), rtol=1e-9, atol=0)


PUBLISHED = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.24, 0.8688),
    ("Set14", 3): (27.55, 0.7742),
    ("Set14", 4): (26.00, 0.7027),
    ("BSD100", 2): (29.56, 0.8431),
    ("BSD100", 3): (27.21, 0.7385),
    ("BSD100", 4): (25.96, 0.6675),
}
LONG = [("BSD100", 2), ("BSD100", 3), ("BSD100", 4)] + [
    (name, scale) for name in ("Urban100-part", "DIV2K-valid-256", "GB82") for scale in (2, 3, 4)
]
SETS = [("Set5", 2), ("Set5", 3), ("Set5", 4), ("Set14", 4)] + [
    pytest.param(name, scale, marks=pytest.mark.long)
    for name, scale in [("Set14", 2), ("Set14", 3), *LONG]
]


@pytest.mark.parametrize(("name", "scale"), SETS)
def test_bicubic_has_its_known_figures_on_every_image_of_a_set(shared_data, name, scale):
    figures = []
    for row in _rows(shared_data, name, scale):
        hr = _load(shared_data / row["path"])
        size = hr.shape[-2] // scale, hr.shape[-1] // scale
        hr = hr[..., : size[0] * scale, : size[1] * scale]
        sr = resize_exact(resize_exact(hr, size), (hr.shape[-2], hr.shape[-1]))
        figures.append((psnr(sr, hr, scale).item(), ssim(sr, hr, scale).item()))
        # the columns have 4 and 5 decimals
        assert figures[-1][0] == pytest.approx(float(row["psnr_rgb8"]), abs=1e-4), row["path"]
        assert figures[-1][1] == pytest.approx(float(row["ssim_rgb8"]), abs=1e-5), row["path"]
    mean_psnr, mean_ssim = torch.tensor(figures, dtype=torch.float64).mean(0).tolist()
    if (name, scale) in PUBLISHED:
        assert mean_psnr == pytest.approx(PUBLISHED[name, scale][0], abs=0.02)
        assert mean_ssim == pytest.approx(PUBLISHED[name, scale][1], abs=0.001)


def _rows(shared_data: Path, name: str, scale: int) -> list[dict[str, str]]:
    with (shared_data / "bicubic.csv").open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["set"] == name and row["scale"] == str(scale)
        ]
    assert len(rows) >= 5
    return rows


def _load(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(200, 64), (199, 70), (64, 300)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_measured_in_bands_has_the_figures_of_the_whole(monkeypatch, size, channels):
    reference = noise(2, channels, *size)
    image = (reference.int() + noise(2, channels, *size, high=9)).clamp(0, 255).byte()

    def measured() -> list[Tensor]:
        return [
            *(psnr(image, reference, 3, channel) for channel in ("y", "rgb")),
            *(ssim(image, reference, 3, channel) for channel in ("y", "rgb")),
            stride_power(image, 4),
        ]

    whole = measured()
    monkeypatch.setattr(metrics, "BAND", 2 * 40 * (size[1] - 6))
    seen = []
    own = metrics.ssim_maps
    monkeypatch.setattr(metrics, "ssim_maps", lambda a, b: seen.append(a.shape[-2]) or own(a, b))
    torch.testing.assert_close(measured(), whole, rtol=1e-12, atol=0)
    assert max(seen) <= 50 and sum(seen) - 10 * len(seen) == 2 * (size[0] - 6 - 10)
