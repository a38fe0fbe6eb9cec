"""The bicubic degradation: its two modes, and that antialiasing is there."""

import numpy as np
import pluggy
import pytest
import torch
from ganlab_plugins.bicubic import Bicubic
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from ganlab import Plugin, RecipeError, hookimpl, hookspecs
from ganlab.images.metrics import psnr
from ganlab.images.resampling import resize, resize_exact, to_float, to_uint8


class Images(Plugin):
    """Begins the chain with the images themselves, as the engine does."""

    @hookimpl
    def degrade(self, images: Tensor) -> Tensor:
        return images


def degrade(plugin: Plugin, images: Tensor) -> Tensor:
    manager = pluggy.PluginManager("ganlab")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.register(Images())
    return manager.hook.degrade(images=images)


def enlarged_psnr(plugin: Bicubic, hr: Tensor) -> float:
    """PSNR on Y of HR shrunk by the plugin and enlarged again, over 8-bit HR [1, 3, H, W]."""
    size = hr.shape[-2] // plugin.scale, hr.shape[-1] // plugin.scale
    hr = hr[..., : size[0] * plugin.scale, : size[1] * plugin.scale]
    lr = to_uint8(degrade(plugin, to_float(hr)))
    return psnr(resize_exact(lr, (hr.shape[-2], hr.shape[-1])), hr, plugin.scale).item()


def discs(side: int, num: int) -> Tensor:
    """Overlapping discs of random colours, none near black or white, where the exact mode clips
    between its passes: an image with edges and flat areas, uint8.
    """
    rng = torch.Generator().manual_seed(0)
    image = torch.full((1, 3, side, side), 128, dtype=torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for _ in range(num):
        y, x, radius = (torch.rand(3, generator=rng) * torch.tensor([side, side, side / 8])).long()
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        colour = torch.randint(40, 216, (3, 1), generator=rng, dtype=torch.uint8)
        image[0, :, inside] = colour
    return image


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_default_is_within_a_hundredth_of_a_decibel_of_the_exact_mode(scale):
    hr = discs(240, 200)
    exact = enlarged_psnr(Bicubic(scale=scale, exact=True), hr)
    assert enlarged_psnr(Bicubic(scale=scale), hr) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("scale", "published"), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_set5_enlarged_again_has_the_published_psnr_in_both_modes(shared_data, scale, published):
    images = []
    for path in sorted((shared_data / "Set5").glob("*.png")):
        with Image.open(path) as image:
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    assert len(images) == 5
    fast, exact = (
        sum(enlarged_psnr(Bicubic(scale=scale, exact=mode), hr) for hr in images) / 5
        for mode in (False, True)
    )
    # without antialiasing x4 would read 27.69
    assert exact == pytest.approx(published, abs=0.02)
    assert fast == pytest.approx(exact, abs=0.01)


def test_a_wave_beyond_the_nyquist_frequency_of_lr_fades():
    wave = 0.5 + 0.5 * torch.cos(2 * torch.pi * 0.21 * torch.arange(128.0)).expand(1, 3, 8, -1)
    assert degrade(Bicubic(scale=4), wave)[..., 2:-2].std() < 0.06


def test_the_exact_mode_is_the_8_bit_pipeline():
    hr = torch.randint(0, 256, (2, 3, 12, 20), dtype=torch.uint8)
    lr = degrade(Bicubic(exact=True), to_float(hr))
    assert lr.dtype == torch.float32
    assert torch.equal(to_uint8(lr), resize_exact(hr, (3, 5)))


def test_lr_has_the_levels_of_a_file_unless_told_otherwise():
    hr = torch.zeros(1, 3, 16, 24)
    hr[..., 12:] = 1
    rounded, plain = degrade(Bicubic(), hr), degrade(Bicubic(round_to_8_bits=False), hr)
    assert torch.equal(to_float(to_uint8(rounded)), rounded)
    assert torch.equal(plain, resize(hr, (4, 6)))
    assert plain.min() < 0 < 1 < plain.max()
    assert (rounded.min(), rounded.max()) == (0, 1)


def test_unrounded_it_passes_the_gradient_of_every_pixel():
    hr = torch.rand(1, 3, 8, 8, requires_grad=True)
    degrade(Bicubic(scale=2, round_to_8_bits=False), hr).sum().backward()
    assert hr.grad is not None
    torch.testing.assert_close(hr.grad.sum(), torch.tensor(3 * 16.0))
    assert (hr.grad != 0).all()


def test_a_crop_that_the_scale_does_not_divide_is_refused_with_the_remedy():
    with pytest.raises(RecipeError, match=r"bicubic: cannot shrink 9 x 8 images by 4.*multiple"):
        degrade(Bicubic(scale=4), torch.zeros(1, 3, 8, 9))


@pytest.mark.parametrize("scale", [1, 9, 2.0])
def test_the_scale_is_a_whole_number_from_2_to_8(scale):
    with pytest.raises(ValidationError):
        Bicubic(scale=scale)
