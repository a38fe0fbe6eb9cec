"""ganlab: a plugin-based GAN experimentation kit, at home in single-image super-resolution.

A plugin imports from here and from nowhere else in the project. Names are imported when first
used, so that `ganlab --help` answers without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganlab.engine import Run
    from ganlab.errors import Diverged, GanlabError, RecipeError
    from ganlab.images import ImageError, list_images, read_image
    from ganlab.metrics import psnr, ssim
    from ganlab.plugin import Batch, NonNegativeSchedule, Plugin, RecipePath, Schedule, hookimpl
    from ganlab.resize import resize, resize_exact, round_to_8_bits
    from ganlab.steps import generator_losses

__version__ = "0.1.0"

_HOME = {
    "Batch": "plugin",
    "Diverged": "errors",
    "GanlabError": "errors",
    "ImageError": "images",
    "NonNegativeSchedule": "plugin",
    "Plugin": "plugin",
    "RecipeError": "errors",
    "RecipePath": "plugin",
    "Run": "engine",
    "Schedule": "plugin",
    "generator_losses": "steps",
    "hookimpl": "plugin",
    "list_images": "images",
    "psnr": "metrics",
    "read_image": "images",
    "resize": "resize",
    "resize_exact": "resize",
    "round_to_8_bits": "resize",
    "ssim": "metrics",
}

__all__ = [
    "Batch",
    "Diverged",
    "GanlabError",
    "ImageError",
    "NonNegativeSchedule",
    "Plugin",
    "RecipeError",
    "RecipePath",
    "Run",
    "Schedule",
    "generator_losses",
    "hookimpl",
    "list_images",
    "psnr",
    "read_image",
    "resize",
    "resize_exact",
    "round_to_8_bits",
    "ssim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ganlab' has no attribute '{name}'")
    return getattr(import_module(f"ganlab.{_HOME[name]}"), name)
