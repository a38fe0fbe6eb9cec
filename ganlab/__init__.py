"""ganlab: a plugin-based GAN experimentation kit, at home in single-image super-resolution.

A plugin imports from here and from nowhere else in the project. Names are imported when first
used, so that `ganlab --help` answers without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganlab.engine import Run
    from ganlab.errors import Diverged, GanlabError, RecipeError
    from ganlab.image_store import ImageStore
    from ganlab.images import (
        ImageError,
        cache_folder,
        list_images,
        read_image,
        split_alpha,
        write_png,
    )
    from ganlab.metrics import high_frequency_ratio, luma, psnr, ssim
    from ganlab.plugin import Batch, NonNegativeSchedule, Plugin, RecipePath, Schedule, hookimpl
    from ganlab.resampling import resize, resize_exact, round_to_8_bits, to_float, to_uint8
    from ganlab.steps import generator_losses

__version__ = "0.1.0"

_HOME = {
    "Batch": "plugin",
    "Diverged": "errors",
    "GanlabError": "errors",
    "ImageError": "images",
    "ImageStore": "image_store",
    "NonNegativeSchedule": "plugin",
    "Plugin": "plugin",
    "RecipeError": "errors",
    "RecipePath": "plugin",
    "Run": "engine",
    "Schedule": "plugin",
    "cache_folder": "images",
    "generator_losses": "steps",
    "high_frequency_ratio": "metrics",
    "hookimpl": "plugin",
    "list_images": "images",
    "luma": "metrics",
    "psnr": "metrics",
    "read_image": "images",
    "resize": "resampling",
    "resize_exact": "resampling",
    "round_to_8_bits": "resampling",
    "split_alpha": "images",
    "ssim": "metrics",
    "to_float": "resampling",
    "to_uint8": "resampling",
    "write_png": "images",
}

__all__ = [
    "Batch",
    "Diverged",
    "GanlabError",
    "ImageError",
    "ImageStore",
    "NonNegativeSchedule",
    "Plugin",
    "RecipeError",
    "RecipePath",
    "Run",
    "Schedule",
    "cache_folder",
    "generator_losses",
    "high_frequency_ratio",
    "hookimpl",
    "list_images",
    "luma",
    "psnr",
    "read_image",
    "resize",
    "resize_exact",
    "round_to_8_bits",
    "split_alpha",
    "ssim",
    "to_float",
    "to_uint8",
    "write_png",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ganlab' has no attribute '{name}'")
    return getattr(import_module(f"ganlab.{_HOME[name]}"), name)
