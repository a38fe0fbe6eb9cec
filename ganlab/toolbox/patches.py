"""Patches of the held-out images, for figures that compare whole sets of patches."""

from collections.abc import Sequence

import torch
from scipy.fft import dctn
from torch import Tensor

from ganlab.images.metrics import luma
from ganlab.plugin import EvaluatedImage, Plugin
from ganlab.run import Run


def random_patches(
    plugin: Plugin, images: Sequence[EvaluatedImage], size: int, count: int
) -> tuple[Tensor, Tensor]:
    """Patches of SR and of HR, cut at the same places, which `plugin.host_rng` draws.

    Each patch has a draw of its own: first an image, all equally likely, then a place in it. So
    patches may overlap or repeat. For given images the patches are independent and identically
    distributed, but the SR and the HR patch of one place depend on each other. A test that needs
    independent samples calls this twice, and takes SR from one call and HR from the other.

    :param plugin: its random numbers are used, and an error names it.
    :param size: side in pixels.
    :returns: SR and HR, uint8 [count, 3, size, size] on the CPU; grey has three equal planes.
    :raises RecipeError: for an image smaller than a patch.
    """
    pairs = [_pair(item) for item in images]
    for item, pair in zip(images, pairs, strict=True):
        _require_size(plugin, item.name, min(pair.shape[-2:]), size)
    u = torch.rand(count, 3, generator=plugin.host_rng, dtype=torch.float64).tolist()
    patches = torch.empty(count, 6, size, size, dtype=torch.uint8)
    for patch, (which, down, right) in zip(patches, u, strict=True):
        pair = pairs[int(which * len(pairs))]
        top = int(down * (pair.shape[-2] - size + 1))
        left = int(right * (pair.shape[-1] - size + 1))
        patch.copy_(pair[:, top : top + size, left : left + size])
    return patches[:, :3], patches[:, 3:]


def log_spectrum(patches: Tensor) -> Tensor:
    """How much of each spatial frequency a patch holds; this reveals smoothness and artefacts.

        feature = log(1 + |DCT-II of the luma, orthonormal|), in grey levels

    :param patches: uint8 [N, 3, size, size] on the CPU.
    :returns: float64 [N, size * size].
    """
    spectrum = dctn(luma(patches).numpy(), axes=(-2, -1), norm="ortho")
    return torch.from_numpy(spectrum).abs_().log1p_().flatten(1)


def require_held_out(plugin: Plugin, run: Run, side: int) -> None:
    """Refuse, at the start of a run, held-out images that a plugin could not score later.

    :param side: smallest allowed side in pixels, after the cut to a multiple of the scale.
    :raises RecipeError: when there are no held-out images, or one is smaller.
    """
    if not run.held_out:
        raise plugin.error("scores held-out images, and there are none; add some or leave it out")
    for name, image in run.held_out.items():
        shortest = min(image.shape[-2:])
        _require_size(plugin, name, shortest - shortest % run.scale, side)


def _require_size(plugin: Plugin, name: str, side: int, wanted: int) -> None:
    if side < wanted:
        raise plugin.error(
            f"needs images of at least {wanted} pixels a side, and {name} has {side}; "
            "leave that image out, or this plugin"
        )


def _pair(item: EvaluatedImage) -> Tensor:
    """SR and HR as one tensor, uint8 [6, H, W], SR first; the SR of a grey image is made grey."""
    sr = item.sr
    if len(item.hr) == 1 and len(sr) == 3:
        sr = (sr.to(torch.float32).mean(0, keepdim=True) + 0.5).to(torch.uint8)
    return torch.cat([sr.expand(3, -1, -1), item.hr.expand(3, -1, -1)])
