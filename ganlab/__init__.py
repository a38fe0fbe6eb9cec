"""ganlab: a plugin-based GAN experimentation kit, at home in single-image super-resolution.

A plugin imports from here and from nowhere else in the project. Names are imported when first
used, so that `ganlab --help` answers without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganlab.toolbox.adaptive import AdaptiveProbability
    from ganlab.engine import Run
    from ganlab.errors import Diverged, GanlabError, RecipeError
    from ganlab.evaluation.scores import Judged
    from ganlab.images.store import ImageStore
    from ganlab.images.files import (
        ImageError,
        cache_folder,
        list_images,
        read_image,
        split_alpha,
        write_png,
    )
    from ganlab.toolbox.inception import InceptionFeatures
    from ganlab.images.metrics import (
        high_frequency_ratio,
        luma,
        psnr,
        ssim,
        ssim_maps,
        stride_power,
    )
    from ganlab.toolbox.patches import log_spectrum, random_patches, require_held_out
    from ganlab.toolbox.penalties import (
        FiniteDifferencePenalty,
        LazyPenalty,
        PatchReduce,
        input_gradient,
    )
    from ganlab.plugin import Batch, NonNegativeSchedule, Plugin, RecipePath, Schedule, hookimpl
    from ganlab.images.resampling import resize, resize_exact, round_to_8_bits, to_float, to_uint8
    from ganlab.steps import Terms, discriminator_losses, discriminators, generator_losses, shown
    from ganlab.monitoring.verdicts import History, Verdict
    from ganlab.toolbox.weights import fill_network, load_weights, read_weights, weights_file

__version__ = "0.1.0"

_HOME = {
    "AdaptiveProbability": "adaptive",
    "Batch": "plugin",
    "DISTSNetwork": "perceptual",
    "Diverged": "errors",
    "FiniteDifferencePenalty": "penalties",
    "GanlabError": "errors",
    "History": "verdicts",
    "ImageError": "images",
    "ImageStore": "image_store",
    "Judged": "evaluation",
    "InceptionFeatures": "inception",
    "LPIPSNetwork": "perceptual",
    "LazyPenalty": "penalties",
    "NonNegativeSchedule": "plugin",
    "PatchReduce": "penalties",
    "Plugin": "plugin",
    "RecipeError": "errors",
    "RecipePath": "plugin",
    "Run": "engine",
    "Schedule": "plugin",
    "Terms": "steps",
    "VGGFeatures": "perceptual",
    "Verdict": "verdicts",
    "cache_folder": "images",
    "discriminator_losses": "steps",
    "discriminators": "steps",
    "fill_network": "weights",
    "generator_losses": "steps",
    "high_frequency_ratio": "metrics",
    "hookimpl": "plugin",
    "input_gradient": "penalties",
    "list_images": "images",
    "load_weights": "weights",
    "log_spectrum": "patches",
    "luma": "metrics",
    "psnr": "metrics",
    "random_patches": "patches",
    "read_image": "images",
    "read_weights": "weights",
    "require_held_out": "patches",
    "resize": "resampling",
    "resize_exact": "resampling",
    "round_to_8_bits": "resampling",
    "shown": "steps",
    "split_alpha": "images",
    "ssim": "metrics",
    "ssim_maps": "metrics",
    "stride_power": "metrics",
    "to_float": "resampling",
    "to_uint8": "resampling",
    "weights_file": "weights",
    "write_png": "images",
}

__all__ = [
    "AdaptiveProbability",
    "Batch",
    "DISTSNetwork",
    "Diverged",
    "FiniteDifferencePenalty",
    "GanlabError",
    "History",
    "ImageError",
    "ImageStore",
    "InceptionFeatures",
    "Judged",
    "LPIPSNetwork",
    "LazyPenalty",
    "NonNegativeSchedule",
    "PatchReduce",
    "Plugin",
    "RecipeError",
    "RecipePath",
    "Run",
    "Schedule",
    "Terms",
    "VGGFeatures",
    "Verdict",
    "cache_folder",
    "discriminator_losses",
    "discriminators",
    "fill_network",
    "generator_losses",
    "high_frequency_ratio",
    "hookimpl",
    "input_gradient",
    "list_images",
    "load_weights",
    "log_spectrum",
    "luma",
    "psnr",
    "random_patches",
    "read_image",
    "read_weights",
    "require_held_out",
    "resize",
    "resize_exact",
    "round_to_8_bits",
    "shown",
    "split_alpha",
    "ssim",
    "ssim_maps",
    "stride_power",
    "to_float",
    "to_uint8",
    "weights_file",
    "write_png",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ganlab' has no attribute '{name}'")
    return getattr(import_module(f"ganlab.{_HOME[name]}"), name)
