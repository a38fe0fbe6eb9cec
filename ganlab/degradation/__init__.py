"""Degradations as pure tensor functions, for plugins: `from ganlab import degradation`.

Blur kernels and filters, resizing, noise and JPEG, batched, on any device, in float32 and float64.
Each image has its own draw wherever the shapes allow it. The functions `host_...`, `random_mode`
and `random_scale` draw on the CPU for a whole batch; a step that uses them cannot be captured.
"""

from ganlab.degradation.draws import (
    Range,
    chance,
    choice,
    host_choice,
    host_order,
    host_uniform,
    rising,
    summing_to_one,
    uniform,
    uniform_whole,
)
from ganlab.degradation.filters import filter_images, reflected, sharpen
from ganlab.degradation.jpeg import jpeg
from ganlab.degradation.kernels import (
    gaussian_kernels,
    generalized_gaussian_kernels,
    identity_kernels,
    plateau_kernels,
    sinc_kernels,
)
from ganlab.degradation.noise import (
    add_correlated_noise,
    add_gaussian_noise,
    add_poisson_noise,
    add_speckle_noise,
    luma,
    num_photons,
    random_gaussian_noise,
    random_poisson_noise,
)
from ganlab.degradation.random_kernels import (
    KINDS,
    random_gaussian_kernels,
    random_kernels,
    random_sinc_kernels,
    random_sizes,
)
from ganlab.degradation.resizing import (
    MODES,
    Mode,
    random_mode,
    random_scale,
    resample,
    scaled_size,
    shrunk_size,
)

__all__ = [
    "KINDS",
    "MODES",
    "Mode",
    "Range",
    "add_correlated_noise",
    "add_gaussian_noise",
    "add_poisson_noise",
    "add_speckle_noise",
    "chance",
    "choice",
    "filter_images",
    "gaussian_kernels",
    "generalized_gaussian_kernels",
    "host_choice",
    "host_order",
    "host_uniform",
    "identity_kernels",
    "jpeg",
    "luma",
    "num_photons",
    "plateau_kernels",
    "random_gaussian_kernels",
    "random_gaussian_noise",
    "random_kernels",
    "random_mode",
    "random_poisson_noise",
    "random_scale",
    "random_sinc_kernels",
    "random_sizes",
    "reflected",
    "resample",
    "rising",
    "scaled_size",
    "sharpen",
    "shrunk_size",
    "sinc_kernels",
    "summing_to_one",
    "uniform",
    "uniform_whole",
]
