"""NIQE: how far an image is from undistorted photographs, without a reference."""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PrivateAttr
from scipy.ndimage import correlate1d
from scipy.special import gamma
from torch import Tensor, nn

from ganlab import (
    Plugin,
    PublishedFile,
    RecipePath,
    Run,
    hookimpl,
    load_weights,
    luma,
    require_held_out,
    resize,
    weights_file,
)

Floats = NDArray[np.float64]

BLOCK = 96  # side in pixels
PARAMETERS = PublishedFile(
    name="niqe",
    source="https://github.com/XPixelGroup/BasicSR/raw/master/basicsr/metrics/niqe_pris_params.npz",
    licence="Apache-2.0, as BasicSR",
    size=11_850,
    is_rounded=True,  # nobody states it; computed from its 36 + 36 x 36 + 49 numbers
    sha256="2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
    sha256_from="public records",
)
SHAPES = np.arange(0.2, 10.001, 0.001)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
WINDOW = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


class NIQE(Plugin):
    """Natural image quality evaluator of SR: no reference is used; lower is better.

        NIQE = sqrt((m - m0)^T ((S + S0) / 2)^+ (m - m0))

    36 numbers describe a block of 96 x 96 pixels; m and S are their mean and covariance over the
    blocks. At full and at half size, the numbers are the shape and scale of a generalised Gaussian
    fitted to the luma normalised by local mean and deviation, and the shape, mean and two scales of
    an asymmetric Gaussian fitted to the products of neighbours in four directions. m0 and S0 belong
    to 125 sharp photographs (Mittal, Soundararajan and Bovik 2013, Making a completely blind image
    quality analyzer, doi:10.1109/LSP.2012.2227726). They are read from the weights file: the
    authors' numbers as BasicSR ships them. Luma is rounded, as in the SR literature, and `scale`
    pixels are shaved.

    Flat areas count as exactly flat. In other codes the sign of their rounding noise counts, which
    changes the score of an image with many flat areas by up to 0.03. Half size is computed as by
    MATLAB's imresize.

    Few blocks make S uncertain: an image of 512 x 512 has 25 blocks. At least 2 are needed. An
    image of 512 x 512 takes about 0.1 s.
    """

    published: ClassVar = (PARAMETERS,)

    weights: RecipePath | None = None
    """The file niqe_pris_params.npz; by default the one in ganlab's cache folder."""

    _model: nn.Module | None = PrivateAttr(None)

    @hookimpl
    def check_recipe(self, run: Run) -> None:
        self._photographs()

    @hookimpl
    def run_start(self, run: Run) -> None:
        require_held_out(self, run, BLOCK + 2 * run.scale)

    @hookimpl
    def score_images(self, run: Run, sr: Tensor) -> dict[str, float]:
        shave, (height, width) = run.scale, sr.shape[-2:]
        rows, columns = ((side - 2 * shave) // BLOCK for side in (height, width))
        if rows * columns < 2:
            raise self.error(
                f"needs two blocks of {BLOCK} x {BLOCK} pixels after a shave of {shave}, but an "
                f"image is {width} x {height}; leave that image out, or this plugin"
            )
        model = self._photographs()
        inside = (..., slice(shave, height - shave), slice(shave, width - shave))
        return {self.name: _distance(features(luma(sr[inside])), model)}

    def _photographs(self) -> nn.Module:
        """The model of sharp photographs, read at the first call."""
        if self._model is None:
            model = nn.Module()
            model.register_buffer("mu_pris_param", torch.zeros(1, 36, dtype=torch.float64))
            model.register_buffer("cov_pris_param", torch.eye(36, dtype=torch.float64))
            model.register_buffer("gaussian_window", torch.zeros(7, 7, dtype=torch.float64))
            file = weights_file(PARAMETERS.file_name, self.weights)
            load_weights(self, model, file, PARAMETERS.sha256, PARAMETERS.source)
            self._model = model
        return self._model


def features(planes: Tensor) -> Floats:
    """The 36 numbers of each block of luma [1, 1, H, W] in 0..255: [blocks, 36]."""
    height, width = (side // BLOCK * BLOCK for side in planes.shape[-2:])
    full = (planes[0, 0, :height, :width].to("cpu", torch.float64) + 0.5).floor().numpy()
    # imresize mirrors the edge since 2016; `resize` repeats it, as imresize did before
    mirrored = torch.from_numpy(np.pad(full, 4, mode="symmetric"))[None, None]
    half = resize(mirrored, (height // 2 + 4, width // 2 + 4))[0, 0, 2:-2, 2:-2].numpy()
    return np.concatenate([_statistics(full, BLOCK), _statistics(half, BLOCK // 2)], 1)


def _statistics(plane: Floats, block: int) -> Floats:
    """18 numbers of each block of a plane: [blocks, 18]."""
    mean = _blur(plane)
    deviation = np.sqrt(np.abs(_blur(plane**2) - mean**2))
    centred = plane - mean
    centred[np.abs(centred) < 1e-9] = 0  # flat areas: the sign of rounding noise would count
    normal = centred / (deviation + 1)
    rows, columns = (side // block for side in normal.shape)
    blocks = normal.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(-1, block, block)
    shape, left, right = asymmetric_gaussian(blocks)
    found = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        found += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return np.stack(found, axis=1)


def asymmetric_gaussian(blocks: Floats) -> tuple[Floats, Floats, Floats]:
    """Shape, left and right scale, fitted by moments to each of [blocks, h, w]: [blocks] each.

        density = exp(-(|x| / scale)^shape) up to a factor; left scale below 0, right scale above

    A block without values on both sides of 0 cannot be fitted; its results are nan.
    """
    x = blocks.reshape(len(blocks), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (
            np.sqrt((np.where(side, x, 0) ** 2).sum(1) / side.sum(1)) for side in (x < 0, x > 0)
        )
        g = left / right
        ratio = np.abs(x).mean(1) ** 2 / (x**2).mean(1)
        ratio *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    nearest = np.abs(RATIOS - ratio[:, None]).argmin(1)
    shape = np.where(np.isnan(ratio), np.nan, SHAPES[nearest])
    to_scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * to_scale, right * to_scale


def _blur(plane: Floats) -> Floats:
    for axis in (0, 1):
        plane = correlate1d(plane, WINDOW / WINDOW.sum(), axis, mode="nearest")
    return plane


def _distance(found: Floats, model: nn.Module) -> float:
    mean, covariance = (
        model.get_buffer(name).numpy() for name in ("mu_pris_param", "cov_pris_param")
    )
    usable = found[~np.isnan(found).any(1)]
    if len(usable) < 2:  # nearly everything is flat: there are no statistics
        return float("nan")
    away = np.nanmean(found, 0) - mean[0]
    pooled = (covariance + np.cov(usable, rowvar=False)) / 2
    return float(np.sqrt(away @ np.linalg.pinv(pooled) @ away))
